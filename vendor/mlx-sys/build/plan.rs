//! What is built and linked for a target, a provider and a set of features.
//!
//! Nothing here looks at the machine: the answers are a function of the
//! question, and `tests/native_link.rs` of the top package holds the table.

use std::path::{Path, PathBuf};

use crate::pins::{self, Wheel};

/// Operating systems that MLX runs on and this crate supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Os {
    MacOs,
    Linux,
}

/// Processors that MLX is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    Aarch64,
    X86_64,
}

/// A supported target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub os: Os,
    pub arch: Arch,
}

impl Target {
    /// Reads a target triple; one that is not supported is named in the error.
    pub fn parse(triple: &str) -> Result<Self, String> {
        let (os, arch) = match triple {
            "aarch64-apple-darwin" => (Os::MacOs, Arch::Aarch64),
            "x86_64-unknown-linux-gnu" => (Os::Linux, Arch::X86_64),
            "aarch64-unknown-linux-gnu" => (Os::Linux, Arch::Aarch64),
            other => {
                return Err(format!(
                    "target {other} is not supported: MLX {} is built for aarch64-apple-darwin, \
                     x86_64-unknown-linux-gnu and aarch64-unknown-linux-gnu",
                    pins::MLX_VERSION
                ));
            }
        };
        Ok(Self { os, arch })
    }

    /// File name of the shared library `name`.
    pub fn shared_library(self, name: &str) -> String {
        match self.os {
            Os::MacOs => format!("lib{name}.dylib"),
            Os::Linux => format!("lib{name}.so"),
        }
    }
}

/// Where MLX comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Apple's prebuilt library, out of a Python wheel.
    Wheel,
    /// Compiled here, from `vendor/mlx` or the pinned commit.
    Source,
    /// Installed already, at `MLX_PREFIX`.
    Prefix,
}

impl Provider {
    /// The one that `MLX_PROVIDER` names, else the target's default; a set
    /// `MLX_PREFIX` alone asks for that installation.
    pub fn choose(
        variable: Option<&str>,
        has_prefix: bool,
        target: Target,
    ) -> Result<Self, String> {
        match variable {
            Some("wheel") => Ok(Self::Wheel),
            Some("source") => Ok(Self::Source),
            Some("prefix") => Ok(Self::Prefix),
            Some(other) => {
                Err(format!("MLX_PROVIDER is {other:?}; it takes wheel, source or prefix"))
            }
            None if has_prefix => Ok(Self::Prefix),
            None => Ok(match target.os {
                Os::MacOs => Self::Source,
                Os::Linux => Self::Wheel,
            }),
        }
    }
}

/// Cargo features that change the native part. `accelerate` is not among
/// them: MLX uses that framework wherever it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    pub metal: bool,
    pub metal_jit: bool,
    pub cuda: bool,
}

/// Major version of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cuda {
    V12,
    V13,
}

impl Cuda {
    /// The one that `MLX_CUDA` names, else the newest whose libraries are
    /// `present`, else 13.
    pub fn choose(variable: Option<&str>, present: impl Fn(Self) -> bool) -> Result<Self, String> {
        match variable {
            Some("12") => Ok(Self::V12),
            Some("13") => Ok(Self::V13),
            Some(other) => Err(format!("MLX_CUDA is {other:?}; it takes 12 or 13")),
            None if !present(Self::V13) && present(Self::V12) => Ok(Self::V12),
            None => Ok(Self::V13),
        }
    }

    /// Libraries outside MLX's wheel that its `libmlx.so` needs.
    pub fn libraries(self) -> [&'static str; 6] {
        match self {
            Self::V12 => [
                "libcuda.so.1",
                "libcublasLt.so.12",
                "libcufft.so.11",
                "libnvrtc.so.12",
                "libcudnn.so.9",
                "libnccl.so.2",
            ],
            Self::V13 => [
                "libcuda.so.1",
                "libcublasLt.so.13",
                "libcufft.so.12",
                "libnvrtc.so.13",
                "libcudnn.so.9",
                "libnccl.so.2",
            ],
        }
    }
}

/// Oldest macOS that the result runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MacOsVersion(pub u32, pub u32);

impl MacOsVersion {
    /// The oldest that MLX supports, and the default: left unset, the tools
    /// would take the SDK's own version and the result run nowhere else.
    pub const OLDEST: Self = Self(14, 0);

    /// Oldest version whose kernels may use the M5's neural accelerators.
    pub const ACCELERATED: Self = Self(26, 2);

    /// Reads `MACOSX_DEPLOYMENT_TARGET`.
    pub fn choose(variable: Option<&str>) -> Result<Self, String> {
        let Some(text) = variable else { return Ok(Self::OLDEST) };
        let mut numbers = text.split('.').map(str::parse);
        let version = match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), None) => Self(major, 0),
            (Some(Ok(major)), Some(Ok(minor))) => Self(major, minor),
            _ => return Err(format!("MACOSX_DEPLOYMENT_TARGET is {text:?}, not a version")),
        };
        if version < Self::OLDEST {
            return Err(format!(
                "MACOSX_DEPLOYMENT_TARGET is {text}; MLX needs 14.0 or newer (unset means 14.0)"
            ));
        }
        Ok(version)
    }
}

/// All that the plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub target: Target,
    /// The machine that compiles; another target needs a cross compiler.
    pub host: Option<Target>,
    pub provider: Provider,
    pub features: Features,
    pub macos: MacOsVersion,
    pub cuda: Cuda,
    /// The installation at `MLX_PREFIX` has `libmlx.a` only.
    pub static_prefix: bool,
}

/// One thing that the Rust binary is linked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A shared library that this build makes.
    Shared(&'static str),
    /// An archive that this build makes, or finds at the prefix.
    Archive(&'static str),
    /// An archive that only some SDKs make MLX build.
    ArchiveIfBuilt(&'static str),
    /// A library of the system.
    System(&'static str),
    /// A framework of macOS.
    Framework(&'static str),
    /// Clang's own runtime (`__isPlatformVersionAtLeast`), which rustc's
    /// call of the linker leaves out; found with xcrun.
    ClangRuntime,
}

/// Where MLX's compiled Metal kernels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metallib {
    /// There are none.
    None,
    /// Beside libmlx, where MLX looks by itself.
    BesideLibrary,
    /// Compiled by this build; the path is compiled into libmlx as well.
    Compiled,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What the `wheel` provider fetches.
    pub wheel: Option<&'static Wheel>,
    /// mlx-c becomes a shared library that names its own dependencies. A
    /// binary that is linked with it names it by its full path, so neither
    /// needs an rpath from the crates on top. Otherwise: archives.
    pub shared: bool,
    /// What the Rust binary is linked with, in the linker's order.
    pub link: Vec<Link>,
    /// Variables of the CMake run that do not depend on folders.
    pub definitions: Vec<(&'static str, String)>,
    pub metallib: Metallib,
}

/// Folders that a build has found or made.
#[derive(Clone, Debug, Default)]
pub struct Folders {
    /// `libmlx` with its path: providers `wheel` and `prefix`.
    pub mlx_library: Option<PathBuf>,
    /// MLX's headers: providers `wheel` and `prefix`.
    pub mlx_include: Option<PathBuf>,
    /// MLX's source: provider `source` with `vendor/mlx`.
    pub mlx_source: Option<PathBuf>,
    /// mlx-c's source.
    pub mlx_c: PathBuf,
    /// Where CMake leaves libraries and kernels.
    pub output: PathBuf,
    /// Where libmlxc will lie when binaries run; none: it may be moved.
    pub home: Option<PathBuf>,
    /// Folders in which libmlxc looks for what it needs.
    pub rpath: Vec<String>,
}

/// The plan for `request`, or what is wrong with it.
pub fn plan(request: &Request) -> Result<Plan, String> {
    let Request { target, provider, features, .. } = *request;
    if features.cuda && target.os == Os::MacOs {
        return Err("the feature `cuda` is for Linux; on macOS MLX runs on Metal".to_owned());
    }
    let shared = match (target.os, provider) {
        (Os::Linux, _) | (_, Provider::Wheel) => true,
        (Os::MacOs, Provider::Source) => false,
        (Os::MacOs, Provider::Prefix) => !request.static_prefix,
    };
    let metal = target.os == Os::MacOs && features.metal;
    let wheel = match provider {
        Provider::Wheel => Some(wheel(request)?),
        Provider::Source | Provider::Prefix => None,
    };
    Ok(Plan {
        wheel,
        shared,
        link: if shared { vec![Link::Shared("mlxc")] } else { archives(request, metal) },
        definitions: definitions(request, shared, metal),
        metallib: match (metal, provider) {
            (false, _) => Metallib::None,
            (true, Provider::Source) => Metallib::Compiled,
            (true, _) => Metallib::BesideLibrary,
        },
    })
}

fn wheel(request: &Request) -> Result<&'static Wheel, String> {
    let Request { target, features, macos, cuda, .. } = *request;
    Ok(match (target.os, target.arch, features.cuda, cuda) {
        (Os::Linux, Arch::X86_64, false, _) => &pins::CPU_X86_64,
        (Os::Linux, Arch::Aarch64, false, _) => &pins::CPU_AARCH64,
        (Os::Linux, Arch::X86_64, true, Cuda::V12) => &pins::CUDA_12_X86_64,
        (Os::Linux, Arch::Aarch64, true, Cuda::V12) => &pins::CUDA_12_AARCH64,
        (Os::Linux, Arch::X86_64, true, Cuda::V13) => &pins::CUDA_13_X86_64,
        (Os::Linux, Arch::Aarch64, true, Cuda::V13) => &pins::CUDA_13_AARCH64,
        (Os::MacOs, ..) if features.metal_jit => {
            return Err("the feature `metal-jit` compiles MLX in another way and the wheel is \
                        compiled already: set MLX_PROVIDER=source, or leave the feature out"
                .to_owned());
        }
        // The newest wheel that still runs on the deployment target.
        (Os::MacOs, ..) if macos >= MacOsVersion::ACCELERATED => &pins::METAL_26,
        (Os::MacOs, ..) if macos >= MacOsVersion(15, 0) => &pins::METAL_15,
        (Os::MacOs, ..) => &pins::METAL_14,
    })
}

/// macOS, from archives: everything ends up in the one executable.
fn archives(request: &Request, metal: bool) -> Vec<Link> {
    let mut link = vec![Link::Archive("mlxc"), Link::Archive("mlx")];
    if request.macos >= MacOsVersion::ACCELERATED {
        link.push(Link::ArchiveIfBuilt("jaccl"));
    }
    if request.provider == Provider::Prefix {
        link.push(Link::ArchiveIfBuilt("gguflib"));
    }
    link.extend([Link::System("c++"), Link::System("objc")]);
    link.extend([Link::Framework("Foundation"), Link::Framework("Accelerate")]);
    if metal {
        link.extend([Link::Framework("Metal"), Link::Framework("QuartzCore")]);
    }
    link.push(Link::ClangRuntime);
    link
}

fn definitions(request: &Request, shared: bool, metal: bool) -> Vec<(&'static str, String)> {
    let Request { target, host, provider, features, macos, .. } = *request;
    let switch = |on: bool| if on { "ON" } else { "OFF" }.to_owned();
    let mut list = vec![
        ("CMAKE_BUILD_TYPE", "Release".to_owned()),
        ("GPT_OSS_MLX_FROM_SOURCE", switch(provider == Provider::Source)),
        ("GPT_OSS_MLX_SHARED", switch(shared)),
    ];
    match target.os {
        Os::MacOs => {
            list.push(("CMAKE_OSX_ARCHITECTURES", "arm64".to_owned()));
            list.push(("CMAKE_OSX_DEPLOYMENT_TARGET", format!("{}.{}", macos.0, macos.1)));
        }
        Os::Linux if host.is_some_and(|host| host != target) => {
            let processor = match target.arch {
                Arch::Aarch64 => "aarch64",
                Arch::X86_64 => "x86_64",
            };
            list.push(("CMAKE_SYSTEM_NAME", "Linux".to_owned()));
            list.push(("CMAKE_SYSTEM_PROCESSOR", processor.to_owned()));
        }
        Os::Linux => {}
    }
    if provider == Provider::Source {
        list.push(("MLX_BUILD_METAL", switch(metal)));
        list.push(("MLX_METAL_JIT", switch(metal && features.metal_jit)));
        list.push(("MLX_BUILD_CUDA", switch(features.cuda)));
    }
    list
}

impl Plan {
    /// Every variable of the CMake run, as `-DNAME=VALUE`.
    pub fn cmake_arguments(&self, folders: &Folders) -> Vec<String> {
        let mut list: Vec<String> =
            self.definitions.iter().map(|(name, value)| format!("-D{name}={value}")).collect();
        let mut path = |name: &str, path: &Path| {
            list.push(format!("-D{name}={}", path.display()));
        };
        path("GPT_OSS_MLX_C_SOURCE", &folders.mlx_c);
        path("GPT_OSS_MLX_OUTPUT", &folders.output);
        if let Some(library) = &folders.mlx_library {
            path("GPT_OSS_MLX_LIBRARY", library);
        }
        if let Some(include) = &folders.mlx_include {
            path("GPT_OSS_MLX_INCLUDE", include);
        }
        if let Some(source) = &folders.mlx_source {
            path("FETCHCONTENT_SOURCE_DIR_MLX", source);
        }
        if self.shared {
            if let Some(home) = &folders.home {
                path("GPT_OSS_MLX_HOME", home);
            }
            list.push(format!("-DGPT_OSS_MLX_RPATH={}", folders.rpath.join(";")));
        }
        list
    }

    /// What cargo is told: `search` are the folders of libraries, `built`
    /// says whether an optional archive exists, `clang_runtime` is the folder
    /// of Clang's runtime where there is one.
    pub fn cargo_lines(
        &self,
        search: &[PathBuf],
        built: impl Fn(&str) -> bool,
        clang_runtime: Option<&Path>,
    ) -> Vec<String> {
        let mut lines: Vec<String> = search
            .iter()
            .map(|folder| format!("cargo::rustc-link-search=native={}", folder.display()))
            .collect();
        for link in &self.link {
            match link {
                Link::Shared(name) => lines.push(format!("cargo::rustc-link-lib=dylib={name}")),
                Link::Archive(name) => lines.push(format!("cargo::rustc-link-lib=static={name}")),
                Link::ArchiveIfBuilt(name) if built(name) => {
                    lines.push(format!("cargo::rustc-link-lib=static={name}"));
                }
                Link::ArchiveIfBuilt(_) => {}
                Link::System(name) => lines.push(format!("cargo::rustc-link-lib=dylib={name}")),
                Link::Framework(name) => {
                    lines.push(format!("cargo::rustc-link-lib=framework={name}"));
                }
                Link::ClangRuntime => {
                    if let Some(folder) = clang_runtime {
                        lines.push(format!("cargo::rustc-link-search=native={}", folder.display()));
                        lines.push("cargo::rustc-link-lib=static=clang_rt.osx".to_owned());
                    }
                }
            }
        }
        lines
    }
}
