//! Linear layers, embeddings and their per-expert forms, quantized or not.

use mlx_rs::{Array, Dtype, ops};

use crate::config::QuantizationParams;
use crate::error::Result;
use crate::mlx::{self, GatherIndices};

/// The numbers of a weight matrix.
#[derive(Debug)]
pub(crate) enum Weight {
    /// Floats, already turned for a product from the left: [(experts,) in, out].
    Float(Array),
    /// Packed by rows: [(experts,) out, in·bits/32].
    Quantized {
        weight: Array,
        scales: Array,
        /// Affine mode only.
        biases: Option<Array>,
        params: QuantizationParams,
    },
}

/// `x · Wᵀ + bias`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    /// [out].
    pub(crate) bias: Option<Array>,
    /// Rows from which a packed weight is unpacked for one plain product. MLX's CPU kernel unpacks
    /// it again for each row; its GPU kernels do not, so there this is never reached.
    pub(crate) unpack_from: usize,
}

impl Linear {
    /// [..., in] → [..., out].
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let y = match &self.weight {
            Weight::Float(weight) => x.matmul(weight)?,
            Weight::Quantized { weight, scales, biases, params } => {
                let (biases, width) = (biases.as_ref(), x.shape().last().copied().unwrap_or(1));
                let width = usize::try_from(width).unwrap_or(1).max(1);
                if x.size() / width >= self.unpack_from {
                    let rows = mlx::dequantize(weight, scales, biases, *params, x.dtype())?;
                    x.matmul(rows.transpose()?)?
                } else {
                    mlx::quantized_matmul(x, weight, scales, biases, *params, true)?
                }
            }
        };
        match &self.bias {
            Some(bias) => Ok(y.add(bias)?),
            None => Ok(y),
        }
    }
}

/// One linear layer for each expert, of which every row picks one.
#[derive(Debug)]
pub(crate) struct ExpertLinear {
    pub(crate) weight: Weight,
    /// [experts, 1, out]: with the axis of the rows, so that a lookup fits the product.
    pub(crate) bias: Option<Array>,
}

impl ExpertLinear {
    /// [..., 1, in] → [..., 1, out], where `indices.rhs` [...] names each row's expert.
    pub(crate) fn forward(&self, x: &Array, indices: &GatherIndices<'_>) -> Result<Array> {
        let y = match &self.weight {
            Weight::Float(weight) => mlx::gather_mm(x, weight, indices)?,
            Weight::Quantized { weight, scales, biases, params } => {
                mlx::gather_qmm(x, weight, scales, biases.as_ref(), *params, indices)?
            }
        };
        match &self.bias {
            Some(bias) => Ok(y.add(bias.take_axis(indices.rhs, 0)?)?),
            None => Ok(y),
        }
    }
}

/// Token ids to vectors; the same weight may serve as the output head.
#[derive(Debug)]
pub(crate) struct Embedding {
    /// Floats here are [vocabulary, hidden], as rows are looked up and not multiplied.
    pub(crate) weight: Weight,
    /// Type of the vectors.
    pub(crate) dtype: Dtype,
}

impl Embedding {
    /// u32 [...] → [..., hidden]. Ids must be below the vocabulary's size.
    pub(crate) fn forward(&self, ids: &Array) -> Result<Array> {
        match &self.weight {
            Weight::Float(weight) => Ok(weight.take_axis(ids, 0)?),
            Weight::Quantized { weight, scales, biases, params } => {
                let weight = weight.take_axis(ids, 0)?;
                let scales = scales.take_axis(ids, 0)?;
                let biases = biases.as_ref().map(|biases| biases.take_axis(ids, 0)).transpose()?;
                mlx::dequantize(&weight, &scales, biases.as_ref(), *params, self.dtype)
            }
        }
    }

    /// The output head that shares this weight: [..., hidden] → [..., vocabulary].
    pub(crate) fn as_head(&self, x: &Array) -> Result<Array> {
        match &self.weight {
            Weight::Float(weight) => Ok(ops::matmul(x, weight.transpose()?)?),
            Weight::Quantized { weight, scales, biases, params } => {
                mlx::quantized_matmul(x, weight, scales, biases.as_ref(), *params, true)
            }
        }
    }
}
