//! Versions, commits and checksums: everything that the build may download.
//!
//! mlx-c is not here: `vendor/sources/Cargo.lock` pins the published package
//! that carries it. The archives that MLX's own CMake files fetch are pinned
//! in the top `CMakeLists.txt`, beside the commit of MLX.

/// The MLX that mlx-c 0.7.0 is written for.
pub const MLX_VERSION: &str = "0.32.2";

/// The mlx-c that the bindings are generated from.
pub const MLX_C_VERSION: &str = "0.7.0";

/// The oldest CMake that MLX configures with.
pub const CMAKE_MINIMUM: (u32, u32) = (3, 25);

/// The glibc that MLX's Linux wheels were linked with.
pub const GLIBC_MINIMUM: (u32, u32) = (2, 35);

/// A wheel on the Python package index, for one platform.
#[derive(Debug, PartialEq, Eq)]
pub struct Wheel {
    /// Name of the package.
    pub package: &'static str,
    /// Version of the package.
    pub version: &'static str,
    /// Platform tag, as `pip --platform` takes it.
    pub platform: &'static str,
    /// Checksum of the file.
    pub sha256: &'static str,
}

impl Wheel {
    /// Name of the wheel's folder in the cache: changes with its contents.
    #[allow(dead_code)] // the table test does not unpack anything
    pub fn key(&self) -> String {
        let (checksum, _) = self.sha256.split_at(16);
        format!("{}-{}-{}-{checksum}", self.package, self.version, self.platform)
    }
}

const fn mlx(package: &'static str, platform: &'static str, sha256: &'static str) -> Wheel {
    Wheel { package, version: MLX_VERSION, platform, sha256 }
}

const LINUX_X86_64: &str = "manylinux_2_35_x86_64";
const LINUX_AARCH64: &str = "manylinux_2_35_aarch64";

pub const CPU_X86_64: Wheel = mlx(
    "mlx-cpu",
    LINUX_X86_64,
    "fc5d31b90fc4f457b2f9614ed45651a567d22a6a11a03d114a90a4e10bdd8878",
);
pub const CPU_AARCH64: Wheel = mlx(
    "mlx-cpu",
    LINUX_AARCH64,
    "d0f94625588b51a878786dd51cec5617894ce586cf3c94645ce1b64e24c27c0b",
);
pub const CUDA_12_X86_64: Wheel = mlx(
    "mlx-cuda-12",
    LINUX_X86_64,
    "35445ead9724855826f310b9085d57137d0a2c5381cc293cb6d86b03bb4feadf",
);
pub const CUDA_12_AARCH64: Wheel = mlx(
    "mlx-cuda-12",
    LINUX_AARCH64,
    "c794c697dcd28e00a51ce8813189ece1a8c62559de7cc5e27803cc591f55df05",
);
pub const CUDA_13_X86_64: Wheel = mlx(
    "mlx-cuda-13",
    LINUX_X86_64,
    "335094ccd1c0c6dc3e09c8caba207c8180602bacc0c38ba20c1d81e9456ab394",
);
pub const CUDA_13_AARCH64: Wheel = mlx(
    "mlx-cuda-13",
    LINUX_AARCH64,
    "49b1a25df9021f3b519a534fd39a32a5cdbf93a1b265a31e59671c2d9fc9f4a2",
);
pub const METAL_14: Wheel = mlx(
    "mlx-metal",
    "macosx_14_0_arm64",
    "3825fff379dbc107dd3413e564a06caeaa24819910ec49c0439e454c06a1b9b8",
);
pub const METAL_15: Wheel = mlx(
    "mlx-metal",
    "macosx_15_0_arm64",
    "55a369250d220b2cf10213a87a2ac1b1a420608c5b35b1df4e7147ac8e32f121",
);
pub const METAL_26: Wheel = mlx(
    "mlx-metal",
    "macosx_26_0_arm64",
    "e6abeac9ac5265830c9c1541b6f96e9be37a85c2446763a46ad466c63a3837ab",
);

const fn cmake(platform: &'static str, sha256: &'static str) -> Wheel {
    Wheel { package: "cmake", version: "3.31.10", platform, sha256 }
}

pub const CMAKE_LINUX_X86_64: Wheel = cmake(
    "manylinux_2_17_x86_64",
    "2f766bb46367e5e0559fa33184653754bce044583a06014dcaebf8e6dff8a1f1",
);
pub const CMAKE_LINUX_AARCH64: Wheel = cmake(
    "manylinux_2_17_aarch64",
    "a4a5615f31f692c9b9aa8b365704e4b76172348af6fa40e16fea3f118bb01194",
);
pub const CMAKE_MACOS: Wheel = cmake(
    "macosx_10_10_universal2",
    "ad697643a00d9ba85179590a383c4f7401169b55ebf4b8b2938daf28c6bdeb6d",
);
