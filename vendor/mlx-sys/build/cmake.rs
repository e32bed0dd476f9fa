//! Finding CMake and running it on the top `CMakeLists.txt`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::pins::{self, Wheel};
use crate::plan::{Arch, Os, Target};
use crate::{env, process, python};

/// A CMake that is new enough: `CMAKE`, else the one on the PATH, else the
/// Python package `cmake`.
fn find(cache: &Cache, host: Option<Target>) -> Result<PathBuf, String> {
    let (major, minor) = pins::CMAKE_MINIMUM;
    if let Some(chosen) = env::path("CMAKE") {
        return match version(&chosen)? {
            version if version >= pins::CMAKE_MINIMUM => Ok(chosen),
            (found_major, found_minor) => Err(format!(
                "CMAKE names {}, version {found_major}.{found_minor}; \
                 {major}.{minor} or newer is needed",
                chosen.display()
            )),
        };
    }
    let found = version(Path::new("cmake"));
    if found.as_ref().is_ok_and(|version| *version >= pins::CMAKE_MINIMUM) {
        return Ok(PathBuf::from("cmake"));
    }
    let seen = match found {
        Ok((major, minor)) => format!("the CMake on the PATH is {major}.{minor}"),
        Err(error) => error.trim_end().to_owned(),
    };
    let install = format!(
        "CMake {major}.{minor} or newer is needed ({seen}): install it (Debian and Ubuntu: apt \
         install cmake; Fedora: dnf install cmake; macOS: brew install cmake), or name one in CMAKE."
    );
    let wheel = wheel(host).ok_or_else(|| install.clone())?;
    let program = "cmake/data/bin/cmake";
    Ok(python::wheel(cache, wheel, &[program], &install)?.join(program))
}

fn wheel(host: Option<Target>) -> Option<&'static Wheel> {
    Some(match host? {
        Target { os: Os::Linux, arch: Arch::X86_64 } => &pins::CMAKE_LINUX_X86_64,
        Target { os: Os::Linux, arch: Arch::Aarch64 } => &pins::CMAKE_LINUX_AARCH64,
        Target { os: Os::MacOs, .. } => &pins::CMAKE_MACOS,
    })
}

fn version(program: &Path) -> Result<(u32, u32), String> {
    let text = process::output(Command::new(program).arg("--version"))?;
    let version = text.split_whitespace().nth(2).and_then(process::two_numbers);
    version.ok_or_else(|| format!("{} --version said {text:?}", program.display()))
}

/// The C++ compiler that CMake will take, in its own words.
pub fn compiler_identity() -> Result<String, String> {
    let chosen = env::text("CXX");
    let mut words = chosen.as_deref().unwrap_or("c++").split_whitespace();
    let program = words.next().unwrap_or("c++");
    process::output(Command::new(program).args(words).arg("--version")).map_err(|error| {
        format!(
            "a C++20 compiler is needed and there is none: {error}\nInstall one (Debian and \
             Ubuntu: apt install build-essential; Fedora: dnf install gcc-c++ make; macOS: \
             xcode-select --install), or name one in CXX."
        )
    })
}

/// Configures `repository` in the folder `build` and compiles mlx-c.
pub fn run(
    cache: &Cache,
    host: Option<Target>,
    repository: &Path,
    build: &Path,
    mut arguments: Vec<String>,
) -> Result<(), String> {
    let cmake = find(cache, host)?;
    let extra = env::text("MLX_CMAKE_ARGS").unwrap_or_default();
    arguments.extend(extra.split_whitespace().map(str::to_owned));
    if cfg!(target_os = "macos") && env::path("CXX").is_none() && env::path("CC").is_none() {
        // Apple's compiler, which fits the SDK, also where another comes first.
        arguments.push("-DCMAKE_C_COMPILER=/usr/bin/cc".to_owned());
        arguments.push("-DCMAKE_CXX_COMPILER=/usr/bin/c++".to_owned());
    }
    if process::output(Command::new("ninja").arg("--version")).is_ok() {
        arguments.push("-GNinja".to_owned());
    }
    let mut record = vec![cmake.display().to_string(), repository.display().to_string()];
    record.push(build.display().to_string());
    record.extend(arguments.iter().cloned());
    start_fresh_when_changed(build, &record.join("\n"))?;
    let mut configure = Command::new(&cmake);
    configure.arg("-S").arg(repository).arg("-B").arg(build).args(&arguments);
    eprintln!("{configure:?}");
    process::output(&mut configure).map_err(explain)?;
    let jobs = std::env::var("NUM_JOBS").unwrap_or_else(|_| "1".to_owned());
    let mut compile = Command::new(&cmake);
    compile.arg("--build").arg(build).args(["--target", "mlxc", "--parallel", &jobs]);
    // Cargo's job server is not for the make that CMake starts.
    for name in ["MAKEFLAGS", "MFLAGS", "CARGO_MAKEFLAGS"] {
        compile.env_remove(name);
    }
    eprintln!("{compile:?}");
    process::output(&mut compile).map_err(explain)?;
    Ok(())
}

/// CMake keeps folders, compiler and generator of its first run for ever.
fn start_fresh_when_changed(build: &Path, arguments: &str) -> Result<(), String> {
    let record = build.join("arguments.txt");
    if fs::read_to_string(&record).is_ok_and(|last| last == arguments) {
        return Ok(());
    }
    let explain = |error| format!("cannot prepare {}: {error}", build.display());
    if build.exists() {
        fs::remove_dir_all(build).map_err(explain)?;
    }
    fs::create_dir_all(build).map_err(explain)?;
    fs::write(&record, arguments).map_err(explain)
}

/// Messages of CMake and compilers that people meet, and what to do then.
const REMEDIES: &[(&[&str], &str)] = &[
    (
        &["Could NOT find LAPACK", "Could NOT find BLAS", "lapacke.h", "cblas.h"],
        "MLX from source needs BLAS and LAPACK with their C headers on Linux (Debian and Ubuntu: \
         apt install libopenblas-dev liblapacke-dev; Fedora: dnf install openblas-devel \
         lapack-devel), or take MLX_PROVIDER=wheel.",
    ),
    (
        &["Failed to clone", "Could not resolve host", "error: downloading", "could not find git"],
        "MLX from source is fetched with git, and json, fmt and (on macOS) metal-cpp with it. \
         Without a network, put MLX's source tree into vendor/mlx and install the others (Debian \
         and Ubuntu: apt install nlohmann-json3-dev libfmt-dev) or name their source trees in \
         MLX_CMAKE_ARGS as -DFETCHCONTENT_SOURCE_DIR_JSON=..., _FMT and _METAL_CPP; or take \
         MLX_PROVIDER=wheel.",
    ),
    (
        &["unable to find utility \"metal\"", "cannot execute tool 'metal'", "Metal Toolchain"],
        "Compiling Metal kernels needs Xcode and, from Xcode 26 on, one more component: \
         xcodebuild -downloadComponent MetalToolchain. MLX_PROVIDER=wheel does without.",
    ),
    (
        &["CMAKE_MAKE_PROGRAM is not set", "unable to find a build program"],
        "CMake drives make or ninja and found neither: install one of them.",
    ),
    (
        &["is not able to compile a simple test program", "No CMAKE_CXX_COMPILER could be found"],
        "A C++20 compiler is needed: GCC 11, Clang 14 or Xcode 15, or newer.",
    ),
];

fn explain(error: String) -> String {
    let advice: String = REMEDIES
        .iter()
        .filter(|(signs, _)| signs.iter().any(|sign| error.contains(sign)))
        .map(|(_, advice)| format!("\n{advice}"))
        .collect();
    format!("{error}\n{advice}")
}
