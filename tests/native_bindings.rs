//! The checked-in bindings fit the headers of the mlx-c that was built.

use std::collections::BTreeSet;
use std::path::Path;

#[allow(dead_code)]
#[path = "../vendor/mlx-sys/build/fingerprint.rs"]
mod fingerprint;

const BINDINGS: &str = include_str!("../vendor/mlx-sys/src/bindings.rs");

/// The source tree that this build compiled.
const MLX_C: &str = env!("GPT_OSS_MLX_MLX_C");

#[test]
fn bindings_were_generated_from_these_headers() {
    let found = fingerprint::of_headers(Path::new(MLX_C)).unwrap();
    let recorded = BINDINGS
        .lines()
        .find_map(|line| line.strip_prefix("// mlx-c ")?.split_once(", headers "))
        .expect("the second line of bindings.rs names the headers");
    assert_eq!(
        recorded.1, found,
        "the headers of mlx-c changed; `cargo xtask bindings` writes the bindings anew"
    );
}

#[test]
fn bindings_declare_the_functions_of_the_headers() {
    let mut in_headers = BTreeSet::new();
    for header in fingerprint::mlx_c_headers(Path::new(MLX_C)).unwrap() {
        let text = without_comments(&std::fs::read_to_string(header).unwrap());
        in_headers.extend(functions(&text, "mlx_"));
        in_headers.extend(functions(&text, "_mlx_"));
    }
    let in_bindings: BTreeSet<String> = BINDINGS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub fn ")?.split_once('('))
        .map(|(name, _)| name.to_owned())
        .collect();
    assert!(in_bindings.len() > 600, "only {} functions were found", in_bindings.len());
    let missing: Vec<_> = in_headers.difference(&in_bindings).collect();
    let unknown: Vec<_> = in_bindings.difference(&in_headers).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "missing {missing:?}, unknown {unknown:?}");
}

#[test]
fn half_precision_types_are_what_mlx_rs_expects() {
    assert_eq!(mlx_sys::float16_t::default().0, 0_u16);
    let bits: mlx_sys::bfloat16_t = 0x3f80_u16;
    assert_eq!(bits, 0x3f80);
}

/// Its default generator asks a clock of macOS, which the drop-in has elsewhere.
#[test]
fn random_numbers_of_mlx_rs_link_and_seed_themselves() {
    let sample = mlx_rs::random::uniform::<_, f32>(0.0, 1.0, &[8], None).unwrap();
    let values: &[f32] = sample.as_slice();
    assert!(values.iter().all(|value| (0.0..1.0).contains(value)), "{values:?}");
}

fn without_comments(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some((before, after)) = rest.split_once("/*") {
        kept.push_str(before);
        rest = after.split_once("*/").map_or("", |(_, after)| after);
    }
    kept.push_str(rest);
    kept.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Names with `prefix` that are followed by an opening parenthesis: in the
/// headers of mlx-c these are declarations, function pointers have `(*name)`.
fn functions(text: &str, prefix: &str) -> Vec<String> {
    let word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let mut names = Vec::new();
    for part in text.split_inclusive('(') {
        let before = part.trim_end_matches('(').trim_end();
        let start = before.rfind(|character| !word(character)).map_or(0, |at| at + 1);
        let name = &before[start..];
        if part.ends_with('(') && name.starts_with(prefix) {
            names.push(name.to_owned());
        }
    }
    names
}
