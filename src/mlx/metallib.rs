//! Where MLX's compiled Metal kernels are, so that neither an app bundle nor an installed binary
//! needs an environment variable.

use std::path::{Path, PathBuf};

/// The file's name, as MLX's build and its wheel give it.
const NAME: &str = "mlx.metallib";

/// Where the kernels may be, in the order in which they are looked for: in the app bundle that
/// `executable` (`App.app/Contents/MacOS/app`) belongs to, then where the build left them. MLX
/// itself looks beside the executable, where a bundle must not have data.
fn candidates(executable: Option<&Path>, built: Option<&str>) -> Vec<PathBuf> {
    let contents = executable.and_then(Path::parent).and_then(Path::parent);
    contents
        .map(|contents| contents.join("Resources").join(NAME))
        .into_iter()
        .chain(built.map(PathBuf::from))
        .collect()
}

/// Tells MLX where the kernels are, unless the app has done so. Does nothing where there is no
/// Metal, and leaves MLX to its own search when no candidate exists.
pub(super) fn locate() {
    let executable = std::env::current_exe().ok();
    let found = candidates(executable.as_deref(), option_env!("GPT_OSS_MLX_METALLIB"))
        .into_iter()
        .find(|path| path.is_file());
    if let Some(path) = found {
        announce(&path);
    }
}

#[cfg(target_os = "macos")]
fn announce(path: &Path) {
    let unset = mlx_rs::metal::metallib_path().is_ok_and(|path| path.is_empty());
    if unset {
        // A failure shows at the first operation, with MLX's own message.
        let _ = mlx_rs::metal::set_metallib_path(path.to_string_lossy());
    }
}

#[cfg(not(target_os = "macos"))]
fn announce(_: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundles_resources_come_before_the_build() {
        let executable = Path::new("/Applications/App.app/Contents/MacOS/app");
        assert_eq!(
            candidates(Some(executable), Some("/cache/mlx.metallib")),
            [
                PathBuf::from("/Applications/App.app/Contents/Resources/mlx.metallib"),
                PathBuf::from("/cache/mlx.metallib"),
            ]
        );
    }

    #[test]
    fn nothing_known_means_nowhere_to_look() {
        assert!(candidates(None, None).is_empty());
        assert!(candidates(Some(Path::new("app")), None).is_empty());
    }
}
