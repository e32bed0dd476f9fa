//! Files that outlive a build: copies for the cache and for shipping.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::fingerprint::Fingerprint;
use crate::plan::{Os, Target};

/// Where a libmlxc that may be moved looks for libmlx: in the wheel's own
/// folders, kept beside it, because libmlx finds its BLAS relative to itself.
pub fn rpath(target: Target) -> &'static str {
    match target.os {
        Os::MacOs => "@loader_path/mlx/lib",
        Os::Linux => "$ORIGIN/mlx/lib",
    }
}

/// Copies what the unpacked `wheel` needs at run time to `folder`.
pub fn gather(wheel: &Path, folder: &Path) -> Result<(), String> {
    copy_tree(&wheel.join("mlx/lib"), &folder.join("mlx/lib"))?;
    // Kernels that CUDA compiles on the fly include these.
    let kernels = "mlx/include/cccl";
    if wheel.join(kernels).is_dir() {
        copy_tree(&wheel.join("mlx/include"), &folder.join("mlx/include"))?;
    }
    let entries = fs::read_dir(wheel).map_err(|error| explain(wheel, &error))?;
    for entry in entries {
        let path = entry.map_err(|error| explain(wheel, &error))?.path();
        if let (Some("libs"), Some(name)) =
            (path.extension().and_then(|extension| extension.to_str()), path.file_name())
        {
            copy_tree(&path, &folder.join(name))?;
        }
    }
    Ok(())
}

/// Copies a file, making its folder.
pub fn copy_file(from: &Path, to: &Path) -> Result<(), String> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(|error| explain(folder, &error))?;
    }
    fs::copy(from, to)
        .map_err(|error| format!("cannot copy {} to {}: {error}", from.display(), to.display()))?;
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), String> {
    for entry in fs::read_dir(from).map_err(|error| explain(from, &error))? {
        let path = entry.map_err(|error| explain(from, &error))?.path();
        let Some(name) = path.file_name() else { continue };
        if path.is_dir() {
            copy_tree(&path, &to.join(name))?;
        } else {
            copy_file(&path, &to.join(name))?;
        }
    }
    Ok(())
}

/// Keeps a compiled metallib in the cache, where `cargo clean` and `cargo
/// install` do not remove it; named by its contents.
pub fn keep_metallib(cache: &Cache, metallib: &Path) -> Result<PathBuf, String> {
    let name = "mlx.metallib";
    let mut file = File::open(metallib).map_err(|error| explain(metallib, &error))?;
    let mut fingerprint = Fingerprint::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(|error| explain(metallib, &error))? {
            0 => break,
            length => fingerprint.add(block.get(..length).unwrap_or_default()),
        }
    }
    let key = format!("metallib-{}", fingerprint.hex());
    let entry = cache.entry(&key, &[name], |folder| copy_file(metallib, &folder.join(name)))?;
    Ok(entry.join(name))
}

fn explain(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
