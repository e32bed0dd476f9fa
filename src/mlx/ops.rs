//! Operations that mlx-rs lacks or hard-codes: quantized products with a mode, slices with bounds
//! computed at run time.

use std::ffi::CStr;

use mlx_rs::{Array, Dtype};

use super::error::call;
use crate::config::{Mode, QuantizationParams};
use crate::error::{Error, Result};

/// MLX's name of a quantization mode.
const fn mode_name(mode: Mode) -> &'static CStr {
    match mode {
        Mode::Affine => c"affine",
        Mode::Mxfp4 => c"mxfp4",
    }
}

fn optional_int(value: usize) -> mlx_sys::mlx_optional_int {
    // Group sizes and bits are validated when the config is read; they are at most 128.
    mlx_sys::mlx_optional_int { value: i32::try_from(value).unwrap_or(0), has_value: true }
}

/// The handle of an optional array: MLX takes an empty one for "none".
fn optional(array: Option<&Array>) -> mlx_sys::mlx_array {
    match array {
        Some(array) => array.as_ptr(),
        // SAFETY: creates an empty handle (a null pointer inside) that needs no freeing.
        None => unsafe { mlx_sys::mlx_array_new() },
    }
}

/// `x @ dequantize(weight)ᵀ`: `x` [..., in], packed `weight` [..., out, in·bits/32] → [..., out].
/// Without `transpose`, `x @ dequantize(weight)`: `x` [..., rows], `weight` [..., rows, out·bits/32].
pub(crate) fn quantized_matmul(
    x: &Array,
    weight: &Array,
    scales: &Array,
    biases: Option<&Array>,
    params: QuantizationParams,
    transpose: bool,
) -> Result<Array> {
    call("quantized_matmul", |out, stream| {
        // SAFETY: all handles are borrowed from live arrays for the duration of the call.
        unsafe {
            mlx_sys::mlx_quantized_matmul(
                out,
                x.as_ptr(),
                weight.as_ptr(),
                scales.as_ptr(),
                optional(biases),
                transpose,
                optional_int(params.group_size),
                optional_int(params.bits),
                mode_name(params.mode).as_ptr(),
                stream,
            )
        }
    })
}

/// Which row of `x` meets which expert's matrix in [`gather_qmm`] and [`gather_mm`].
pub(crate) struct GatherIndices<'a> {
    /// For each product the row of `x` (over its batch dimensions), u32; none = broadcast.
    pub(crate) lhs: Option<&'a Array>,
    /// For each product the expert, u32.
    pub(crate) rhs: &'a Array,
    /// `rhs` is sorted: MLX may then take each expert's rows as one matrix product.
    pub(crate) sorted: bool,
}

/// The product of each gathered row with its own expert's packed matrix:
/// `x` [..., 1, in], `weight` [experts, out, in·bits/32] → [..., 1, out].
pub(crate) fn gather_qmm(
    x: &Array,
    weight: &Array,
    scales: &Array,
    biases: Option<&Array>,
    params: QuantizationParams,
    indices: &GatherIndices<'_>,
) -> Result<Array> {
    call("gather_qmm", |out, stream| {
        // SAFETY: all handles are borrowed from live arrays for the duration of the call.
        unsafe {
            mlx_sys::mlx_gather_qmm(
                out,
                x.as_ptr(),
                weight.as_ptr(),
                scales.as_ptr(),
                optional(biases),
                optional(indices.lhs),
                indices.rhs.as_ptr(),
                true,
                optional_int(params.group_size),
                optional_int(params.bits),
                mode_name(params.mode).as_ptr(),
                indices.sorted,
                stream,
            )
        }
    })
}

/// [`gather_qmm`] for matrices that are not quantized: `weight` [experts, in, out].
pub(crate) fn gather_mm(x: &Array, weight: &Array, indices: &GatherIndices<'_>) -> Result<Array> {
    call("gather_mm", |out, stream| {
        // SAFETY: all handles are borrowed from live arrays for the duration of the call.
        unsafe {
            mlx_sys::mlx_gather_mm(
                out,
                x.as_ptr(),
                weight.as_ptr(),
                optional(indices.lhs),
                indices.rhs.as_ptr(),
                indices.sorted,
                stream,
            )
        }
    })
}

/// Unpacks `weight` [..., in·bits/32] to [..., in] in `dtype`.
pub(crate) fn dequantize(
    weight: &Array,
    scales: &Array,
    biases: Option<&Array>,
    params: QuantizationParams,
    dtype: Dtype,
) -> Result<Array> {
    let dtype = mlx_sys::mlx_optional_dtype { value: dtype.into(), has_value: true };
    call("dequantize", |out, stream| {
        // SAFETY: all handles are borrowed from live arrays for the duration of the call.
        unsafe {
            mlx_sys::mlx_dequantize(
                out,
                weight.as_ptr(),
                scales.as_ptr(),
                optional(biases),
                optional_int(params.group_size),
                optional_int(params.bits),
                mode_name(params.mode).as_ptr(),
                optional(None),
                dtype,
                stream,
            )
        }
    })
}

/// Most dimensions that an array here has.
const MAX_DIMS: usize = 8;
const UNIT_STRIDES: [i32; MAX_DIMS] = [1; MAX_DIMS];

fn check_bounds(op: &'static str, start: &[i32], stop: &[i32]) -> Result<()> {
    if start.len() == stop.len() && start.len() <= MAX_DIMS {
        return Ok(());
    }
    let message = format!("{} starts and {} stops", start.len(), stop.len());
    Err(Error::Mlx { op, message })
}

/// The part of `array` from `start` up to, not including, `stop` in every dimension. A view.
pub(crate) fn slice(array: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    check_bounds("slice", start, stop)?;
    call("slice", |out, stream| {
        // SAFETY: the pointers and lengths describe live slices, `UNIT_STRIDES` is as long as any
        // of them, and the handle is borrowed from a live array.
        unsafe {
            mlx_sys::mlx_slice(
                out,
                array.as_ptr(),
                start.as_ptr(),
                start.len(),
                stop.as_ptr(),
                stop.len(),
                UNIT_STRIDES.as_ptr(),
                start.len(),
                stream,
            )
        }
    })
}

/// `array` with the part from `start` to `stop` replaced by `update`. Done in place when nothing
/// else holds `array`, so the caller gives it up.
pub(crate) fn slice_update(
    array: Array,
    update: &Array,
    start: &[i32],
    stop: &[i32],
) -> Result<Array> {
    check_bounds("slice_update", start, stop)?;
    call("slice_update", |out, stream| {
        // SAFETY: as in `slice`; both handles are borrowed from live arrays.
        unsafe {
            mlx_sys::mlx_slice_update(
                out,
                array.as_ptr(),
                update.as_ptr(),
                start.as_ptr(),
                start.len(),
                stop.as_ptr(),
                stop.len(),
                UNIT_STRIDES.as_ptr(),
                start.len(),
                stream,
            )
        }
    })
}

/// `array`, which is not computed before `on` is.
pub(crate) fn depends(array: &Array, on: &Array) -> Result<Array> {
    call("depends", |out, _| {
        // SAFETY: both handles are borrowed from live arrays; the vectors keep references of their
        // own and are freed here, and `get` fills `out` with another reference.
        unsafe {
            let inputs = mlx_sys::mlx_vector_array_new_data(&array.as_ptr(), 1);
            let dependencies = mlx_sys::mlx_vector_array_new_data(&on.as_ptr(), 1);
            let mut outputs = mlx_sys::mlx_vector_array_new();
            let mut status = mlx_sys::mlx_depends(&mut outputs, inputs, dependencies);
            if status == 0 {
                status = mlx_sys::mlx_vector_array_get(out, outputs, 0);
            }
            for vector in [inputs, dependencies, outputs] {
                mlx_sys::mlx_vector_array_free(vector);
            }
            status
        }
    })
}
