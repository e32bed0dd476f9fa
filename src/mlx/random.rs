//! Random numbers with an explicit key. mlx-rs's own module keeps a global state seeded from the
//! clock; a reproducible sampler wants neither.

use mlx_rs::{Array, Dtype};

use super::error::call;
use crate::error::Result;

/// Uniform f32 numbers in [0, 1) of the given shape. `key`: u32 [2].
pub(crate) fn random_uniform(key: &Array, shape: &[i32]) -> Result<Array> {
    let (low, high) = (Array::from_f32(0.0), Array::from_f32(1.0));
    call("random_uniform", |out, stream| {
        // SAFETY: the pointer and length describe a live slice; the handles are borrowed.
        unsafe {
            mlx_sys::mlx_random_uniform(
                out,
                low.as_ptr(),
                high.as_ptr(),
                shape.as_ptr(),
                shape.len(),
                Dtype::Float32.into(),
                key.as_ptr(),
                stream,
            )
        }
    })
}
