//! Sessions on disk: what is saved goes on as if it had never been away, what does not fit or is
//! damaged is refused with the reason, and no accident leaves half a file.

mod continued;
mod damaged;
#[cfg(unix)]
mod disk;
mod refused;

use std::path::{Path, PathBuf};

use gpt_oss_mlx::{Error, GenerateOptions, KvBits, KvPolicy, LoadOptions, Model, Session};
use tempfile::TempDir;

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

fn model() -> Model {
    Model::load(DIR, &LoadOptions::default()).unwrap()
}

/// A folder and a path in it at which there is nothing.
fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.safetensors");
    (dir, path)
}

fn prompt(len: usize) -> Vec<u32> {
    (0..len).map(|i| (i * 7 + i / 13) as u32 % 2000).collect()
}

/// The greedy tokens after a prompt, and how many tokens of the prompt were cached.
fn tokens(model: &Model, session: &mut Session, prompt: &[u32], n: usize) -> (Vec<u32>, usize) {
    let mut options = GenerateOptions::default();
    options.max_tokens = n;
    options.stop_ids = Some(vec![]);
    options.prefill_chunk = 100;
    let mut generation = model.generate_in(session, prompt, &options).unwrap();
    let ids = generation.by_ref().map(|token| token.unwrap().id).collect();
    (ids, generation.timings().cached_prompt_tokens)
}

/// A session that holds exactly these tokens.
fn session_of(model: &Model, policy: &KvPolicy, ids: &[u32]) -> Session {
    let mut session = Session::with_policy(model, policy).unwrap();
    if !ids.is_empty() {
        tokens(model, &mut session, ids, 1);
    }
    assert_eq!(session.ids(), ids);
    session
}

/// The reason for which a file is refused.
fn refusal(model: &Model, policy: &KvPolicy, path: &Path) -> String {
    match Session::load_with_policy(model, policy, path) {
        Err(Error::CacheFile { path: named, reason }) if named == path => reason,
        other => panic!("{other:?}"),
    }
}

/// Float, 8 bits, 4 bits, and the two apart.
fn policies() -> [KvPolicy; 5] {
    let mut mixed = KvPolicy::quantized(KvBits::Eight);
    mixed.value_bits = KvBits::Four;
    mixed.group_size = 32;
    let mut keys_only = KvPolicy::quantized(KvBits::Four);
    keys_only.value_bits = KvBits::Float;
    [
        KvPolicy::default(),
        KvPolicy::quantized(KvBits::Eight),
        KvPolicy::quantized(KvBits::Four),
        mixed,
        keys_only,
    ]
}
