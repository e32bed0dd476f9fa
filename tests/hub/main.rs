//! Models by name, from a Hub on this machine that misbehaves on demand.

#![cfg(unix)]

mod cache;
mod cli;
mod damaged;
#[path = "../common/program.rs"]
#[allow(dead_code)]
mod example;
mod refused;
mod resumed;
mod server;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpt_oss_mlx::hub::{HubOptions, HubProblem, HubProgress, ModelRef};
use gpt_oss_mlx::{Error, Result};
use tempfile::TempDir;

use server::{COMMIT, NAME, Server};

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

/// The bundled model's files, in the order in which they are downloaded.
const FILES: [&str; 7] = [
    "config.json",
    "model.safetensors.index.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
];

/// The largest of them.
const WEIGHTS: &str = "model.safetensors";

/// A Hub with the bundled model, and an empty cache.
fn hub() -> (Server, TempDir, HubOptions) {
    let server = Server::of(Path::new(BUNDLED));
    let dir = tempfile::tempdir().unwrap();
    let options = options(&server, dir.path());
    (server, dir, options)
}

/// Not patient, as the server answers at once if it ever does.
fn options(server: &Server, cache: &Path) -> HubOptions {
    let mut options = HubOptions::new(cache);
    options.endpoint = server.url();
    options.backoff = Duration::from_millis(1);
    options.timeout = Duration::from_secs(10);
    options
}

fn resolve(options: &HubOptions) -> Result<PathBuf> {
    ModelRef::parse(NAME).unwrap().resolve(options, |_| ())
}

/// What is wrong, after a look at the texts that people see.
fn problem(result: Result<PathBuf>) -> HubProblem {
    match result {
        Err(error @ Error::Hub(_)) => {
            assert!(error.to_string().contains(NAME), "{error}");
            assert!(!error.hint().is_empty());
            let Error::Hub(error) = error else { unreachable!() };
            error.problem
        }
        other => panic!("{other:?}"),
    }
}

/// The folder that a resolved model is in.
fn snapshot(cache: &Path) -> PathBuf {
    repository(cache).join("snapshots").join(COMMIT)
}

fn repository(cache: &Path) -> PathBuf {
    cache.join("models--someone--a-model")
}

fn blobs(cache: &Path) -> PathBuf {
    repository(cache).join("blobs")
}

/// All paths below a folder, links not followed.
fn tree(folder: &Path) -> BTreeSet<PathBuf> {
    let mut paths = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                paths.insert(entry.path());
            }
        }
    }
    paths
}

/// Whether a snapshot is the repository, byte for byte.
fn assert_complete(server: &Server, cache: &Path) {
    let mut names: Vec<String> = fs::read_dir(snapshot(cache))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut expected = FILES;
    expected.sort();
    assert_eq!(names, expected);
    for name in FILES {
        assert_eq!(fs::read(snapshot(cache).join(name)).unwrap(), server.content(name), "{name}");
    }
    assert!(left_over(cache).is_empty(), "{:?}", left_over(cache));
}

/// Unfinished files.
fn left_over(cache: &Path) -> Vec<PathBuf> {
    let unfinished = |path: &PathBuf| {
        !path.components().any(|part| part.as_os_str() == ".locks") && {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.ends_with(".incomplete") || name.starts_with('.')
        }
    };
    tree(cache).into_iter().filter(unfinished).collect()
}

/// What was reported, in words.
fn told(event: HubProgress<'_>) -> String {
    match event {
        HubProgress::Missing { files, bytes } => format!("{files} files, {bytes} bytes"),
        HubProgress::File { name, done, total } => format!("{name} {done}/{total}"),
        HubProgress::Waiting { reason, .. } => format!("waiting: {reason}"),
        HubProgress::Cached { reason } => format!("cached: {reason}"),
        other => panic!("{other:?}"),
    }
}
