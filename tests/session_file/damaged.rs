//! Damaged and made-up files. Nothing that is read from them may end in a panic, or in a session
//! that is not the saved one.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use gpt_oss_mlx::{Error, KvBits, KvPolicy, Model, Session};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use twox_hash::xxhash3_128::Hasher;

use super::{model, place, prompt, refusal, session_of};

/// Where the data begins.
fn data_start(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

pub fn header(bytes: &[u8]) -> Value {
    serde_json::from_slice(&bytes[8..data_start(bytes)]).unwrap()
}

/// The file with another header over the same data.
fn with_header(bytes: &[u8], header: &Value) -> Vec<u8> {
    let text = header.to_string();
    let mut changed = (text.len() as u64).to_le_bytes().to_vec();
    changed.extend(text.as_bytes());
    changed.extend(&bytes[data_start(bytes)..]);
    changed
}

pub fn with_metadata(bytes: &[u8], key: &str, value: &str) -> Vec<u8> {
    let mut header = header(bytes);
    header["__metadata__"][key] = json!(value);
    with_header(bytes, &header)
}

/// The file with the checksum that its bytes have, as someone would give it who makes one up.
pub fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.len().checked_sub(16) {
        let sum = Hasher::oneshot(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

/// A small file: packed rows, and a snapshot.
fn small(model: &Model, policy: &KvPolicy, path: &Path) -> Vec<u8> {
    session_of(model, policy, &prompt(5)).save(path).unwrap();
    fs::read(path).unwrap()
}

fn policy() -> KvPolicy {
    KvPolicy::quantized(KvBits::Four)
}

#[test]
fn any_changed_byte_is_noticed() {
    let model = model();
    let (_dir, path) = place();
    let bytes = small(&model, &policy(), &path);
    let end = data_start(&bytes);
    // In place: thousands of new files would take their time.
    let mut file = File::options().write(true).open(&path).unwrap();
    let mut put = |at: usize, byte: u8| {
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(&[byte]).unwrap();
    };
    // Every byte of the header, and of the data the first, the last and some between.
    let data = (end..bytes.len()).step_by(97).chain([bytes.len() - 1]);
    for at in (0..end).chain(data) {
        for flip in [1, 0x20, 0x80] {
            put(at, bytes[at] ^ flip);
            let reason = refusal(&model, &policy(), &path);
            if at >= end {
                assert!(reason.contains("checksum"), "byte {at}: {reason}");
            }
        }
        put(at, bytes[at]);
    }
    assert_eq!(Session::load_with_policy(&model, &policy(), &path).unwrap().ids(), prompt(5));
}

#[test]
fn a_file_that_is_cut_off_or_goes_on_is_refused() {
    let model = model();
    let (_dir, path) = place();
    let bytes = small(&model, &policy(), &path);
    let end = data_start(&bytes);
    let lengths = (0..end).step_by(7).chain((end..bytes.len()).step_by(501));
    for len in lengths.chain([bytes.len() - 1]) {
        fs::write(&path, &bytes[..len]).unwrap();
        refusal(&model, &policy(), &path);
        // Cut off and filled up, as after a crash on a file system that writes lengths first.
        let mut filled = bytes[..len].to_vec();
        filled.resize(bytes.len(), 0);
        fs::write(&path, filled).unwrap();
        refusal(&model, &policy(), &path);
    }
    fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
    assert!(refusal(&model, &policy(), &path).contains("behind its last tensor"));
}

/// What the checksum would notice is changed on purpose, and sealed anew.
#[test]
fn what_no_session_holds_is_refused_with_the_reason() {
    let model = model();
    let (_dir, path) = place();
    let bytes = small(&model, &policy(), &path);
    let refused = |changed: Vec<u8>| {
        fs::write(&path, resealed(changed)).unwrap();
        refusal(&model, &policy(), &path)
    };
    for (key, value, reason) in [
        ("config", "0", "config.json differs"),
        ("weights", "0", "weights differ"),
        ("activations", "F64", "activations in F64"),
        ("policy", "{}", "kv policy {}"),
        ("tokens", "6", "should have 6 tokens, but has 5"),
        ("tokens", "-5", "should have -5 tokens"),
        ("packed", "false", "are not packed"),
        ("packed", "maybe", "whether its rows are packed"),
        ("prefill_seconds", "-1", "prefill_seconds"),
        ("prefill_seconds", "inf", "prefill_seconds"),
        ("prefill_seconds", "NaN", "prefill_seconds"),
        ("prefill_seconds", "1e300", "prefill_seconds"),
    ] {
        let found = refused(with_metadata(&bytes, key, value));
        assert!(found.contains(reason), "{key} {value}: {found}");
    }
    for key in ["version", "config", "weights", "activations", "policy", "tokens", "packed"] {
        let mut header = header(&bytes);
        header["__metadata__"].as_object_mut().unwrap().remove(key);
        let found = refused(with_header(&bytes, &header));
        assert!(found.contains(&format!("lacks {key}")), "{key}: {found}");
    }

    // Ids lie first.
    let mut outside = bytes.clone();
    let at = data_start(&bytes);
    outside[at..at + 4].copy_from_slice(&2048_u32.to_le_bytes());
    assert!(refused(outside).contains("id 2048, which is outside the vocabulary of 2048"));

    type Change = fn(&mut serde_json::Map<String, Value>);
    let changes: [(Change, &str); 10] = [
        (|h| rename(h, "ids", "idz"), "lacks the tensor ids"),
        (|h| h["ids"]["dtype"] = json!("F32"), "its ids are F32"),
        (|h| h["ids"]["shape"] = json!([5, 1]), "its ids are U32 [5, 1]"),
        (|h| rename(h, "layers.1.keys.codes", "layers.9.keys.codes"), "lacks the tensor layers.1"),
        (|h| h["layers.0.keys"]["shape"] = json!([2, 1, 5, 64]), "layers.0.keys is"),
        (|h| h["layers.0.keys"]["shape"] = json!([1, 2, 64, 5]), "layers.0.keys is"),
        (|h| h["layers.1.keys.codes"]["dtype"] = json!("I32"), "layers.1.keys.codes is I32"),
        (
            |h| {
                let names: Vec<String> = h.keys().cloned().collect();
                for name in names.iter().filter(|name| name.starts_with("snapshots.5.")) {
                    rename(h, name, &name.replace("snapshots.5.", "snapshots.6."));
                }
            },
            "snapshot at position 6 of 5",
        ),
        (
            |h| {
                let entry = json!({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]});
                h.insert("more".into(), entry);
            },
            "tensor more, which no session has",
        ),
        (|h| rename(h, "checksum", "sum"), "checksum"),
    ];
    for (change, reason) in changes {
        let mut header = header(&bytes);
        change(header.as_object_mut().unwrap());
        let found = refused(with_header(&bytes, &header));
        assert!(found.contains(reason), "{reason}: {found}");
    }
}

fn rename(header: &mut serde_json::Map<String, Value>, from: &str, to: &str) {
    let entry = header.remove(from).unwrap();
    header.insert(to.into(), entry);
}

#[test]
fn rows_that_do_not_fit_the_number_of_tokens_are_refused() {
    let model = model();
    let (_dir, path) = place();
    let policy = KvPolicy::default();
    session_of(&model, &policy, &prompt(6)).save(&path).unwrap();
    let six = fs::read(&path).unwrap();
    // One id less: rows and snapshot are of six tokens.
    let mut five = header(&six);
    five["__metadata__"]["tokens"] = json!("5");
    five["ids"]["shape"] = json!([5]);
    let entries = five.as_object_mut().unwrap();
    for (name, entry) in entries.iter_mut().filter(|(name, _)| *name != "__metadata__") {
        for (i, less) in [(0, if name == "ids" { 0 } else { 4 }), (1, 4)] {
            let offset = entry["data_offsets"][i].as_u64().unwrap();
            entry["data_offsets"][i] = json!(offset - less);
        }
    }
    let names: Vec<String> = entries.keys().filter(|n| n.starts_with("snap")).cloned().collect();
    for name in names {
        rename(entries, &name, &name.replace("snapshots.6", "snapshots.5"));
    }
    let mut bytes = six.clone();
    bytes.drain(data_start(&six)..data_start(&six) + 4);
    fs::write(&path, resealed(with_header(&bytes, &five))).unwrap();
    let reason = refusal(&model, &policy, &path);
    assert!(reason.contains("rows in layers.0, where a session has 5..=5"), "{reason}");
}

/// Whatever is in a file that bears a right checksum: an error or a session, never a panic.
#[test]
fn made_up_files_do_no_harm() {
    let model = model();
    let (_dir, path) = place();
    let bytes = small(&model, &policy(), &path);
    let start = data_start(&bytes);
    let changes = prop::collection::vec((0..start + 200, any::<u8>()), 1..4);
    // Anything may be put where the JSON has a number: these are the sizes.
    let numbers = prop::sample::select(vec!["0", "1", "4294967296", "18446744073709551615", "-1"]);
    let strategy = (changes, prop::option::of((0..40_usize, numbers)));
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() };
    TestRunner::new(config)
        .run(&strategy, |(changes, number)| {
            let mut changed = bytes.clone();
            if let Some((which, number)) = number {
                let text = String::from_utf8(bytes[8..start].to_vec()).unwrap();
                let is_digit = |c: char| c.is_ascii_digit();
                let runs: Vec<(usize, &str)> = text
                    .match_indices(is_digit)
                    .filter(|(i, _)| !text[..*i].ends_with(is_digit))
                    .collect();
                let at = runs[which * runs.len() / 40].0;
                let rest = text[at..].trim_start_matches(is_digit);
                let text = format!("{}{number}{rest}", &text[..at]);
                changed = (text.len() as u64).to_le_bytes().to_vec();
                changed.extend(text.as_bytes());
                changed.extend(&bytes[start..]);
            } else {
                for (at, byte) in changes {
                    changed[at] = byte;
                }
            }
            fs::write(&path, resealed(changed)).unwrap();
            match Session::load_with_policy(&model, &policy(), &path) {
                Ok(session) => {
                    prop_assert_eq!(session.cache().len(), session.ids().len());
                    prop_assert!(session.ids().iter().all(|&id| id < 2048));
                }
                Err(Error::CacheFile { reason, .. }) => {
                    prop_assert!(!reason.is_empty() && reason.len() < 2000, "{}", reason);
                }
                Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
            Ok(())
        })
        .unwrap();
}
