//! pip as a download tool: one wheel, checked against its pinned checksum,
//! unpacked into the cache. Nothing of it is imported or run by Python.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::env;
use crate::pins::Wheel;
use crate::process;

/// The folder of `wheel`, fetched when the cache lacks it. `alternative` says
/// what else a user without Python can do.
pub fn wheel(
    cache: &Cache,
    wheel: &Wheel,
    essential: &[&str],
    alternative: &str,
) -> Result<PathBuf, String> {
    cache.entry(&wheel.key(), essential, |folder| {
        let python = python(wheel, alternative)?;
        fetch(&python, wheel, folder).map_err(|error| format!("{error}\n{alternative}"))
    })
}

/// A Python that has pip.
fn python(wheel: &Wheel, alternative: &str) -> Result<PathBuf, String> {
    let candidates = match env::path("MLX_PYTHON") {
        Some(path) => vec![path],
        None => vec![PathBuf::from("python3"), PathBuf::from("python")],
    };
    let mut seen = Vec::new();
    for candidate in candidates {
        match process::output(Command::new(&candidate).args(["-m", "pip", "--version"])) {
            Ok(_) => return Ok(candidate),
            Err(error) => seen.push(error),
        }
    }
    Err(format!(
        "pip is needed to download the wheel {} {}, once:\n  {}\n\
         Install Python 3 with pip (Debian and Ubuntu: apt install python3-pip; Fedora: dnf \
         install python3-pip; macOS: xcode-select --install), or name another Python in \
         MLX_PYTHON.\n{alternative}",
        wheel.package,
        wheel.version,
        seen.join("\n  "),
    ))
}

/// The user's own settings of pip decide where the file comes from; only what
/// would change the outcome is set here.
fn fetch(python: &Path, wheel: &Wheel, folder: &Path) -> Result<(), String> {
    let Wheel { package, version, platform, sha256 } = wheel;
    let pinned = folder.join("requirements.txt");
    fs::write(&pinned, format!("{package}=={version} --hash=sha256:{sha256}\n"))
        .map_err(|error| format!("cannot write {}: {error}", pinned.display()))?;
    eprintln!("downloading {package} {version} for {platform}");
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--require-hashes", "--no-deps", "--only-binary=:all:"])
        .args(["--no-compile", "--no-user", "--no-input", "--disable-pip-version-check"])
        // The wheel's platform, whatever Python runs pip.
        .args(["--python-version", "3.12", "--implementation", "py", "--abi", "none"])
        .args(["--platform", platform, "--progress-bar", "off", "--target"])
        .arg(folder)
        .arg("--requirement")
        .arg(&pinned)
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .env_remove("PIP_TARGET")
        .env_remove("PYTHONHOME");
    process::output(&mut pip).map_err(|error| {
        format!("pip could not fetch {package} {version} for {platform}, sha256 {sha256}:\n{error}")
    })?;
    Ok(())
}
