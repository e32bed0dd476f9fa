//! A folder of safetensors files as named tensors. Opening one checks every header and touches no
//! tensor data; names are kept as they are.
//!
//! The format: eight bytes with the length of a JSON header, little-endian; the header, which gives
//! every tensor's type, shape and place; the tensors' bytes, without gaps, to the end of the file
//! (<https://github.com/huggingface/safetensors#format>). A checkpoint in several files has an index
//! that names the file of each tensor.

mod header;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

pub use self::header::{TensorInfo, parse_header, parse_index};
pub(crate) use self::header::{parse_metadata, printable};

use self::header::corrupt;
use crate::error::{Error, Result, TensorMismatch};
use crate::mlx::map_file;

/// The index of a checkpoint in several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// A checkpoint in one file.
pub const SINGLE_FILE: &str = "model.safetensors";

/// An opened checkpoint: every header is valid, every file is mapped.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Mapped>,
    tensors: BTreeMap<String, TensorInfo>,
    total_bytes: u64,
}

/// One file of a checkpoint.
#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    /// `None` after [`Checkpoint::release`].
    map: Option<Arc<Mmap>>,
}

impl Checkpoint {
    /// Opens the checkpoint in the folder `dir`: the files that `model.safetensors.index.json`
    /// lists, or else `model.safetensors`. Other safetensors files there are not looked at, since
    /// they may be something else, such as an adapter. Symbolic links to files are followed, as a
    /// download cache keeps its files elsewhere.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder or a file cannot be read, [`Error::Json`] when the index is
    /// not JSON, and [`Error::Checkpoint`] when a file is missing or damaged, or when the index
    /// and the files disagree.
    pub fn open(dir: &Path) -> Result<Self> {
        if !fs::metadata(dir).map_err(Error::io("open", dir))?.is_dir() {
            return Err(Error::io("open folder", dir)(io::ErrorKind::NotADirectory.into()));
        }
        let index = dir.join(INDEX_FILE);
        if is_present(&index)? {
            let listed = parse_index(&index, &map_file(&index)?)?;
            return Self::open_shards(dir, &index, &listed);
        }
        let single = dir.join(SINGLE_FILE);
        if is_present(&single)? {
            return Self::open_files(vec![single]);
        }
        let mut reason = format!("holds neither {INDEX_FILE} nor {SINGLE_FILE}");
        if let Some(other) = other_safetensors(dir) {
            reason.push_str(&format!(
                " (there is {}, but without an index it is not taken)",
                other.escape_debug()
            ));
        }
        Err(corrupt(dir, reason))
    }

    /// Opens the files that an index lists, and compares what they hold with it.
    fn open_shards(dir: &Path, index: &Path, listed: &BTreeMap<String, String>) -> Result<Self> {
        let shards: BTreeSet<&String> = listed.values().collect();
        let paths: Vec<PathBuf> = shards.iter().map(|shard| dir.join(shard)).collect();
        for path in &paths {
            // A link whose target is gone counts as missing as well.
            if !path.try_exists().map_err(Error::io("open", path))? {
                return Err(corrupt(path, format!("is missing, but {INDEX_FILE} lists it")));
            }
        }
        let checkpoint = Self::open_files(paths)?;
        for (name, info) in &checkpoint.tensors {
            let path = checkpoint.path(info.file).unwrap_or(dir);
            match listed.get(name) {
                Some(shard) if path == dir.join(shard) => {}
                Some(shard) => {
                    let reason =
                        format!("holds tensor {name}, which {INDEX_FILE} puts into {shard}");
                    return Err(corrupt(path, reason));
                }
                None => {
                    let reason = format!("holds tensor {name}, which {INDEX_FILE} does not list");
                    return Err(corrupt(path, reason));
                }
            }
        }
        match listed.iter().find(|(name, _)| !checkpoint.tensors.contains_key(*name)) {
            None => Ok(checkpoint),
            Some((name, shard)) => {
                let reason = format!("lists tensor {name} in {shard}, which does not hold it");
                Err(corrupt(index, reason))
            }
        }
    }

    /// Maps files and reads their headers.
    fn open_files(paths: Vec<PathBuf>) -> Result<Self> {
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new(), total_bytes: 0 };
        for (file, path) in paths.into_iter().enumerate() {
            let map = map_file(&path)?;
            for (name, info) in parse_header(&path, &map, map.len())? {
                if let Some(other) = checkpoint.tensors.get(&name) {
                    let other = checkpoint.path(other.file).unwrap_or(&path).display();
                    return Err(corrupt(&path, format!("holds tensor {name}, as does {other}")));
                }
                checkpoint.total_bytes = checkpoint.total_bytes.saturating_add(info.nbytes as u64);
                checkpoint.tensors.insert(name, TensorInfo { file, ..info });
            }
            checkpoint.files.push(Mapped { path, map: Some(Arc::new(map)) });
        }
        Ok(checkpoint)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// What the headers say about a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// A tensor's bytes, in the map of its file.
    ///
    /// # Errors
    /// [`Error::Tensors`] when there is no such tensor, [`Error::Argument`] when its file was
    /// released.
    pub fn data(&self, name: &str) -> Result<&[u8]> {
        let Some(info) = self.tensors.get(name) else {
            let missing = vec![name.to_owned()];
            return Err(TensorMismatch { missing, ..Default::default() }.into());
        };
        self.files
            .get(info.file)
            .and_then(|file| file.map.as_ref()?.get(info.range()))
            .ok_or_else(|| Error::argument("name", format!("the file of {name} was released")))
    }

    /// The map of the file that holds a tensor, and the tensor's place in it. `None` when there is
    /// no such tensor or its file was released. The map lives as long as any clone of it.
    pub fn map(&self, name: &str) -> Option<(Arc<Mmap>, Range<usize>)> {
        let info = self.tensors.get(name)?;
        let map = self.files.get(info.file)?.map.as_ref()?;
        Some((Arc::clone(map), info.range()))
    }

    /// Lets go of a file's map, so that its memory is free once nobody else holds it. The headers
    /// stay.
    pub fn release(&mut self, file: usize) {
        if let Some(file) = self.files.get_mut(file) {
            file.map = None;
        }
    }

    /// The path of a file, by its number in [`TensorInfo::file`].
    pub fn path(&self, file: usize) -> Option<&Path> {
        self.files.get(file).map(|file| file.path.as_path())
    }

    /// How many files there are.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Bytes of all tensors together, headers not counted.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }
}

/// Whether a folder has an entry of this name; a link without a target is one.
fn is_present(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("open", path)(error)),
    }
}

/// The first safetensors file of a folder, to help whoever renamed it.
fn other_safetensors(dir: &Path) -> Option<String> {
    let names =
        fs::read_dir(dir).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.ends_with(".safetensors")).min()
}
