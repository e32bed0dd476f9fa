//! Files that are whole but not for this model, policy or version.

use std::fs;
use std::io;
use std::path::Path;

use gpt_oss_mlx::{Error, KvBits, KvPolicy, LoadOptions, Model, Session};

use super::damaged::{header, resealed, with_metadata};
use super::{DIR, model, place, prompt, refusal, session_of};

/// A copy of the bundled model, with a file of it changed.
fn changed(dir: &Path, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Model {
    for entry in fs::read_dir(DIR).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let bytes = fs::read(dir.join(file)).unwrap();
    fs::write(dir.join(file), change(bytes)).unwrap();
    Model::load(dir, &LoadOptions::default()).unwrap()
}

#[test]
fn another_model() {
    let policy = KvPolicy::default();
    let (_dir, path) = place();
    session_of(&model(), &policy, &prompt(80)).save(&path).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let same = changed(dir.path(), "config.json", |bytes| bytes);
    assert_eq!(Session::load(&same, &path).unwrap().ids(), prompt(80));

    let other = changed(dir.path(), "config.json", |bytes| {
        let text = String::from_utf8(bytes).unwrap();
        text.replace("\"rope_theta\": 150000", "\"rope_theta\": 150001").into()
    });
    assert!(refusal(&other, &policy, &path).contains("another model: its config.json differs"));

    // One weight, of the last tensor.
    let other = changed(dir.path(), "model.safetensors", |mut bytes| {
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    });
    assert!(refusal(&other, &policy, &path).contains("another model: its weights differ"));
    // Neither does a session of it go on in the other model.
    let mut session = Session::load(&model(), &path).unwrap();
    let refused = other.generate_in(&mut session, &[1, 2], &Default::default());
    assert!(matches!(refused, Err(Error::Argument { name: "session", .. })));
}

#[test]
fn another_policy_and_both_are_named() {
    let model = model();
    let (_dir, path) = place();
    let saved = KvPolicy::quantized(KvBits::Eight);
    session_of(&model, &saved, &prompt(80)).save(&path).unwrap();
    let reason = match Session::load(&model, &path) {
        Err(error @ Error::CacheFile { .. }) => {
            assert!(error.hint().contains("kv options"), "{}", error.hint());
            error.to_string()
        }
        other => panic!("{other:?}"),
    };
    assert!(reason.contains("\"key_bits\":8"), "{reason}");
    assert!(reason.contains("\"key_bits\":null"), "{reason}");

    type Change = fn(&mut KvPolicy);
    let changes: [Change; 8] = [
        |policy| policy.key_bits = KvBits::Four,
        |policy| policy.value_bits = KvBits::Float,
        |policy| policy.group_size = 32,
        |policy| policy.quantize_from = 1,
        |policy| policy.slack = 33,
        |policy| policy.growth_step = 255,
        |policy| policy.snapshot_every = 0,
        |policy| policy.snapshot_bytes = 0,
    ];
    for change in changes {
        let mut policy = saved;
        change(&mut policy);
        assert!(refusal(&model, &policy, &path).contains("kv policy"), "{policy:?}");
    }
    let mut impossible = saved;
    impossible.group_size = 7;
    let refused = Session::load_with_policy(&model, &impossible, &path);
    assert!(matches!(refused, Err(Error::Argument { name: "kv.group_size", .. })));
}

#[test]
fn another_version_or_format() {
    let model = model();
    let policy = KvPolicy::default();
    let (_dir, path) = place();
    session_of(&model, &policy, &prompt(20)).save(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        refusal(&model, &policy, &path)
    };
    // Said whatever the rest may be: another version may end in another way.
    let newer = with_metadata(&bytes, "version", "2");
    assert_eq!(refused(&newer), "is of version 2; this program reads 1");
    let other = with_metadata(&bytes, "format", "mlx-lm prompt cache");
    assert!(refused(&other).contains("some other safetensors file"));
    let weights = fs::read(format!("{DIR}/model.safetensors")).unwrap();
    let reason = refused(&weights);
    assert!(reason.contains("is not a saved session"), "{reason}");
    assert!(refused(b"not a safetensors file").contains("no safetensors file"));
}

#[test]
fn activations_of_another_type() {
    let model = model();
    let policy = KvPolicy::default();
    let (_dir, path) = place();
    session_of(&model, &policy, &prompt(20)).save(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let here = header(&bytes)["__metadata__"]["activations"].as_str().unwrap().to_owned();
    let other = if here == "BF16" { "F32" } else { "BF16" };
    fs::write(&path, resealed(with_metadata(&bytes, "activations", other))).unwrap();
    let reason = refusal(&model, &policy, &path);
    assert!(reason.contains(&format!("activations in {other}")), "{reason}");
}

#[test]
fn no_file_at_all() {
    let (dir, path) = place();
    let model = model();
    match Session::load(&model, &path) {
        Err(Error::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
    assert!(refusal(&model, &KvPolicy::default(), dir.path()).contains("regular file"));
    fs::write(&path, "").unwrap();
    assert!(refusal(&model, &KvPolicy::default(), &path).contains("empty"));
}
