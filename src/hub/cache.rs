//! The cache that is shared with Python's tools
//! (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>): a file's content lies under
//! its checksum in `blobs`, `snapshots/<commit>` has a link for each file, `refs` has a commit for
//! each branch.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubProgress;
use super::checksum::Checksum;
use super::error::Attempt;
use super::http::Client;
use super::listing::{CONFIG, TOKENIZER};
use super::name::{Repo, is_commit};
use crate::checkpoint::{INDEX_FILE, SINGLE_FILE, parse_index};
use crate::error::{Error, Result, WRITE};

/// The longest index that is read.
const MAX_INDEX_BYTES: u64 = 16 << 20;

/// How often a lock that another process holds is asked for.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// One repository's part of the cache.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    pub(super) fn new(root: &Path, repo: &Repo) -> Self {
        let name = format!("models--{}", repo.name().replace('/', "--"));
        Self { folder: root.join(&name), locks: root.join(".locks").join(name) }
    }

    /// Makes the folders that files are written to.
    pub(super) fn prepare(&self) -> Result<()> {
        for folder in [&self.folder.join("blobs"), &self.locks] {
            fs::create_dir_all(folder).map_err(Error::io("make folder", folder))?;
        }
        Ok(())
    }

    /// Where a file's content is once it is complete.
    pub(super) fn blob(&self, checksum: &Checksum) -> PathBuf {
        self.folder.join("blobs").join(checksum.as_str())
    }

    /// Where it is until then.
    pub(super) fn partial(&self, checksum: &Checksum) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", checksum.as_str()))
    }

    /// The folder that a commit's files are in.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Bytes that a file still lacks.
    pub(super) fn bytes_left(&self, checksum: &Checksum, size: u64) -> u64 {
        if has(&self.blob(checksum), size) {
            return 0;
        }
        let here = fs::metadata(self.partial(checksum)).map_or(0, |metadata| metadata.len());
        // What is too long is begun anew.
        size.checked_sub(here).unwrap_or(size)
    }

    /// Gives a complete file its name in a snapshot.
    pub(super) fn link(&self, commit: &str, name: &str, checksum: &Checksum) -> Result<()> {
        let folder = self.snapshot(commit);
        fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
        let pointer = folder.join(name);
        let target = Path::new("../../blobs").join(checksum.as_str());
        if fs::read_link(&pointer).is_ok_and(|link| link == target) {
            return Ok(());
        }
        match fs::remove_file(&pointer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("replace", &pointer)(error));
            }
            _ => {}
        }
        match symlink(&target, &pointer) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(Error::io("link", &pointer)),
        }
    }

    /// The commit that a revision was when it was last asked for.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let mut text = String::new();
        let file = File::open(self.folder.join("refs").join(revision)).ok()?;
        file.take(1_024).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned()).filter(|text| is_commit(text))
    }

    /// Notes which commit a revision is.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let refs = self.folder.join("refs");
        let path = refs.join(revision);
        let folder = path.parent().unwrap_or(&refs);
        fs::create_dir_all(folder).map_err(Error::io("make folder", folder))?;
        // Beside the revisions, none of which begins with a dot.
        let new = refs.join(format!(".{}.{commit}", std::process::id()));
        fs::write(&new, commit).map_err(Error::io(WRITE, &new))?;
        fs::rename(&new, &path).map_err(Error::io(WRITE, &path))
    }

    /// What a snapshot lacks to be a model, by its own index.
    pub(super) fn missing(&self, commit: &str) -> Vec<String> {
        let folder = self.snapshot(commit);
        let is_here = |name: &str| fs::metadata(folder.join(name)).is_ok_and(|m| m.is_file());
        let mut needed = vec![CONFIG.to_owned(), TOKENIZER.to_owned()];
        if is_here(INDEX_FILE) {
            match self.read_index(commit) {
                Ok(index) => needed.extend(index.into_values()),
                // Not complete, as long as nobody can say what it should be.
                Err(_) => return vec![INDEX_FILE.into()],
            }
        } else {
            needed.push(SINGLE_FILE.into());
        }
        needed.sort();
        needed.dedup();
        needed.retain(|name| !is_here(name));
        needed
    }

    /// The shard of each tensor.
    pub(super) fn read_index(
        &self,
        commit: &str,
    ) -> Result<std::collections::BTreeMap<String, String>> {
        let path = self.snapshot(commit).join(INDEX_FILE);
        let mut text = Vec::new();
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        file.take(MAX_INDEX_BYTES).read_to_end(&mut text).map_err(Error::io("read", &path))?;
        parse_index(&path, &text)
    }

    /// Bytes that can still be written. `None` where the system does not say.
    pub(super) fn available_space(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.folder).ok()?;
        // Some network disks say that they have no size at all.
        (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Waits until nobody else downloads this file. The lock ends with the process at the latest.
    pub(super) fn lock(
        &self,
        name: &str,
        checksum: &Checksum,
        client: &Client<'_>,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Attempt<File> {
        let path = self.locks.join(format!("{}.lock", checksum.as_str()));
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        let reason = format!("another process downloads {name}");
                        progress(HubProgress::Waiting { wait: LOCK_INTERVAL, reason: &reason });
                    }
                    client.pause(LOCK_INTERVAL)?;
                }
                Err(TryLockError::Error(error)) => {
                    return Err(Error::io("lock", &path)(error).into());
                }
            }
        }
    }
}

/// Whether there is a file of this size.
pub(super) fn has(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}
