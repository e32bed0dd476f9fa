//! What the native build links and configures, for every supported target,
//! provider and feature: a table over the pure function in
//! `vendor/mlx-sys/build/plan.rs`.

#[allow(dead_code)]
#[path = "../vendor/mlx-sys/build/pins.rs"]
mod pins;
#[allow(dead_code)]
#[path = "../vendor/mlx-sys/build/plan.rs"]
mod plan;

use std::path::{Path, PathBuf};

use plan::{
    Cuda, Features, Folders, MacOsVersion, Metallib, Plan, Provider, Request, Target,
    plan as decide,
};

const MAC: &str = "aarch64-apple-darwin";
const LINUX_X86: &str = "x86_64-unknown-linux-gnu";
const LINUX_ARM: &str = "aarch64-unknown-linux-gnu";
const METAL: Features = Features { metal: true, metal_jit: false, cuda: false };
const CPU: Features = Features { metal: false, metal_jit: false, cuda: false };
const CUDA: Features = Features { metal: false, metal_jit: false, cuda: true };

fn request(triple: &str, provider: Provider, features: Features) -> Request {
    let target = Target::parse(triple).unwrap();
    Request {
        target,
        host: Some(target),
        provider,
        features,
        macos: MacOsVersion::OLDEST,
        cuda: Cuda::V13,
        static_prefix: false,
    }
}

fn lines(plan: &Plan) -> Vec<String> {
    let search = [PathBuf::from("/lib-folder")];
    plan.cargo_lines(&search, |_| true, Some(Path::new("/clang")))
        .into_iter()
        .map(|line| line.trim_start_matches("cargo::rustc-link-").to_owned())
        .collect()
}

fn definition<'a>(plan: &'a Plan, name: &str) -> Option<&'a str> {
    plan.definitions.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
}

const SHARED: &[&str] = &["search=native=/lib-folder", "lib=dylib=mlxc"];

#[test]
fn macos_links_what_each_provider_needs() {
    let system: &[&str] = &[
        "lib=dylib=c++",
        "lib=dylib=objc",
        "lib=framework=Foundation",
        "lib=framework=Accelerate",
        "lib=framework=Metal",
        "lib=framework=QuartzCore",
        "search=native=/clang",
        "lib=static=clang_rt.osx",
    ];
    let archives = |names: &[&'static str]| {
        let mut list = vec!["search=native=/lib-folder"];
        list.extend(names);
        list.extend(system);
        list
    };
    let new = MacOsVersion(26, 2);
    let cases: [(Provider, bool, MacOsVersion, Vec<&str>, Metallib); 5] = [
        (
            Provider::Source,
            false,
            MacOsVersion::OLDEST,
            archives(&["lib=static=mlxc", "lib=static=mlx"]),
            Metallib::Compiled,
        ),
        (
            Provider::Source,
            false,
            new,
            archives(&["lib=static=mlxc", "lib=static=mlx", "lib=static=jaccl"]),
            Metallib::Compiled,
        ),
        (Provider::Wheel, false, new, SHARED.to_vec(), Metallib::BesideLibrary),
        (Provider::Prefix, false, new, SHARED.to_vec(), Metallib::BesideLibrary),
        (
            Provider::Prefix,
            true,
            MacOsVersion::OLDEST,
            archives(&["lib=static=mlxc", "lib=static=mlx", "lib=static=gguflib"]),
            Metallib::BesideLibrary,
        ),
    ];
    for (provider, static_prefix, macos, expected, metallib) in cases {
        let plan =
            decide(&Request { static_prefix, macos, ..request(MAC, provider, METAL) }).unwrap();
        assert_eq!(lines(&plan), expected, "{provider:?}, static prefix {static_prefix}");
        assert_eq!(plan.metallib, metallib, "{provider:?}");
    }
}

#[test]
fn macos_without_metal_leaves_its_frameworks_out() {
    let plan = decide(&request(MAC, Provider::Source, CPU)).unwrap();
    let lines = lines(&plan);
    assert!(lines.contains(&"lib=framework=Accelerate".to_owned()), "{lines:?}");
    assert!(!lines.contains(&"lib=framework=Metal".to_owned()), "{lines:?}");
    assert_eq!(plan.metallib, Metallib::None);
    assert_eq!(definition(&plan, "MLX_BUILD_METAL"), Some("OFF"));
}

#[test]
fn archives_that_were_not_built_are_not_linked() {
    let macos = MacOsVersion(26, 2);
    let plan = decide(&Request { macos, ..request(MAC, Provider::Source, METAL) }).unwrap();
    let lines = plan.cargo_lines(&[], |_| false, None);
    assert!(lines.iter().all(|line| !line.contains("jaccl") && !line.contains("clang_rt")));
}

#[test]
fn linux_links_one_shared_library_whatever_the_provider() {
    for triple in [LINUX_X86, LINUX_ARM] {
        for provider in [Provider::Wheel, Provider::Source, Provider::Prefix] {
            // The default features of the published package ask for Metal.
            for features in [CPU, METAL, CUDA] {
                let request = Request {
                    static_prefix: provider == Provider::Prefix,
                    ..request(triple, provider, features)
                };
                let plan = decide(&request).unwrap();
                assert_eq!(lines(&plan), SHARED, "{triple} {provider:?} {features:?}");
                assert_eq!(plan.metallib, Metallib::None);
                assert_eq!(definition(&plan, "GPT_OSS_MLX_SHARED"), Some("ON"));
                assert_eq!(definition(&plan, "CMAKE_OSX_DEPLOYMENT_TARGET"), None);
            }
        }
    }
}

#[test]
fn every_platform_has_its_wheel() {
    let old = MacOsVersion::OLDEST;
    let table = [
        (LINUX_X86, CPU, Cuda::V13, old, "mlx-cpu", "manylinux_2_35_x86_64", "fc5d31b9"),
        (LINUX_ARM, CPU, Cuda::V13, old, "mlx-cpu", "manylinux_2_35_aarch64", "d0f94625"),
        (LINUX_X86, CUDA, Cuda::V12, old, "mlx-cuda-12", "manylinux_2_35_x86_64", "35445ead"),
        (LINUX_ARM, CUDA, Cuda::V12, old, "mlx-cuda-12", "manylinux_2_35_aarch64", "c794c697"),
        (LINUX_X86, CUDA, Cuda::V13, old, "mlx-cuda-13", "manylinux_2_35_x86_64", "335094cc"),
        (LINUX_ARM, CUDA, Cuda::V13, old, "mlx-cuda-13", "manylinux_2_35_aarch64", "49b1a25d"),
        (MAC, METAL, Cuda::V13, old, "mlx-metal", "macosx_14_0_arm64", "3825fff3"),
        (MAC, METAL, Cuda::V13, MacOsVersion(15, 0), "mlx-metal", "macosx_15_0_arm64", "55a36925"),
        // The wheel tagged 26.0 asks for 26.2 inside.
        (MAC, METAL, Cuda::V13, MacOsVersion(26, 0), "mlx-metal", "macosx_15_0_arm64", "55a36925"),
        (MAC, METAL, Cuda::V13, MacOsVersion(26, 2), "mlx-metal", "macosx_26_0_arm64", "e6abeac9"),
    ];
    for (triple, features, cuda, macos, package, platform, checksum) in table {
        let request = Request { cuda, macos, ..request(triple, Provider::Wheel, features) };
        let wheel = decide(&request).unwrap().wheel.expect("a wheel");
        assert_eq!((wheel.package, wheel.platform), (package, platform), "{triple} {features:?}");
        assert_eq!(wheel.version, "0.32.2");
        assert!(wheel.sha256.starts_with(checksum), "{triple} {features:?}: {}", wheel.sha256);
        assert_eq!(wheel.sha256.len(), 64);
    }
    for provider in [Provider::Source, Provider::Prefix] {
        assert_eq!(decide(&request(MAC, provider, METAL)).unwrap().wheel, None);
    }
}

#[test]
fn cmake_is_configured_for_the_target() {
    let source = decide(&request(MAC, Provider::Source, METAL)).unwrap();
    assert_eq!(definition(&source, "CMAKE_BUILD_TYPE"), Some("Release"));
    assert_eq!(definition(&source, "CMAKE_OSX_ARCHITECTURES"), Some("arm64"));
    assert_eq!(definition(&source, "CMAKE_OSX_DEPLOYMENT_TARGET"), Some("14.0"));
    assert_eq!(definition(&source, "GPT_OSS_MLX_FROM_SOURCE"), Some("ON"));
    assert_eq!(definition(&source, "GPT_OSS_MLX_SHARED"), Some("OFF"));
    assert_eq!(definition(&source, "MLX_BUILD_METAL"), Some("ON"));
    assert_eq!(definition(&source, "MLX_METAL_JIT"), Some("OFF"));

    let jit = Features { metal_jit: true, ..METAL };
    let jit = decide(&request(MAC, Provider::Source, jit)).unwrap();
    assert_eq!(definition(&jit, "MLX_METAL_JIT"), Some("ON"));

    let cuda = decide(&request(LINUX_X86, Provider::Source, CUDA)).unwrap();
    assert_eq!(definition(&cuda, "MLX_BUILD_CUDA"), Some("ON"));
    assert_eq!(definition(&cuda, "MLX_BUILD_METAL"), Some("OFF"));

    let native = decide(&request(LINUX_ARM, Provider::Wheel, CPU)).unwrap();
    assert_eq!(definition(&native, "CMAKE_SYSTEM_NAME"), None);
    let host = Target::parse(LINUX_X86).ok();
    let crossed = decide(&Request { host, ..request(LINUX_ARM, Provider::Wheel, CPU) }).unwrap();
    assert_eq!(definition(&crossed, "CMAKE_SYSTEM_NAME"), Some("Linux"));
    assert_eq!(definition(&crossed, "CMAKE_SYSTEM_PROCESSOR"), Some("aarch64"));
}

#[test]
fn folders_become_arguments() {
    let folders = Folders {
        mlx_library: Some("/wheel/mlx/lib/libmlx.so".into()),
        mlx_include: Some("/wheel/mlx/include".into()),
        mlx_source: None,
        mlx_c: "/mlx-c".into(),
        output: "/out".into(),
        home: Some("/home".into()),
        rpath: vec!["/wheel/mlx/lib".into(), "/cuda".into()],
    };
    let plan = decide(&request(LINUX_X86, Provider::Wheel, CPU)).unwrap();
    let arguments = plan.cmake_arguments(&folders);
    for expected in [
        "-DGPT_OSS_MLX_C_SOURCE=/mlx-c",
        "-DGPT_OSS_MLX_OUTPUT=/out",
        "-DGPT_OSS_MLX_LIBRARY=/wheel/mlx/lib/libmlx.so",
        "-DGPT_OSS_MLX_INCLUDE=/wheel/mlx/include",
        "-DGPT_OSS_MLX_HOME=/home",
        "-DGPT_OSS_MLX_RPATH=/wheel/mlx/lib;/cuda",
        "-DGPT_OSS_MLX_FROM_SOURCE=OFF",
    ] {
        assert!(arguments.iter().any(|found| found == expected), "{expected} in {arguments:?}");
    }

    let plan = decide(&request(MAC, Provider::Source, METAL)).unwrap();
    let vendored = Folders { mlx_source: Some("/vendor/mlx".into()), ..folders };
    let arguments = plan.cmake_arguments(&vendored);
    assert!(arguments.contains(&"-DFETCHCONTENT_SOURCE_DIR_MLX=/vendor/mlx".to_owned()));
    // Archives have neither a name of their own nor an rpath.
    assert!(!arguments.iter().any(|argument| argument.contains("RPATH")), "{arguments:?}");
}

#[test]
fn the_provider_is_chosen_by_one_variable() {
    let mac = Target::parse(MAC).unwrap();
    let linux = Target::parse(LINUX_ARM).unwrap();
    let table = [
        (None, false, mac, Ok(Provider::Source)),
        (None, false, linux, Ok(Provider::Wheel)),
        (None, true, mac, Ok(Provider::Prefix)),
        (Some("wheel"), true, mac, Ok(Provider::Wheel)),
        (Some("source"), false, linux, Ok(Provider::Source)),
        (Some("prefix"), false, linux, Ok(Provider::Prefix)),
    ];
    for (variable, prefix, target, expected) in table {
        assert_eq!(Provider::choose(variable, prefix, target), expected, "{variable:?} {prefix}");
    }
    let error = Provider::choose(Some("brew"), false, mac).unwrap_err();
    assert!(error.contains("MLX_PROVIDER") && error.contains("brew"), "{error}");
}

#[test]
fn versions_are_read_and_checked() {
    assert_eq!(MacOsVersion::choose(None), Ok(MacOsVersion(14, 0)));
    assert_eq!(MacOsVersion::choose(Some("15")), Ok(MacOsVersion(15, 0)));
    assert_eq!(MacOsVersion::choose(Some("26.2.1")), Ok(MacOsVersion(26, 2)));
    for wrong in ["13.3", "", "new", "15.x"] {
        let error = MacOsVersion::choose(Some(wrong)).unwrap_err();
        assert!(error.contains("MACOSX_DEPLOYMENT_TARGET"), "{error}");
    }

    let only = |present: Cuda| move |asked: Cuda| asked == present;
    assert_eq!(Cuda::choose(Some("12"), only(Cuda::V13)), Ok(Cuda::V12));
    assert_eq!(Cuda::choose(None, only(Cuda::V12)), Ok(Cuda::V12));
    assert_eq!(Cuda::choose(None, |_| true), Ok(Cuda::V13));
    assert_eq!(Cuda::choose(None, |_| false), Ok(Cuda::V13));
    assert!(Cuda::choose(Some("11"), |_| true).unwrap_err().contains("MLX_CUDA"));
}

#[test]
fn what_cannot_be_built_is_refused_by_name() {
    for triple in [
        "x86_64-apple-darwin",
        "aarch64-apple-ios",
        "x86_64-pc-windows-msvc",
        "x86_64-unknown-linux-musl",
    ] {
        let error = Target::parse(triple).unwrap_err();
        assert!(error.contains(triple), "{error}");
    }
    for provider in [Provider::Wheel, Provider::Source, Provider::Prefix] {
        let error = decide(&request(MAC, provider, CUDA)).unwrap_err();
        assert!(error.contains("cuda"), "{error}");
    }
    let jit = Features { metal_jit: true, ..METAL };
    let error = decide(&request(MAC, Provider::Wheel, jit)).unwrap_err();
    assert!(error.contains("metal-jit") && error.contains("MLX_PROVIDER=source"), "{error}");
}
