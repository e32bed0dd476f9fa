//! Passes on what the native build of mlx-sys found: to this package's own
//! binaries, and to the build scripts of the crates that depend on it, as
//! `DEP_GPT_OSS_MLX_*` (see `docs/embedding.md`).

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");

    // Only the drop-in in `vendor/mlx-sys` publishes these; on the published
    // mlx-sys they are absent and there is nothing to pass on.
    let found = |name: &str| {
        println!("cargo::rerun-if-env-changed={name}");
        env::var(name).ok()
    };
    if let Some(version) = found("DEP_MLX_VERSION") {
        println!("cargo::metadata=version={version}");
    }
    if let Some(metallib) = found("DEP_MLX_METALLIB") {
        println!("cargo::metadata=metallib={metallib}");
        println!("cargo::rustc-env=GPT_OSS_MLX_METALLIB={metallib}");
    }
    if let Some(folder) = found("DEP_MLX_LIB") {
        println!("cargo::metadata=lib={folder}");
        // Binaries name libmlxc by its full path, except with MLX_RELOCATABLE.
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
    if let Some(folder) = found("DEP_MLX_MLX_C") {
        println!("cargo::rustc-env=GPT_OSS_MLX_MLX_C={folder}");
    }
}
