//! What MLX says about a device's memory.

use std::ffi::CStr;

use mlx_rs::DeviceType;

use super::error::{check, install_handler};
use crate::error::Result;

/// Bytes of a GPU's memory, as far as its backend tells them; the CPU's tells none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GpuMemory {
    /// Metal: what the GPU can use at once without slowing down, about two thirds to three quarters
    /// of a Mac's memory.
    pub(crate) working_set: Option<u64>,
    /// CUDA: what nobody uses.
    pub(crate) free: Option<u64>,
}

/// Frees the handle on every way out.
struct Info(mlx_sys::mlx_device_info);

impl Drop for Info {
    fn drop(&mut self) {
        // SAFETY: made by `mlx_device_info_new` in `gpu_memory` and freed only here.
        unsafe { mlx_sys::mlx_device_info_free(self.0) };
    }
}

impl Info {
    /// A number of the table; None when the backend does not give it.
    fn size(&self, key: &CStr) -> Option<u64> {
        let mut value = 0usize;
        // SAFETY: the handle is live, the key ends in NUL, and the result goes to a local. A key
        // that is missing or names a text gives a status and leaves the result alone.
        let status = unsafe { mlx_sys::mlx_device_info_get_size(&mut value, self.0, key.as_ptr()) };
        (status == 0).then(|| u64::try_from(value).ok()).flatten()
    }
}

/// The memory of the first GPU. Only to be asked where there is one.
///
/// # Errors
/// [`crate::Error::Mlx`] when MLX cannot ask the device.
pub(crate) fn gpu_memory() -> Result<GpuMemory> {
    install_handler();
    device_memory(DeviceType::Gpu)
}

fn device_memory(kind: DeviceType) -> Result<GpuMemory> {
    let kind = match kind {
        DeviceType::Cpu => mlx_sys::mlx_device_type__MLX_CPU,
        DeviceType::Gpu => mlx_sys::mlx_device_type__MLX_GPU,
    };
    // SAFETY: creates a handle that we own; `Info` and the line below free each once.
    let (mut info, device) =
        unsafe { (Info(mlx_sys::mlx_device_info_new()), mlx_sys::mlx_device_new_type(kind, 0)) };
    // SAFETY: both handles are live; MLX copies the table into `info`.
    let status = unsafe { mlx_sys::mlx_device_info_get(&mut info.0, device) };
    // SAFETY: the handle is ours and not used again.
    unsafe { mlx_sys::mlx_device_free(device) };
    check("device_info", status)?;
    Ok(GpuMemory {
        working_set: info.size(c"max_recommended_working_set_size"),
        free: info.size(c"free_memory"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_memory_of_its_own_tells_none() {
        install_handler();
        assert_eq!(device_memory(DeviceType::Cpu).unwrap(), GpuMemory::default());
    }
}
