//! Files as memory.

use std::fs::{self, File};
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Maps a file read-only. Symbolic links are followed.
///
/// The file must stay as it is while the map lives: where another process shortens it, reading
/// the lost part ends this process.
///
/// # Errors
/// [`Error::Io`] when the file cannot be opened or mapped, [`Error::Checkpoint`] when it is empty
/// or not a regular file.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let wrong = |reason: &str| Error::Checkpoint { path: path.into(), reason: reason.into() };
    // Asked before opening as well: opening a named pipe would wait for a writer.
    if !fs::metadata(path).map_err(Error::io("open", path))?.is_file() {
        return Err(wrong("is not a regular file"));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("open", path))?;
    if !metadata.is_file() {
        return Err(wrong("is not a regular file"));
    }
    if metadata.len() == 0 {
        return Err(wrong("is empty"));
    }
    // SAFETY: the map is read-only and private to this process's view. Its bytes are read as plain
    // numbers, of which every bit pattern is valid; that nobody changes or shortens the file
    // meanwhile is the caller's side of the contract above, as for every mapped file.
    unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))
}
