//! Writes, once, the vocabulary of GPT-OSS in two forms: `o200k_base.tiktoken`, from which
//! openai-harmony makes its encoding, and `tokenizer.json`, from which this project makes its own.
//! Both come from the copy of o200k_base inside the crate tiktoken-rs. openai-harmony compares
//! what it reads with the SHA-256 of the file that OpenAI publishes.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

/// Tokens of o200k_base that stand for text; the special ones follow.
const TEXT_TOKENS: u32 = 199_998;
/// One more than the highest id that GPT-OSS's tokenizer.json names.
const TOKENS: u32 = 200_019;

/// How o200k_base cuts a text into words.
const PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var("OUT_DIR").unwrap());
    let bpe = tiktoken_rs::o200k_base().unwrap();
    let tokens: Vec<Vec<u8>> = bpe._decode_native_and_split((0..TEXT_TOKENS).collect()).collect();
    assert_eq!(tokens.len(), TEXT_TOKENS as usize);

    let mut vocabulary = String::new();
    for (id, token) in tokens.iter().enumerate() {
        writeln!(vocabulary, "{} {id}", BASE64_STANDARD.encode(token)).unwrap();
    }
    std::fs::write(out.join("o200k_base.tiktoken"), vocabulary).unwrap();
    let tokenizer = serde_json::to_vec(&tokenizer(&tokens)).unwrap();
    std::fs::write(out.join("tokenizer.json"), tokenizer).unwrap();
    // Where openai-harmony looks for the vocabulary; Cargo sets it for the tests' processes too.
    println!("cargo:rustc-env=TIKTOKEN_ENCODINGS_BASE={}", out.display());
}

fn tokenizer(tokens: &[Vec<u8>]) -> Value {
    let alphabet = alphabet();
    let spell = |bytes: &[u8]| bytes.iter().map(|&b| alphabet[usize::from(b)]).collect::<String>();
    let ids: HashMap<&[u8], usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_slice(), id)).collect();
    let vocabulary: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (spell(token), id.into())).collect();
    let merges: Vec<Value> = tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| token.len() > 1)
        .map(|(id, token)| {
            let (left, right) = halves(token, id, &ids);
            json!([spell(left), spell(right)])
        })
        .collect();
    let special: Vec<Value> = (TEXT_TOKENS..TOKENS)
        .map(|id| {
            json!({
                "id": id, "content": special_name(id), "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0",
        "added_tokens": special,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {
                "type": "Split", "pattern": {"Regex": PATTERN},
                "behavior": "Isolated", "invert": false,
            },
            {
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": false,
            },
        ]},
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true,
        },
        "model": {
            "type": "BPE", "ignore_merges": true, "vocab": vocabulary, "merges": merges,
        },
    })
}

/// The names in GPT-OSS's tokenizer.json.
fn special_name(id: u32) -> String {
    match id {
        199_998 => "<|startoftext|>".into(),
        199_999 => "<|endoftext|>".into(),
        200_002 => "<|return|>".into(),
        200_003 => "<|constrain|>".into(),
        200_005 => "<|channel|>".into(),
        200_006 => "<|start|>".into(),
        200_007 => "<|end|>".into(),
        200_008 => "<|message|>".into(),
        200_012 => "<|call|>".into(),
        200_018 => "<|endofprompt|>".into(),
        _ => format!("<|reserved_{id}|>"),
    }
}

/// The two tokens that are merged into token `id`: what its bytes become when only the tokens
/// before it exist.
fn halves<'a>(token: &'a [u8], id: usize, ids: &HashMap<&[u8], usize>) -> (&'a [u8], &'a [u8]) {
    let mut borders: Vec<usize> = (0..=token.len()).collect();
    while borders.len() > 3 {
        let merged = borders
            .windows(3)
            .enumerate()
            .filter_map(|(i, w)| Some((*ids.get(&token[w[0]..w[2]])?, i + 1)))
            .filter(|&(merged, _)| merged < id)
            .min();
        let (_, border) = merged.expect("every token is made from two before it");
        borders.remove(border);
    }
    token.split_at(borders[1])
}

/// Byte-level BPE spells each byte as a printable character: itself where it is printable in
/// Latin-1, else the next free one from U+0100 on.
fn alphabet() -> Vec<char> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut free = '\u{100}'..;
    let shown = |byte| if printable(byte) { char::from(byte) } else { free.next().unwrap() };
    (u8::MIN..=u8::MAX).map(shown).collect()
}
