//! Text to ids and back: known ids, round trips, streams, damaged files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpt_oss_mlx::Error;
use gpt_oss_mlx::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(Path::new(MODEL)).unwrap()
}

fn description() -> Value {
    let text = fs::read_to_string(Path::new(MODEL).join("tokenizer.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Loads a description after `change`, and returns the reason of the error.
fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut value = description();
    change(&mut value);
    let path = PathBuf::from("some/tokenizer.json");
    match Tokenizer::from_json(&path, &value.to_string()) {
        Err(Error::Tokenizer { path: named, reason, .. }) => {
            assert_eq!(named, path);
            reason
        }
        other => panic!("{other:?}"),
    }
}

/// All pieces of a stream, the last from `finish`.
fn pieces(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut stream = tokenizer.stream(skip_special);
    let mut pieces: Vec<_> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish());
    assert!(!stream.is_incomplete());
    pieces
}

/// Text that is hard on byte-level tokenizers.
fn text() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        any::<char>().prop_map(String::from),
        "[ -~]{0,8}",
        "\\PC{0,4}",
        "[ \t\r\n\u{a0}\u{3000}]{1,6}",
        prop::sample::select(vec![
            "🦀",
            "👩‍👩‍👧‍👦",
            "🏳️‍🌈",
            "🇨🇭",
            "漢字",
            "かな",
            "한국어",
            "e\u{301}",
            "n\u{303}\u{323}",
            "นี้",
            "नमस्ते",
            "مرحبا",
            "\u{202e}",
            "\u{feff}",
            "\u{fffd}",
            "\0",
            "’",
            "ß",
            "𝔘",
            "\u{10ffff}",
            "<|end|>",
            "<|start|>assistant",
            "<|",
            "|>",
            "Dangling References",
        ])
        .prop_map(String::from),
    ];
    prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat())
}

/// Ids as made by the Python package `tokenizers` 0.23 from the same file.
#[test]
fn known_ids() {
    let tokenizer = tokenizer();
    let cases: [(&str, &[u32]); 7] = [
        ("", &[]),
        ("Hello, world!", &[1441, 11, 573, 545, 0]),
        ("Explain Dangling References.", &[471, 395, 1743, 1083, 13]),
        (
            "  two  spaces\n\nand\ttabs ",
            &[220, 1133, 220, 600, 64, 439, 1013, 453, 197, 83, 399, 82, 220],
        ),
        ("naïve café", &[1250, 127, 107, 396, 295, 64, 69, 127, 102]),
        (
            "🦀 Rust 漢字 e\u{301}",
            &[172, 253, 99, 222, 365, 220, 162, 120, 95, 161, 255, 245, 391, 136, 223],
        ),
        (
            "don't 1234567 x=y;",
            &[67, 282, 6, 83, 220, 16, 17, 18, 19, 20, 21, 22, 220, 87, 28, 88, 26],
        ),
    ];
    for (text, ids) in cases {
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(ids, false).unwrap(), text);
    }
}

#[test]
fn special_tokens_only_where_asked_for() {
    let tokenizer = tokenizer();
    let text = "<|start|>user<|message|>Hi<|end|>";
    let control = tokenizer.encode(text, true).unwrap();
    assert_eq!(control, [2044, 302, 2046, 39, 72, 2045]);
    assert_eq!(tokenizer.decode(&control, false).unwrap(), text);
    assert_eq!(tokenizer.decode(&control, true).unwrap(), "userHi");

    let plain = tokenizer.encode(text, false).unwrap();
    assert_eq!(plain, [256, 278, 257, 302, 256, 281, 257, 39, 72, 256, 294, 257]);
    assert!(plain.iter().all(|&id| !tokenizer.is_special(id)));
    assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);
}

#[test]
fn tokens_by_name_and_id() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.vocab_size(), 2048);
    assert_eq!(tokenizer.token_id("<|return|>"), Some(2041));
    assert_eq!(tokenizer.token_id("<|nothing|>"), None);
    assert!(tokenizer.is_special(2041) && !tokenizer.is_special(302));
    assert!(!tokenizer.is_special(2048) && !tokenizer.is_special(u32::MAX));
    assert_eq!(tokenizer.token_bytes(2041).unwrap(), b"<|return|>");
    assert_eq!(tokenizer.token_bytes(172).unwrap(), [0xF0]);
    assert_eq!(tokenizer.special_tokens().len(), 9);
}

/// All three models of the project have the same vocabulary.
#[test]
fn fixtures_load() {
    for folder in ["gpt-oss-tiny-f32", "gpt-oss-tiny-openai"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        assert_eq!(tokenizer.encode("Hello, world!", false).unwrap(), [1441, 11, 573, 545, 0]);
    }
}

#[test]
fn ids_outside_the_vocabulary() {
    let tokenizer = tokenizer();
    for id in [2048, 5000, u32::MAX] {
        for error in [
            tokenizer.decode(&[64, id], false).unwrap_err(),
            tokenizer.stream(true).push(id).unwrap_err(),
            tokenizer.token_bytes(id).unwrap_err(),
        ] {
            let message = error.to_string();
            assert!(message.contains(&format!("id {id} ")), "{message}");
            assert!(message.contains("vocabulary of 2048"), "{message}");
        }
    }
    // An error leaves a stream as it was.
    let mut stream = tokenizer.stream(false);
    let crab = tokenizer.encode("🦀", false).unwrap();
    let (last, first) = crab.split_last().unwrap();
    first.iter().for_each(|&id| assert_eq!(stream.push(id).unwrap(), ""));
    stream.push(4000).unwrap_err();
    assert_eq!(stream.push(*last).unwrap(), "🦀");
}

#[test]
fn padding_ids_decode_to_nothing() {
    let tokenizer = tokenizer().padded_to(2112);
    assert_eq!(tokenizer.vocab_size(), 2048);
    assert_eq!(tokenizer.decode(&[64, 2048, 2111, 65], false).unwrap(), "ab");
    assert_eq!(tokenizer.stream(false).push(2111).unwrap(), "");
    let message = tokenizer.decode(&[2112], false).unwrap_err().to_string();
    assert!(message.contains("id 2112 is outside the vocabulary of 2112"), "{message}");
    // A model with fewer logits than tokens does not take any away.
    assert_eq!(tokenizer.padded_to(10).decode(&[2041], false).unwrap(), "<|return|>");
}

#[test]
fn half_characters_are_held_back() {
    let tokenizer = tokenizer();
    // One token for each byte of the crab.
    assert_eq!(
        pieces(&tokenizer, &[172, 253, 99, 222, 365], false),
        ["", "", "", "🦀", " Rust", ""]
    );
    // Cut off, it is one replacement character, and only at the end.
    assert_eq!(pieces(&tokenizer, &[172, 253, 99], false), ["", "", "", "\u{fffd}"]);
    // What can never become a character is replaced at once.
    assert_eq!(pieces(&tokenizer, &[172, 64], false), ["", "\u{fffd}a", ""]);
    assert_eq!(pieces(&tokenizer, &[99, 64], false), ["\u{fffd}", "a", ""]);
    // A special token that is skipped does not come between the halves, one that is shown does.
    assert_eq!(pieces(&tokenizer, &[172, 253, 2045, 99, 222], true), ["", "", "", "", "🦀", ""]);
    assert_eq!(
        pieces(&tokenizer, &[172, 253, 2045, 99], false),
        ["", "", "\u{fffd}<|end|>", "\u{fffd}", ""]
    );
}

/// A stream that decoded its past again for each token would not come to an end here.
#[test]
fn long_streams_cost_the_same_for_each_token() {
    let tokenizer = tokenizer();
    let begun = Instant::now();
    let mut stream = tokenizer.stream(false);
    let mut length = 0;
    for i in 0..2_000_000_u32 {
        length += stream.push(i % 2048).unwrap().len();
    }
    assert!(length > 2_000_000);
    assert!(begun.elapsed() < Duration::from_secs(60));
}

/// Runs that are hard on regular expressions and on merging.
#[test]
fn long_runs_of_one_character() {
    let tokenizer = tokenizer();
    for piece in [" ", "a", "\n", "\t ", "1", "!", "é", "漢", "🦀", "a ", " \u{301}"] {
        let text = piece.repeat(50_000);
        let ids = tokenizer.encode(&text, false).unwrap();
        assert!(tokenizer.decode(&ids, false).unwrap() == text, "{piece:?}");
        let ids = tokenizer.encode(&format!("{text}x"), true).unwrap();
        assert!(tokenizer.decode(&ids, false).unwrap() == format!("{text}x"), "{piece:?}");
    }
}

#[test]
fn settings_that_cut_or_pad_are_ignored() {
    let mut value = description();
    value["truncation"] =
        json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    value["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 2040, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    let changed = Tokenizer::from_json(Path::new("t"), &value.to_string()).unwrap();
    assert_eq!(changed.encode("Hello, world!", true).unwrap(), [1441, 11, 573, 545, 0]);
}

#[test]
fn a_file_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Tokenizer::from_dir(dir.path()).unwrap_err();
    assert!(missing.to_string().contains("tokenizer.json"), "{missing}");
    assert!(matches!(missing, Error::Tokenizer { source: Some(_), .. }));

    let path = dir.path().join("tokenizer.json");
    fs::create_dir(&path).unwrap();
    assert!(matches!(Tokenizer::from_dir(dir.path()), Err(Error::Tokenizer { .. })));
    fs::remove_dir(&path).unwrap();

    for bytes in [&b""[..], b"null", b"[]", b"{}", b"\xff\xfe", b"{\"model\":", b"\0\0\0\0"] {
        fs::write(&path, bytes).unwrap();
        let error = Tokenizer::from_dir(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Tokenizer { .. }), "{error:?}");
    }

    // Larger than any tokenizer; a sparse file, so that the disk does not notice.
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("limit"), "{source}");
}

#[cfg(unix)]
#[test]
fn a_device_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("tokenizer.json")).unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("not a regular file"), "{source}");
}

#[test]
fn truncated_anywhere() {
    let text = fs::read_to_string(Path::new(MODEL).join("tokenizer.json")).unwrap();
    for part in 0..60 {
        let end = text.len() * part / 60;
        let end = (0..=end).rev().find(|&i| text.is_char_boundary(i)).unwrap();
        let cut = Tokenizer::from_json(Path::new("cut"), &text[..end]);
        assert!(matches!(cut, Err(Error::Tokenizer { .. })), "cut at {end}: {cut:?}");
    }
}

#[test]
fn descriptions_that_would_give_wrong_ids() {
    let reason = refused(|v| v["model"]["dropout"] = json!(0.5));
    assert!(reason.contains("dropout"), "{reason}");
    let reason = refused(|v| v["decoder"] = Value::Null);
    assert!(reason.contains("ByteLevel"), "{reason}");
    let reason = refused(|v| v["decoder"] = json!({"type": "Fuse"}));
    assert!(reason.contains("ByteLevel"), "{reason}");
    let reason = refused(|v| {
        v["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
    });
    assert!(reason.contains("BPE"), "{reason}");
    let reason = refused(|v| {
        v["model"]["merges"] = json!([]);
        v["model"]["vocab"] = json!({"a": 0, "b": 1});
    });
    assert!(reason.contains("no token for the byte 0x00"), "{reason}");
    // The library would quietly number this token itself.
    let reason = refused(|v| v["added_tokens"][8]["id"] = json!(5000));
    assert!(
        reason.contains("`<|call|>` declares the id 5000") && reason.contains("2047"),
        "{reason}"
    );
    let reason = refused(|v| v["added_tokens"][0]["id"] = json!(-1));
    assert!(reason.contains("not a tokenizer"), "{reason}");
    let reason = refused(|v| v["model"]["vocab"]["!"] = json!(u32::MAX));
    assert!(reason.contains("4294967295 is above the limit"), "{reason}");
    let reason = refused(|v| v["model"]["merges"][0] = json!(["nowhere", "to be found"]));
    assert!(reason.contains("not a tokenizer"), "{reason}");
    let reason =
        refused(|v| v["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("("));
    assert!(reason.contains("not a tokenizer"), "{reason}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn text_survives_the_round_trip(text in text()) {
        let tokenizer = tokenizer_once();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.clone());
        prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), text.clone());
        let ids = tokenizer.encode(&text, true).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }

    #[test]
    fn a_stream_of_text_equals_the_whole(text in text(), special: bool) {
        let tokenizer = tokenizer_once();
        let ids = tokenizer.encode(&text, special).unwrap();
        let pieces = pieces(tokenizer, &ids, false);
        prop_assert_eq!(pieces.concat(), text.clone());
        // Nothing was left over, and no piece had a replacement that the text has not.
        prop_assert_eq!(pieces.last().map(String::as_str), Some(""));
        let replaced = |s: &str| s.matches('\u{fffd}').count();
        prop_assert_eq!(pieces.iter().map(|p| replaced(p)).sum::<usize>(), replaced(&text));
        // What is held back is never more than a part of one character.
        let mut shown = 0;
        for (i, piece) in pieces.iter().enumerate().take(ids.len()) {
            shown += piece.len();
            let whole: usize =
                ids[..=i].iter().map(|&id| tokenizer.token_bytes(id).unwrap().len()).sum();
            prop_assert!(whole - shown < 4);
        }
    }

    #[test]
    fn a_stream_of_any_ids_equals_the_whole(
        ids in prop::collection::vec(prop_oneof![0_u32..2112, 2036_u32..2050, 120_u32..260], 0..200),
        skip_special: bool,
    ) {
        let tokenizer = tokenizer_once().clone().padded_to(2112);
        let whole = tokenizer.decode(&ids, skip_special).unwrap();
        prop_assert_eq!(pieces(&tokenizer, &ids, skip_special).concat(), whole);
    }
}

fn tokenizer_once() -> &'static Tokenizer {
    static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    TOKENIZER.get_or_init(tokenizer)
}
