//! The cache's options.

use super::{ids, json, keys, known_answer, run};

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
