//! Replacing a file in one step: whoever looks sees the old one or the new one, whole.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process;

use twox_hash::xxhash3_128::Hasher;

use crate::error::{Error, Result, WRITE};

/// Most names that are tried for one file: each name in use is one more save at the same time.
const MAX_TRIES: u32 = 1000;
/// What all names of unfinished files begin and end with.
const START: &str = ".gpt-oss-mlx";
const END: &str = ".tmp";

/// Puts a new file in the place of `path`: `write` fills a file beside it, which is flushed to the
/// disk and renamed. Where anything fails, `path` is as it was.
///
/// A process that is killed leaves its unfinished file behind; the next replacement of the same
/// path removes it. Files being written are locked, so that they are not taken for such.
///
/// # Errors
/// [`Error::Io`] with `path`, and whatever `write` reports.
pub(super) fn replace_file(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let failed = |error| Error::io(WRITE, path)(error);
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    check_replaceable(path).map_err(failed)?;
    let unfinished = Unfinished::new(folder, name);
    // First, since what is left over may be what fills the disk.
    unfinished.remove_left_over();
    let mut made = unfinished.create().map_err(failed)?;
    write(&mut made.file)?;
    made.file.sync_all().map_err(failed)?;
    fs::rename(&made.path, path).map_err(failed)?;
    made.renamed = true;
    sync_folder(folder).map_err(failed)
}

/// Refuses what a rename would fail on, or would replace though it is no file.
fn check_replaceable(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(there) if !there.is_file() && !there.is_symlink() => {
            Err(io::Error::other("there is something that is not a regular file"))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The unfinished files of one path: `.gpt-oss-mlx.{hash of its name}.{process}.{number}.tmp`. The
/// hash, since the name itself may be as long as a name can be.
struct Unfinished<'a> {
    folder: &'a Path,
    start: String,
}

/// An unfinished file, locked as long as it is open, and removed unless it was renamed.
struct Made {
    file: File,
    path: PathBuf,
    renamed: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.renamed {
            // The error that led here is the one to report.
            fs::remove_file(&self.path).ok();
        }
    }
}

impl<'a> Unfinished<'a> {
    fn new(folder: &'a Path, name: &OsStr) -> Self {
        let hash = Hasher::oneshot(name.as_encoded_bytes());
        Self { folder, start: format!("{START}.{hash:032x}.") }
    }

    /// A new file that only its owner can read.
    fn create(&self) -> io::Result<Made> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        for number in 0..MAX_TRIES {
            let name = format!("{}{}.{number}{END}", self.start, process::id());
            let path = self.folder.join(name);
            let file = match options.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                file => file?,
            };
            let locked = match file.try_lock() {
                Ok(()) => is_at(&file, &path),
                Err(TryLockError::WouldBlock) => false,
                // Files cannot be locked here; what is left over then stays.
                Err(TryLockError::Error(_)) => true,
            };
            if locked {
                return Ok(Made { file, path, renamed: false });
            }
            // Between being made and being locked, another save took it for a left-over.
        }
        Err(io::Error::other("too many unfinished files beside it"))
    }

    /// Removes files whose process ended before they were renamed. A file that cannot be removed
    /// is in nobody's way.
    fn remove_left_over(&self) {
        let Ok(entries) = fs::read_dir(self.folder) else { return };
        for entry in entries.flatten() {
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if !is_file || !entry.file_name().to_str().is_some_and(|name| self.is_ours(name)) {
                continue;
            }
            let path = entry.path();
            let Ok(file) = OpenOptions::new().write(true).open(&path) else { continue };
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => drop(fs::remove_file(&path)),
                // Gone, or being written, or nobody can tell.
                Ok(()) | Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
            }
        }
    }

    fn is_ours(&self, name: &str) -> bool {
        let numbers = name.strip_prefix(&self.start).and_then(|rest| rest.strip_suffix(END));
        let is_number = |text: &str| text.parse::<u32>().is_ok_and(|n| n.to_string() == text);
        numbers
            .and_then(|text| text.split_once('.'))
            .is_some_and(|(process, number)| is_number(process) && is_number(number))
    }
}

/// True when `path` still is that file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => id(open) == id(there),
        _ => false,
    }
}

/// True when `path` still is that file: elsewhere, an open file's name is not given away.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Makes a rename last. The new file is whole without it; after a crash the old one might be back.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    // A folder in which one may write need not be readable.
    let Ok(folder) = File::open(folder) else { return Ok(()) };
    match folder.sync_all() {
        // Some file systems have nothing to flush there.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

/// Elsewhere, folders cannot be opened.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn put(path: &Path, text: &str) -> Result<()> {
        replace_file(path, |file| file.write_all(text.as_bytes()).map_err(Error::io(WRITE, path)))
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_left_over_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        let ours = Unfinished::new(dir.path(), OsStr::new("target"));
        let left_over = format!("{}4294967295.0.tmp", ours.start);
        // Another target's, and names that only look alike.
        let other = Unfinished::new(dir.path(), OsStr::new("other"));
        let mut foreign = vec![
            format!("{}4294967295.0.tmp", other.start),
            format!("{}4294967296.0.tmp", ours.start),
            format!("{}1.tmp", ours.start),
            format!("{}1.0", ours.start),
            format!("{}1.00.tmp", ours.start),
            format!("{}1.0.tmp.old", ours.start),
            "target.tmp".into(),
        ];
        for name in foreign.iter().chain([&left_over]) {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let folder = format!("{}1.2.tmp", ours.start);
        fs::create_dir(dir.path().join(&folder)).unwrap();
        put(&path, "new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        foreign.extend([folder, "target".into()]);
        foreign.sort();
        assert_eq!(names(dir.path()), foreign);
    }

    #[test]
    fn a_file_that_is_being_written_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        replace_file(&path, |file| {
            file.write_all(b"outer").unwrap();
            put(&path, "inner").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"inner");
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"outer");
        assert_eq!(names(dir.path()), ["target"]);
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        let fail = || {
            replace_file(&path, |file| {
                file.write_all(b"half").unwrap();
                Err(Error::argument("x", "fails"))
            })
        };
        assert!(matches!(fail(), Err(Error::Argument { name: "x", .. })));
        assert!(names(dir.path()).is_empty());
        put(&path, "old").unwrap();
        assert!(fail().is_err());
        assert_eq!(names(dir.path()), ["target"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn names_as_long_as_they_can_be_are_possible() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir.path().join("n".repeat(255)), "x").unwrap();
        assert_eq!(names(dir.path()).len(), 1);
    }
}
