//! Where mlx-c's source is: `vendor/mlx-c` when somebody put it there, else
//! inside the published package mlx-sys, which cargo fetches and checks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// mlx-c's source below `repository`, and whether it is the pinned one.
pub fn mlx_c(repository: &Path) -> Result<(PathBuf, bool), String> {
    let vendored = repository.join("vendor/mlx-c");
    if vendored.exists() {
        let sources = vendored.join("CMakeLists.txt");
        if !sources.is_file() {
            return Err(format!(
                "{} is there, but {} is not: put mlx-c's source tree into it, or remove it",
                vendored.display(),
                sources.display()
            ));
        }
        return Ok((vendored, false));
    }
    Ok((published(&repository.join("vendor/sources"))?, true))
}

/// The source inside the published package that `sources/Cargo.lock` pins.
fn published(sources: &Path) -> Result<PathBuf, String> {
    // After the first build the package is here, and no network is needed.
    let listing = metadata(sources, true).or_else(|_| metadata(sources, false)).map_err(|error| {
        format!(
            "mlx-c's source travels inside the published package mlx-sys, pinned in {}, and cargo \
             could not fetch it:\n{error}\nConnect to the network once, or put the source tree of \
             mlx-c {} into vendor/mlx-c.",
            sources.join("Cargo.lock").display(),
            crate::pins::MLX_C_VERSION,
        )
    })?;
    manifest_paths(&listing)
        .filter_map(|manifest| Some(Path::new(&manifest).parent()?.join("src/mlx-c")))
        .find(|folder| folder.join("CMakeLists.txt").is_file())
        .ok_or_else(|| {
            format!(
                "no package of {} has a folder src/mlx-c with a CMakeLists.txt in it",
                sources.join("Cargo.lock").display()
            )
        })
}

/// `cargo metadata` of the package that only pins. It resolves and downloads
/// under the same lock file rules as a build, but compiles nothing, so it
/// does not wait for the build that is running.
fn metadata(sources: &Path, offline: bool) -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["metadata", "--format-version=1", "--locked", "--color=never"])
        .arg("--manifest-path")
        .arg(sources.join("Cargo.toml"))
        .current_dir(sources);
    if offline {
        command.arg("--offline");
    }
    // Of what cargo sets for build scripts, only what configures downloads
    // may reach the inner one.
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let inherited = name.starts_with("CARGO_") && !is_download_setting(name);
        let compiler = matches!(name, "RUSTFLAGS" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER");
        if inherited || compiler {
            command.env_remove(name);
        }
    }
    process::output(&mut command)
}

fn is_download_setting(name: &str) -> bool {
    name == "CARGO_HOME"
        || ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// Every `manifest_path` of the JSON text, unescaped.
fn manifest_paths(json: &str) -> impl Iterator<Item = String> {
    json.split("\"manifest_path\":\"").skip(1).map(|rest| {
        let mut path = String::new();
        let mut characters = rest.chars();
        while let Some(character) = characters.next() {
            match character {
                '"' => break,
                '\\' => path.extend(characters.next()),
                other => path.push(other),
            }
        }
        path
    })
}

/// Reads `set(NAME value)` style versions: the text between `before` and the
/// next character that no version has.
pub fn version_after(file: &Path, before: &str) -> Result<String, String> {
    let text = fs::read_to_string(file)
        .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let (_, rest) =
        text.split_once(before).ok_or_else(|| format!("{} has no {before:?}", file.display()))?;
    let digits = |character: char| character.is_ascii_digit() || character == '.';
    Ok(rest.trim_start().chars().take_while(|&character| digits(character)).collect())
}

/// The version of MLX whose headers are in `include`.
pub fn mlx_version(include: &Path) -> Result<String, String> {
    let file = include.join("mlx/version.h");
    let number = |part| version_after(&file, &format!("#define MLX_VERSION_{part} "));
    Ok([number("MAJOR")?, number("MINOR")?, number("PATCH")?].join("."))
}
