//! Folders and files that are not what they should be.

use std::fs;

use gpt_oss_mlx::checkpoint::Checkpoint;

use super::common::safetensors::write_index;
use super::{INDEX, SINGLE, folder, refused, unreadable};

#[test]
fn a_folder_without_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let reason = refused(dir.path(), "");
    assert_eq!(reason, "holds neither model.safetensors.index.json nor model.safetensors");
    fs::write(dir.path().join("adapters.safetensors"), b"").unwrap();
    assert!(refused(dir.path(), "").contains("there is adapters.safetensors"));
}

#[test]
fn a_folder_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    assert_eq!(unreadable(&gone, &gone).kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn not_a_folder() {
    let dir = folder(b"");
    let file = dir.path().join(SINGLE);
    assert_eq!(unreadable(&file, &file).kind(), std::io::ErrorKind::NotADirectory);
    let error = Checkpoint::open(&file).unwrap_err();
    assert!(error.hint().contains("folder"), "{}", error.hint());
}

#[test]
fn a_folder_in_place_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(SINGLE)).unwrap();
    assert_eq!(refused(dir.path(), SINGLE), "is not a regular file");
}

#[cfg(unix)]
#[test]
fn something_that_is_not_a_file() {
    // A socket; a named pipe is the same to us, and opening one would wait for ever.
    let dir = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join(SINGLE)).unwrap();
    assert_eq!(refused(dir.path(), SINGLE), "is not a regular file");
}

#[cfg(unix)]
#[test]
fn no_permission() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = folder(b"secret");
    let mut path = dir.path().join(SINGLE);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&path).is_ok() {
        // The superuser reads everything, except what the kernel lets nobody read.
        let bus = fs::read_dir("/sys/bus").unwrap().flatten().map(|bus| bus.path());
        let closed = bus
            .map(|bus| bus.join("drivers_probe"))
            .find(|file| file.exists() && fs::File::open(file).is_err())
            .expect("run this test as an ordinary user");
        fs::remove_file(&path).unwrap();
        symlink(closed, &path).unwrap();
    }
    assert_eq!(unreadable(dir.path(), &path).kind(), std::io::ErrorKind::PermissionDenied);
    // The same for a shard.
    write_index(dir.path(), [("a", SINGLE)]);
    assert_eq!(unreadable(dir.path(), &path).kind(), std::io::ErrorKind::PermissionDenied);
    path.set_file_name(INDEX);
    assert!(Checkpoint::open(dir.path()).unwrap_err().hint().contains("readable"));
}

#[cfg(unix)]
#[test]
fn symbolic_link_loops() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    symlink("other", at(SINGLE)).unwrap();
    symlink(SINGLE, at("other")).unwrap();
    let error = unreadable(dir.path(), &at(SINGLE));
    assert_ne!(error.kind(), std::io::ErrorKind::NotFound);
    // A shard, the index itself, and the folder.
    write_index(dir.path(), [("a", "loop.safetensors")]);
    symlink("loop.safetensors", at("loop.safetensors")).unwrap();
    unreadable(dir.path(), &at("loop.safetensors"));
    fs::remove_file(at(INDEX)).unwrap();
    symlink(INDEX, at(INDEX)).unwrap();
    unreadable(dir.path(), &at(INDEX));
    symlink("folder", at("folder")).unwrap();
    unreadable(&at("folder"), &at("folder"));
}

#[test]
fn every_error_says_what_to_do() {
    let dir = folder(b"");
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains(SINGLE) && error.hint().contains("download"), "{error}");
}
