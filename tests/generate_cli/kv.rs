//! The cache's options.

use std::fs;

use super::{BUNDLED, endless, ids, json, keys, known_answer, run, str};

#[test]
fn the_cache_is_described_in_json() {
    // Two full layers of two heads of 64, keys and values: 4 · 2 · 64 numbers for each token.
    let described: &[(&[&str], u64)] = &[
        (&[], 4 * 2 * 64 * 4),
        (&["--kv-bits", "8"], 4 * 2 * (64 + 8)),
        (&["--kv-bits", "4"], 4 * 2 * (32 + 8)),
        (&["--kv-bits", "8", "--kv-group-size", "32"], 4 * 2 * (64 + 16)),
        (&["--kv-bits", "8", "--kv-value-bits", "4"], 2 * 2 * (64 + 8) + 2 * 2 * (32 + 8)),
        (&["--kv-key-bits", "4"], 2 * 2 * (32 + 8) + 2 * 2 * 64 * 4),
        (&["--kv-bits", "4", "--kv-value-bits", "float"], 2 * 2 * (32 + 8) + 2 * 2 * 64 * 4),
    ];
    let mut totals = Vec::new();
    for (args, bytes_per_token) in described {
        let answer = json(args);
        let kv = &answer["kv"];
        assert_eq!(keys(kv), ["bytes", "bytes_per_token", "cached_prompt_tokens"]);
        assert_eq!(kv["bytes_per_token"], *bytes_per_token, "{args:?}");
        assert_eq!(kv["cached_prompt_tokens"], 0);
        totals.push(kv["bytes"].as_u64().unwrap());
    }
    // 84 + 84 tokens are one step of 256 rows; the rest is the sliding layers'.
    for ((args, per_token), bytes) in described.iter().zip(&totals) {
        let rest = bytes - 256 * per_token;
        assert_eq!(rest, totals[0] - 256 * described[0].1, "{args:?}");
    }
}

#[test]
fn answers_stay_right_with_a_quantized_cache() {
    for args in [
        &["--kv-bits", "8"] as &[&str],
        &["--kv-bits", "4"],
        &["--kv-bits", "8", "--kv-start", "100"],
        &["--kv-key-bits", "8", "--kv-value-bits", "4", "--prefill-chunk", "3"],
    ] {
        assert_eq!(json(args)["text"], known_answer("Dangling References"), "{args:?}");
    }
}

#[test]
fn a_late_start_is_float_until_then() {
    let tokens = |args: &[&str]| ids(&json(args), "tokens");
    assert_eq!(tokens(&["--kv-bits", "4", "--kv-start", "100000"]), tokens(&[]));
}

#[test]
fn policies_that_make_no_sense_are_refused() {
    let refused: &[(&[&str], i32, &str)] = &[
        (&["--kv-bits", "5"], 2, "4, 8, float"),
        (&["--kv-bits", "16"], 2, "4, 8, float"),
        (&["--kv-start", "10"], 2, "--kv-bits"),
        (&["--kv-group-size", "64"], 2, "--kv-bits"),
        (&["--kv-bits", "8", "--kv-group-size", "48"], 1, "kv.group_size"),
        (&["--kv-bits", "8", "--kv-group-size", "128"], 1, "head_dim"),
    ];
    for (args, code, named) in refused {
        let output = run(args);
        assert_eq!((output.code, output.stdout.as_str()), (Some(*code), ""), "{output:?}");
        assert!(output.stderr.starts_with("error:"), "{output:?}");
        assert!(output.stderr.contains(named), "{args:?}: {output:?}");
    }
}

#[test]
fn a_prompt_cache_is_made_and_used_and_changes_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    let ask = |args: &[&str]| json(&[args, &["--prompt-cache", str(&path)]].concat());
    let plain = json(&[]);
    let first = ask(&[]);
    assert_eq!(first["tokens"], plain["tokens"]);
    assert_eq!(first["kv"]["cached_prompt_tokens"], 0);
    assert_eq!(first["kv"]["saved_s"], 0.0);
    assert!(path.exists());
    let prompt = ids(&plain, "prompt_tokens").len();
    for _ in 0..2 {
        let again = ask(&[]);
        assert_eq!(again["tokens"], plain["tokens"]);
        assert_eq!(again["kv"]["cached_prompt_tokens"], prompt - 1);
    }
    // Another question shares what comes before it, and then the file is of both.
    let other = ask(&["--prompt", "Explain Macros."]);
    assert_eq!(other["text"], known_answer("Macros"));
    let shared = other["kv"]["cached_prompt_tokens"].as_u64().unwrap();
    assert!((10..prompt as u64).contains(&shared), "{shared}");
    assert_eq!(ask(&[])["tokens"], plain["tokens"]);
    // The line of figures says so.
    let output = run(&["--prompt-cache", str(&path)]);
    assert!(output.stderr.contains(&format!("{} of them cached", prompt - 1)), "{output:?}");
    assert!(output.stderr.contains("s saved"), "{output:?}");
}

#[test]
fn a_prompt_cache_may_be_quantized_and_belongs_to_its_policy_and_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    let with = ["--prompt-cache", str(&path), "--kv-bits", "4", "--kv-start", "20"];
    let first = json(&with);
    let again = json(&with);
    assert_eq!(again["tokens"], first["tokens"]);
    assert!(again["kv"]["cached_prompt_tokens"].as_u64() > Some(20));

    let before = fs::read(&path).unwrap();
    let other = endless();
    for args in [
        &["--prompt-cache", str(&path)] as &[&str],
        &["--prompt-cache", str(&path), "--kv-bits", "8"],
        &[
            &with as &[_],
            &["--model", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gpt-oss-tiny-f32")],
        ]
        .concat(),
    ] {
        let output = run(args);
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
        assert!(output.stderr.contains(str(&path)), "{output:?}");
        assert!(output.stderr.contains("hint: "), "{output:?}");
        assert_eq!(fs::read(&path).unwrap(), before, "a file that is refused is left alone");
    }
    // The same weights under another stop token are the same model.
    let args = [&with as &[_], &["--model", str(other.path()), "--max-tokens", "5"]].concat();
    assert!(json(&args)["kv"]["cached_prompt_tokens"].as_u64() > Some(20));
}

#[test]
fn a_prompt_cache_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let damaged = dir.path().join("damaged");
    fs::write(&damaged, b"no header").unwrap();
    let inside = damaged.join("file");
    for path in [dir.path(), &damaged, &inside] {
        let output = run(&["--prompt-cache", str(path)]);
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
        assert!(output.stderr.starts_with("error:"), "{output:?}");
        assert!(output.stderr.contains(str(path)), "{output:?}");
    }
    // Where the folder is missing, that is known only when the answer is there.
    let nowhere = dir.path().join("missing").join("cache");
    let output = run(&["--prompt-cache", str(&nowhere)]);
    assert_eq!(output.code, Some(1));
    assert_eq!(output.stdout, known_answer("Dangling References") + "\n");
    assert!(output.stderr.contains(str(&nowhere)), "{output:?}");
}

#[test]
fn a_context_limit_bounds_prompt_and_answer() {
    let answer = json(&["--max-context", "100"]);
    let tokens = ids(&answer, "prompt_tokens").len() + ids(&answer, "tokens").len();
    assert_eq!((tokens, answer["finish_reason"].as_str()), (100, Some("length")));
    for (context, named) in [("0", "max_context"), ("131073", "max_context"), ("20", "context")] {
        let output = run(&["--max-context", context]);
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
        assert!(output.stderr.contains(named), "{output:?}");
    }
}

#[test]
fn memory_is_a_table_made_without_loading_the_model() {
    let output = run(&["--memory"]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{output:?}");
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines.len(), 6, "{output:?}");
    for (line, context) in lines[1..5].iter().zip(["4096", "8192", "32768", "131072"]) {
        assert!(line.trim_start().starts_with(context) && line.contains(" GB"), "{line}");
    }
    assert!(lines[5].contains("available") && lines[5].contains("largest context"));

    let table = json(&["--memory", "--max-context", "6000", "--kv-bits", "8"]);
    assert_eq!(keys(&table), ["model", "available", "largest_context", "contexts"]);
    let rows = table["contexts"].as_array().unwrap();
    let contexts: Vec<_> = rows.iter().map(|row| row["context"].as_u64().unwrap()).collect();
    assert_eq!(contexts, [4096, 6000]);
    let float = json(&["--memory", "--max-context", "6000"]);
    let cache = |table: &serde_json::Value| table["contexts"][1]["cache"].as_u64().unwrap();
    // 6,144 rows of 2,048 bytes in float, of 576 in 8 bits.
    assert_eq!(cache(&float) - cache(&table), 6144 * (2048 - 576));

    // The weights' bytes are not looked at: a hole does.
    let dir = super::copy();
    let path = dir.path().join("model.safetensors");
    let len = fs::metadata(&path).unwrap().len();
    let head = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(head[..8].try_into().unwrap());
    fs::write(&path, &head[..header as usize]).unwrap();
    fs::File::options().append(true).open(&path).unwrap().set_len(len).unwrap();
    let of_hole = json(&["--memory", "--model", str(dir.path())]);
    assert_eq!(of_hole["contexts"], json(&["--memory", "--model", BUNDLED])["contexts"]);
    assert_eq!(run(&["--memory", "--model", "missing"]).code, Some(1));
}
