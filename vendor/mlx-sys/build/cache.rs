//! A folder that all builds of a user share: unpacked wheels, and libmlxc for
//! each of them. An entry appears whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::env;

/// Written last; says that the rest of the entry is there.
const COMPLETE: &str = ".complete";

/// 2000-01-01: before any build.
const DATED_BACK: Duration = Duration::from_secs(946_684_800);

/// The shared folder.
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `GPT_OSS_MLX_CACHE`, else the place where the system keeps caches.
    pub fn open() -> Result<Self, String> {
        let chosen = env::path("GPT_OSS_MLX_CACHE");
        let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
        let standard = if cfg!(target_os = "macos") {
            home.map(|home| home.join("Library/Caches"))
        } else {
            env::path("XDG_CACHE_HOME")
                .filter(|path| path.is_absolute())
                .or_else(|| home.map(|home| home.join(".cache")))
        };
        let root = chosen.or_else(|| standard.map(|path| path.join("gpt-oss-mlx"))).ok_or(
            "there is no home folder to keep downloads in: \
             set GPT_OSS_MLX_CACHE to a folder that builds may write to",
        )?;
        Self::at(&root)
    }

    /// The cache in the folder `root`, which is made when it is missing.
    pub fn at(root: &Path) -> Result<Self, String> {
        let explain = |error| {
            format!(
                "cannot make {}, where downloads are kept: {error}; \
                 set GPT_OSS_MLX_CACHE to a folder that builds may write to",
                root.display()
            )
        };
        fs::create_dir_all(root).map_err(explain)?;
        Ok(Self { root: fs::canonicalize(root).map_err(explain)? })
    }

    /// Where the entry `key` is, or will be.
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// The entry `key`. When it is missing or damaged, `fill` makes it in an
    /// empty folder, which then takes its place. Other builds wait meanwhile.
    /// `essential` are files of the entry that are looked at each time.
    pub fn entry(
        &self,
        key: &str,
        essential: &[&str],
        fill: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<PathBuf, String> {
        let path = self.path(key);
        let _lock = self.lock(key)?;
        if is_complete(&path, essential) {
            return Ok(path);
        }
        let partial = self.root.join(format!("{key}.partial"));
        // Left behind by builds that were killed; the lock says nobody uses them.
        remove(&partial)?;
        remove(&path)?;
        fs::create_dir_all(&partial)
            .map_err(|error| format!("cannot make {}: {error}", partial.display()))?;
        fill(&partial)?;
        seal(&partial, essential)?;
        fs::rename(&partial, &path).map_err(|error| {
            format!("cannot move {} to {}: {error}", partial.display(), path.display())
        })?;
        Ok(path)
    }

    /// Holds others off the entry until the file is dropped.
    fn lock(&self, key: &str) -> Result<File, String> {
        let path = self.root.join(format!("{key}.lock"));
        let explain = |error| format!("cannot lock {}: {error}", path.display());
        let file = File::create(&path).map_err(explain)?;
        file.lock().map_err(explain)?;
        Ok(file)
    }
}

fn remove(path: &Path) -> Result<(), String> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove the incomplete {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Records the sizes of the essential files.
fn sizes(path: &Path, essential: &[&str]) -> Result<String, String> {
    let mut text = String::new();
    for name in essential {
        let file = path.join(name);
        let size = fs::metadata(&file)
            .map_err(|error| format!("{} should be there now: {error}", file.display()))?
            .len();
        text.push_str(&format!("{size} {name}\n"));
    }
    Ok(text)
}

/// The marker goes last. The essential files are dated back: cargo watches
/// them, and files younger than the build that made them count as changed.
fn seal(path: &Path, essential: &[&str]) -> Result<(), String> {
    for name in essential {
        let file = path.join(name);
        File::options()
            .write(true)
            .open(&file)
            .and_then(|file| file.set_modified(UNIX_EPOCH + DATED_BACK))
            .map_err(|error| format!("cannot date {}: {error}", file.display()))?;
    }
    let marker = path.join(COMPLETE);
    let text = sizes(path, essential)?;
    File::create(&marker)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|error| format!("cannot write {}: {error}", marker.display()))
}

fn is_complete(path: &Path, essential: &[&str]) -> bool {
    match (fs::read_to_string(path.join(COMPLETE)), sizes(path, essential)) {
        (Ok(recorded), Ok(found)) => recorded == found,
        _ => false,
    }
}
