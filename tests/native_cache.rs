//! The cache of the native build: entries appear whole or not at all.

#[allow(dead_code)]
#[path = "../vendor/mlx-sys/build/cache.rs"]
mod cache;
#[allow(dead_code)]
#[path = "../vendor/mlx-sys/build/env.rs"]
mod env;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use cache::Cache;

const LIBRARY: &[&str] = &["lib/libmlx.so"];

fn fill(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder.join("lib")).unwrap();
    fs::write(folder.join("lib/libmlx.so"), "a library").unwrap();
    Ok(())
}

fn never(_: &Path) -> Result<(), String> {
    panic!("the entry is complete and must not be made again")
}

#[test]
fn an_entry_is_made_once() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::at(root.path()).unwrap();
    let entry = cache.entry("wheel", LIBRARY, fill).unwrap();
    assert_eq!(entry, cache.path("wheel"));
    assert_eq!(cache.entry("wheel", LIBRARY, never).unwrap(), entry);
    // Cargo watches the file; were it young, every second build would start over.
    let modified = fs::metadata(entry.join("lib/libmlx.so")).unwrap().modified().unwrap();
    let age = SystemTime::now().duration_since(modified).unwrap();
    assert!(age > Duration::from_secs(3600), "dated {age:?} ago");
}

#[test]
fn a_failed_attempt_leaves_nothing_that_counts() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::at(root.path()).unwrap();
    let error = cache
        .entry("wheel", LIBRARY, |folder| {
            fs::create_dir_all(folder.join("lib")).unwrap();
            Err("the network went away".to_owned())
        })
        .unwrap_err();
    assert_eq!(error, "the network went away");
    assert!(!cache.path("wheel").exists());

    // Filled, but without the file that matters.
    let error = cache.entry("wheel", LIBRARY, |_| Ok(())).unwrap_err();
    assert!(error.contains("libmlx.so"), "{error}");
    assert!(!cache.path("wheel").exists());
    cache.entry("wheel", LIBRARY, fill).unwrap();
}

#[test]
fn damaged_entries_are_made_again() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::at(root.path()).unwrap();
    let entry = cache.entry("wheel", LIBRARY, fill).unwrap();
    let library = entry.join("lib/libmlx.so");
    for damage in [
        &(|| fs::write(&library, "cut").unwrap()) as &dyn Fn(),
        &|| fs::remove_file(&library).unwrap(),
        &|| fs::remove_file(entry.join(".complete")).unwrap(),
        &|| fs::remove_dir_all(&entry).unwrap(),
    ] {
        damage();
        let mut made = false;
        cache
            .entry("wheel", LIBRARY, |folder| {
                made = true;
                fill(folder)
            })
            .unwrap();
        assert!(made);
        assert_eq!(fs::read_to_string(&library).unwrap(), "a library");
    }
}

#[test]
fn what_a_killed_build_left_is_cleared_away() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::at(root.path()).unwrap();
    let partial = cache.path("wheel.partial");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("half"), "a file").unwrap();
    let entry = cache.entry("wheel", LIBRARY, fill).unwrap();
    assert!(!entry.join("half").exists() && !partial.exists());
}

#[test]
fn builds_at_the_same_time_share_the_work() {
    let root = tempfile::tempdir().unwrap();
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let cache = Cache::at(root.path()).unwrap();
                let entry = cache
                    .entry("wheel", LIBRARY, |folder| {
                        made.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(50));
                        fill(folder)
                    })
                    .unwrap();
                assert!(entry.join("lib/libmlx.so").is_file());
            });
        }
    });
    assert_eq!(made.load(Ordering::SeqCst), 1);
}
