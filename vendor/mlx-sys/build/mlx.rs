//! An MLX that is compiled already: out of a wheel, or at a prefix.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::pins::{self, Wheel};
use crate::plan::Target;
use crate::{env, process, python, sources};

/// Names of the variable that lets another version through.
pub const ANY_VERSION: &str = "MLX_ALLOW_VERSION_MISMATCH";

/// A compiled MLX.
pub struct Installed {
    /// `libmlx`, shared or an archive.
    pub library: PathBuf,
    /// The folder with `mlx/version.h`.
    pub include: PathBuf,
}

impl Installed {
    /// The folder of the library.
    pub fn folder(&self) -> &Path {
        self.library.parent().unwrap_or(&self.library)
    }
}

/// The wheel's MLX, and the folder that the wheel is unpacked in.
pub fn from_wheel(
    cache: &Cache,
    wheel: &Wheel,
    target: Target,
) -> Result<(PathBuf, Installed), String> {
    let library = format!("mlx/lib/{}", target.shared_library("mlx"));
    let folder = python::wheel(
        cache,
        wheel,
        &[&library, "mlx/include/mlx/version.h"],
        "Without it: MLX_PROVIDER=source compiles MLX here, and MLX_PROVIDER=prefix takes the MLX \
         installed at MLX_PREFIX.",
    )?;
    let installed =
        Installed { library: folder.join(&library), include: folder.join("mlx/include") };
    Ok((folder, installed))
}

/// Refuses a system whose C library is older than the wheel's: the result
/// would not start.
pub fn check_glibc() -> Result<(), String> {
    let Ok(text) = process::output(Command::new("ldd").arg("--version")) else { return Ok(()) };
    let found = text.lines().next().and_then(|line| line.rsplit(' ').next());
    let (major, minor) = pins::GLIBC_MINIMUM;
    match found.and_then(process::two_numbers) {
        Some(version) if version < pins::GLIBC_MINIMUM => Err(format!(
            "MLX's wheels need glibc {major}.{minor} or newer and this system has {}.{}; \
             MLX_PROVIDER=source compiles MLX for it",
            version.0, version.1
        )),
        _ => Ok(()),
    }
}

/// The MLX at `MLX_PREFIX`.
pub fn from_prefix(target: Target) -> Result<Installed, String> {
    let prefix = env::path("MLX_PREFIX").ok_or(
        "MLX_PROVIDER=prefix takes an MLX that is installed already: set MLX_PREFIX to the folder \
         that has its `include/mlx` and its `lib`",
    )?;
    let mut looked = Vec::new();
    let mut find = |folders: &[&str], names: &[String]| {
        for folder in folders {
            for name in names {
                let path = prefix.join(folder).join(name);
                if path.is_file() {
                    return Some(path);
                }
                looked.push(path.display().to_string());
            }
        }
        None
    };
    let libraries = [target.shared_library("mlx"), "libmlx.a".to_owned()];
    let library = find(&["lib", "lib64"], &libraries);
    let version = find(&["include"], &["mlx/version.h".to_owned()]);
    match (library, version) {
        (Some(library), Some(_)) => Ok(Installed { library, include: prefix.join("include") }),
        _ => Err(format!(
            "MLX_PREFIX is {} and MLX is not installed there; these were looked for:\n  {}",
            prefix.display(),
            looked.join("\n  ")
        )),
    }
}

/// Refuses another version of `part` than the pinned one.
pub fn check_version(part: &str, place: &Path, found: &str, pinned: &str) -> Result<(), String> {
    if found == pinned {
        return Ok(());
    }
    let what = format!(
        "{part} at {} is version {found}, and this crate is written for {part} {pinned}",
        place.display()
    );
    if env::flag(ANY_VERSION) {
        println!("cargo::warning={what}; {ANY_VERSION} lets it through");
        return Ok(());
    }
    Err(format!(
        "{what}. Take that version, another provider (MLX_PROVIDER=wheel, source or prefix), or \
         set {ANY_VERSION}=1 to try nevertheless."
    ))
}

/// Refuses an MLX whose headers are of another version.
pub fn check_mlx(include: &Path) -> Result<(), String> {
    check_version("MLX", include, &sources::mlx_version(include)?, pins::MLX_VERSION)
}
