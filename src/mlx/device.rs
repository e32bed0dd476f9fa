//! Where the work runs, and MLX's memory counters.

use mlx_rs::{DeviceType, Stream};

use super::error::install_handler;
use crate::error::Result;

/// The device that a model runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The GPU where this build has one (Metal on macOS, CUDA on Linux), else the CPU.
    #[default]
    Auto,
    /// The CPU, also where there is a GPU.
    Cpu,
}

impl Device {
    /// True when the work runs on a GPU.
    pub(crate) fn is_gpu(self) -> bool {
        install_handler();
        self == Self::Auto
            && mlx_rs::Device::try_default()
                .and_then(|device| device.get_type())
                .is_ok_and(|kind| matches!(kind, DeviceType::Gpu))
    }

    /// Runs `f` with this device's default stream of the calling thread.
    pub(crate) fn run<T>(self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        install_handler();
        let device = match self {
            Self::Auto => mlx_rs::Device::try_default()?,
            Self::Cpu => mlx_rs::Device::cpu(),
        };
        let stream = Stream::try_default_on_device(&device)?;
        mlx_rs::with_stream(&stream, f)
    }
}

/// Gives memory that MLX keeps for reuse back to the system.
pub(crate) fn clear_cache() -> Result<()> {
    Ok(mlx_rs::memory::clear_cache()?)
}

/// The most memory that MLX held at any time in this process, in bytes.
pub(crate) fn peak_memory() -> Result<usize> {
    Ok(mlx_rs::memory::peak_memory()?)
}

/// Bytes that MLX holds in this process: in arrays, and kept for reuse.
pub(crate) fn held_memory() -> Result<(u64, u64)> {
    install_handler();
    let bytes = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Ok((bytes(mlx_rs::memory::active_memory()?), bytes(mlx_rs::memory::cache_memory()?)))
}
