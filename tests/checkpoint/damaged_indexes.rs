//! Indexes that are damaged, lie, or lead astray.

use std::fs;
use std::path::Path;

use gpt_oss_mlx::Error;
use gpt_oss_mlx::checkpoint::{Checkpoint, parse_index};
use safetensors::Dtype;

use super::common::safetensors::{place, spec, write_sparse};
use super::{INDEX, refused, shards};

#[test]
fn an_index_that_is_not_json() {
    for text in ["{\"weight_map\":", "{\"weight_map\":{\"a\":", "weight_map", "\u{feff}{}"] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(INDEX), text).unwrap();
        match Checkpoint::open(dir.path()) {
            Err(Error::Json { path, .. }) => assert_eq!(path, dir.path().join(INDEX)),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn an_index_of_another_kind() {
    for (text, part) in [
        ("{}", "missing field `weight_map`"),
        ("[1]", "invalid"),
        (r#"{"weight_map":{}}"#, "its weight_map lists no tensors"),
        (r#"{"weight_map":[]}"#, "expected an object with a tensor's name for each key"),
        (r#"{"weight_map":{"a":1}}"#, "tensor a: invalid type"),
        (r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#, "a is there twice"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(INDEX), text).unwrap();
        let reason = refused(dir.path(), INDEX);
        assert!(reason.contains(part), "{text}: {reason}");
    }
}

#[test]
fn an_empty_index() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(INDEX), "").unwrap();
    assert_eq!(refused(dir.path(), INDEX), "is empty");
}

#[test]
fn an_index_that_points_outside_the_folder() {
    for shard in [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/inside.safetensors",
        "./model.safetensors",
        "model.safetensors/",
        "..",
        ".",
        "",
        ".safetensors",
        "..\\\\outside.safetensors",
        "C:outside.safetensors",
        "a\\u0000b.safetensors",
        "config.json",
    ] {
        let text = format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#);
        match parse_index(Path::new(INDEX), text.as_bytes()) {
            Err(Error::Checkpoint { reason, .. }) => {
                assert!(reason.contains("puts tensor a into"), "{shard}: {reason}");
            }
            other => panic!("{shard}: {other:?}"),
        }
    }
    // The same on disk, with a sound file just outside: it must not be reached.
    let dir = shards(&[("a", "../outside.safetensors")], &[]);
    let inner = dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::rename(dir.path().join(INDEX), inner.join(INDEX)).unwrap();
    let outside = place(&[spec("a", Dtype::U8, &[1])]);
    write_sparse(&dir.path().join("outside.safetensors"), &outside);
    assert!(
        refused(&inner, INDEX).contains("not the name of a safetensors file in the same folder")
    );
}

#[test]
fn a_missing_shard() {
    let (here, gone) = ("here.safetensors", "gone.safetensors");
    let dir = shards(&[("a", here), ("b", gone)], &[(here, &["a"])]);
    assert!(refused(dir.path(), gone).contains("is missing, but model.safetensors.index.json"));
    // A link whose target was never downloaded is as good as nothing.
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", dir.path().join(gone)).unwrap();
        assert!(refused(dir.path(), gone).contains("is missing"));
    }
}

#[test]
fn a_tensor_that_its_shard_does_not_hold() {
    let one = "one.safetensors";
    let dir = shards(&[("a", one), ("b", one)], &[(one, &["a"])]);
    let reason = refused(dir.path(), INDEX);
    assert_eq!(reason, "lists tensor b in one.safetensors, which does not hold it");
}

#[test]
fn a_tensor_that_the_index_does_not_list() {
    let one = "one.safetensors";
    let dir = shards(&[("a", one)], &[(one, &["a", "b"])]);
    assert!(
        refused(dir.path(), one).contains("holds tensor b, which model.safetensors.index.json")
    );
}

#[test]
fn a_tensor_in_another_shard_than_the_index_says() {
    let (one, two) = ("one.safetensors", "two.safetensors");
    let dir = shards(&[("a", one), ("b", one)], &[(one, &["b"]), (two, &["a"])]);
    // `two` is not listed at all, so `a` is nowhere.
    assert!(refused(dir.path(), INDEX).contains("lists tensor a in one.safetensors"));
    let dir = shards(&[("a", one), ("b", two)], &[(one, &["b"]), (two, &["a"])]);
    assert!(refused(dir.path(), two).contains("holds tensor a, which"));
}

#[test]
fn a_tensor_in_two_files() {
    let (one, two) = ("one.safetensors", "two.safetensors");
    let dir = shards(&[("a", one), ("b", two)], &[(one, &["a"]), (two, &["a", "b"])]);
    let reason = refused(dir.path(), two);
    assert!(reason.starts_with("holds tensor a, as does "), "{reason}");
    assert!(reason.ends_with(one), "{reason}");
}

#[test]
fn a_damaged_shard_is_named() {
    let (one, two) = ("one.safetensors", "two.safetensors");
    let dir = shards(&[("a", one), ("b", two)], &[(one, &["a"]), (two, &["b"])]);
    fs::write(dir.path().join(two), b"short").unwrap();
    assert!(refused(dir.path(), two).contains("is cut off"));
}
