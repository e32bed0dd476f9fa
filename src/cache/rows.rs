//! Rows of keys and values, one for each token, as floats or packed, and the memory they lie in.

use mlx_rs::{Array, Dtype, ops};

use crate::config::QuantizationParams;
use crate::error::{Error, Result};
use crate::mlx;

/// Rows of keys or of values: [batch, key-value heads, rows, head_dim].
#[derive(Debug, Clone)]
pub(crate) enum Rows {
    /// As they are.
    Float(Array),
    /// Packed along `head_dim`, in affine mode.
    Packed(PackedRows),
}

/// Packed rows: codes [batch, heads, rows, head_dim·bits/32], scales and biases
/// [batch, heads, rows, head_dim/group_size].
#[derive(Debug, Clone)]
pub(crate) struct PackedRows {
    pub(crate) codes: Array,
    pub(crate) scales: Array,
    pub(crate) biases: Array,
    pub(crate) params: QuantizationParams,
}

impl Rows {
    /// Packs floats; what is packed already, or not to be packed, stays as it is.
    pub(crate) fn packed(self, params: Option<QuantizationParams>) -> Result<Self> {
        let (Self::Float(rows), Some(params)) = (&self, params) else { return Ok(self) };
        let int = |n: usize| i32::try_from(n).map_err(|_| wrong_shape(rows));
        let (codes, scales, biases) =
            ops::quantize(rows, int(params.group_size)?, int(params.bits)?)?;
        Ok(Self::Packed(PackedRows { codes, scales, biases, params }))
    }

    /// The rows as floats of type `dtype`.
    pub(crate) fn unpacked(&self, dtype: Dtype) -> Result<Array> {
        match self {
            Self::Float(rows) => Ok(rows.clone()),
            Self::Packed(PackedRows { codes, scales, biases, params }) => {
                mlx::dequantize(codes, scales, Some(biases), *params, dtype)
            }
        }
    }

    /// The arrays that make the rows up.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let arrays = match self {
            Self::Float(rows) => [Some(rows), None, None],
            Self::Packed(packed) => {
                [Some(&packed.codes), Some(&packed.scales), Some(&packed.biases)]
            }
        };
        arrays.into_iter().flatten()
    }

    /// The first of [`Rows::arrays`]; all have as many rows.
    fn first(&self) -> &Array {
        match self {
            Self::Float(rows) => rows,
            Self::Packed(packed) => &packed.codes,
        }
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> Result<i32> {
        let first = self.first();
        first.shape().get(2).copied().ok_or_else(|| wrong_shape(first))
    }

    /// Each array changed by `f`.
    fn map(&self, mut f: impl FnMut(&Array) -> Result<Array>) -> Result<Self> {
        Ok(match self {
            Self::Float(rows) => Self::Float(f(rows)?),
            Self::Packed(packed) => Self::Packed(PackedRows {
                codes: f(&packed.codes)?,
                scales: f(&packed.scales)?,
                biases: f(&packed.biases)?,
                params: packed.params,
            }),
        })
    }

    /// Each array joined with its counterpart by `f`, which is given the only handle of the first:
    /// MLX writes in place only where there is no other.
    fn zip(self, other: &Self, mut f: impl FnMut(Array, &Array) -> Result<Array>) -> Result<Self> {
        Ok(match (self, other) {
            (Self::Float(rows), Self::Float(others)) => Self::Float(f(rows, others)?),
            (Self::Packed(rows), Self::Packed(others)) if rows.params == others.params => {
                Self::Packed(PackedRows {
                    codes: f(rows.codes, &others.codes)?,
                    scales: f(rows.scales, &others.scales)?,
                    biases: f(rows.biases, &others.biases)?,
                    params: rows.params,
                })
            }
            _ => {
                let message = "rows that are packed in different ways".into();
                return Err(Error::Mlx { op: "cache", message });
            }
        })
    }

    /// `capacity` rows of zeros of the same kind.
    fn zeros(&self, capacity: i32) -> Result<Self> {
        self.map(|array| {
            let &[batch, heads, _, width] = array.shape() else { return Err(wrong_shape(array)) };
            Ok(ops::zeros_dtype(&[batch, heads, capacity, width], array.dtype())?)
        })
    }

    /// Replaces the rows from `at` on by `rows`. In place when no view is alive at evaluation.
    fn write(self, rows: &Self, at: i32) -> Result<Self> {
        self.zip(rows, |target, rows| {
            let &[batch, heads, length, width] = rows.shape() else {
                return Err(wrong_shape(rows));
            };
            if target.shape() == rows.shape() {
                // MLX would return `rows` themselves, often a view of something larger.
                return Ok(rows.contiguous()?);
            }
            let stop = [batch, heads, at.saturating_add(length), width];
            mlx::slice_update(target, rows, &[0, 0, at, 0], &stop)
        })
    }

    /// These rows and then `more`.
    fn followed_by(self, more: &Self) -> Result<Self> {
        self.zip(more, |rows, more| Ok(ops::concatenate(&[&rows, more], 2)?))
    }

    /// The same rows in memory of their own, give or take a page.
    fn copied(&self) -> Result<Self> {
        self.map(|array| Ok(array.contiguous()?))
    }

    /// These rows, computed after `others`.
    fn after(&self, others: &Self) -> Result<Self> {
        self.clone().zip(others, |rows, others| mlx::depends(&rows, others))
    }

    /// The rows from `start` up to `stop`. A view.
    fn view(&self, start: i32, stop: i32) -> Result<Self> {
        self.map(|array| {
            let &[batch, heads, _, width] = array.shape() else { return Err(wrong_shape(array)) };
            mlx::slice(array, &[0, 0, start, 0], &[batch, heads, stop, width])
        })
    }
}

/// Keys and values of the same tokens.
#[derive(Debug, Clone)]
pub(crate) struct KeysValues {
    pub(crate) keys: Rows,
    pub(crate) values: Rows,
}

impl KeysValues {
    /// Floats, each [batch, key-value heads, rows, head_dim].
    pub(crate) fn float(keys: Array, values: Array) -> Self {
        Self { keys: Rows::Float(keys), values: Rows::Float(values) }
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> Result<i32> {
        self.keys.count()
    }

    /// True when keys or values are packed.
    pub(super) fn is_packed(&self) -> bool {
        [&self.keys, &self.values].iter().any(|rows| matches!(rows, Rows::Packed(_)))
    }

    /// All arrays.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.keys.arrays().chain(self.values.arrays())
    }

    /// The rows from `start` up to `stop`. A view.
    pub(super) fn view(&self, start: i32, stop: i32) -> Result<Self> {
        Ok(Self { keys: self.keys.view(start, stop)?, values: self.values.view(start, stop)? })
    }

    /// These rows and then `more`.
    pub(super) fn followed_by(self, more: &Self) -> Result<Self> {
        Ok(Self {
            keys: self.keys.followed_by(&more.keys)?,
            values: self.values.followed_by(&more.values)?,
        })
    }

    /// The same rows in memory of their own: a view would keep all of what it is a view of, and
    /// the next write to that would have to copy it.
    pub(super) fn copied(&self) -> Result<Self> {
        Ok(Self { keys: self.keys.copied()?, values: self.values.copied()? })
    }

    /// These rows, computed after `others`: whoever waits for them has those as well.
    pub(super) fn after(&self, others: &Self) -> Result<Self> {
        Ok(Self {
            keys: self.keys.after(&others.keys)?,
            values: self.values.after(&others.values)?,
        })
    }

    /// Packs what is still in floats.
    pub(super) fn packed(
        self,
        keys: Option<QuantizationParams>,
        values: Option<QuantizationParams>,
    ) -> Result<Self> {
        Ok(Self { keys: self.keys.packed(keys)?, values: self.values.packed(values)? })
    }

    /// `capacity` rows of zeros of the same kind.
    pub(super) fn zeros(&self, capacity: i32) -> Result<Self> {
        Ok(Self { keys: self.keys.zeros(capacity)?, values: self.values.zeros(capacity)? })
    }

    /// Replaces the rows from `at` on by `rows`. In place when no view is alive at evaluation.
    pub(super) fn write(self, rows: &Self, at: i32) -> Result<Self> {
        Ok(Self {
            keys: self.keys.write(&rows.keys, at)?,
            values: self.values.write(&rows.values, at)?,
        })
    }
}

fn wrong_shape(array: &Array) -> Error {
    Error::Mlx { op: "cache", message: format!("keys or values of shape {:?}", array.shape()) }
}

pub(super) fn too_long() -> Error {
    Error::argument("tokens", "more than a cache can count")
}
