//! Everything that is `unsafe`: the few MLX operations that mlx-rs lacks, arrays over memory that
//! we own, compiled functions without captured state, what MLX says about a device, MLX's error
//! text, and the end of the process. Nothing here knows about GPT-OSS.

mod compile;
mod data;
mod device;
mod device_info;
mod error;
mod exit;
mod map;
mod metallib;
mod ops;
mod random;

pub(crate) use compile::{Compiled, PureFn};
#[cfg(test)]
pub(crate) use data::is_available;
pub(crate) use data::{array_from_map, array_from_parts, row_bytes, wraps_maps};
pub use device::Device;
pub(crate) use device::{clear_cache, held_memory, peak_memory};
pub(crate) use device_info::{GpuMemory, gpu_memory};
pub(crate) use exit::{Working, hold_exit, is_exiting};
pub(crate) use map::map_file;
pub(crate) use ops::{
    GatherIndices, depends, dequantize, gather_mm, gather_qmm, quantized_matmul, slice,
    slice_update,
};
pub(crate) use random::random_uniform;
