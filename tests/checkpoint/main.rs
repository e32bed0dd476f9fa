//! Opening checkpoints: what a sound one gives, and that every kind of damage is refused with an
//! error that names the file and the reason, before any tensor data is read.

#[path = "../common/mod.rs"]
mod common;
mod damaged_files;
mod damaged_indexes;
mod folders;
mod sound;

use std::fs;
use std::path::Path;

use common::safetensors::{place, spec, write_index, write_sparse};
use gpt_oss_mlx::Error;
use gpt_oss_mlx::checkpoint::Checkpoint;
use safetensors::Dtype;
use tempfile::TempDir;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// A folder with `model.safetensors` of these bytes.
fn folder(bytes: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(SINGLE), bytes).unwrap();
    dir
}

/// A folder with an index, and files that each hold one-byte tensors of the given names.
fn shards(index: &[(&str, &str)], files: &[(&str, &[&str])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_index(dir.path(), index.iter().copied());
    for (file, names) in files {
        let specs: Vec<_> = names.iter().map(|name| spec(name, Dtype::U8, &[1])).collect();
        write_sparse(&dir.path().join(file), &place(&specs));
    }
    dir
}

/// Asserts that opening fails with a `Checkpoint` error about `file`; returns its reason.
#[track_caller]
fn refused(dir: &Path, file: &str) -> String {
    match Checkpoint::open(dir) {
        Err(Error::Checkpoint { path, reason }) => {
            assert_eq!(path, dir.join(file), "{reason}");
            reason
        }
        other => panic!("expected a checkpoint error, got {other:?}"),
    }
}

/// Asserts that opening fails with an `Io` error about `path`; returns the error.
#[track_caller]
fn unreadable(dir: &Path, path: &Path) -> std::io::Error {
    match Checkpoint::open(dir) {
        Err(Error::Io { path: named, source, .. }) => {
            assert_eq!(named, path, "{source}");
            source
        }
        other => panic!("expected an input or output error, got {other:?}"),
    }
}
