//! The variables that steer the build, each announced to cargo.

use std::env;
use std::path::PathBuf;

/// The value of `name`; unset and empty are the same.
pub fn text(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The path in `name`; unset and empty are the same.
pub fn path(name: &str) -> Option<PathBuf> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Whether `name` is set to something else than nothing, `0` and `false`.
pub fn flag(name: &str) -> bool {
    text(name).is_some_and(|value| value != "0" && value != "false")
}

/// A variable that cargo itself sets for build scripts.
pub fn cargo(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}, which cargo sets for build scripts: {error}"))
}

/// Whether the feature `name` of this package is on.
pub fn feature(name: &str) -> bool {
    let name = name.to_uppercase().replace('-', "_");
    env::var_os(format!("CARGO_FEATURE_{name}")).is_some()
}
