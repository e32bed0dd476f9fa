//! Which tensors of a checkpoint make up which parameter of the model. This is the only place that
//! knows checkpoint names. Nothing is read or computed here: a [`Plan`] is made from config.json
//! and the files' headers alone, and making it accounts for every tensor.
//!
//! Three layouts are known, told apart by the names of the experts' tensors:
//!
//! | layout | experts (`model.layers.N.mlp.experts.…`) | everything else |
//! |---|---|---|
//! | [`Layout::OpenAi`] | `gate_up_proj_blocks`/`_scales`/`_bias`, `down_proj_…` alike: MXFP4 in U8 | floats |
//! | [`Layout::Transformers`] | `gate_up_proj`, `gate_up_proj_bias`, …: floats, `[expert, in, out]` | floats |
//! | [`Layout::Mlx`] | `gate_proj`, `up_proj`, `down_proj`, each `.weight[.scales[.biases]]` and `.bias` | floats or quantized alike |
//!
//! `bias` is what a layer adds to its output; `biases` belong to MLX's affine quantization.

mod build;

use safetensors::Dtype;

use crate::checkpoint::Checkpoint;
use crate::config::{Config, QuantizationParams};
use crate::error::Result;

/// Which naming and packing a checkpoint follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// OpenAI's published files: experts in MXFP4 blocks, gate and up rows alternating.
    OpenAi,
    /// The same names without quantization, as Hugging Face's transformers writes them: the
    /// experts' weights are `[expert, in, out]`, gate and up columns alternating.
    Transformers,
    /// mlx-lm's: gate and up apart, any module quantized or not.
    Mlx,
}

/// How the stored numbers of a weight are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightForm {
    /// `[(expert,) out, in]` floats, or `[(expert,) out, in * bits / 32]` U32 when quantized: what
    /// MLX's matmuls with a transposed right side take.
    Rows,
    /// `[expert, out, in / 32, 16]` U8: the bytes of [`WeightForm::Rows`] under another type and
    /// shape, to be viewed as U32 `[expert, out, in / 8]`.
    Blocks,
    /// `[expert, in, out]` floats: the last two axes are swapped against [`WeightForm::Rows`].
    Columns,
}

/// Where every parameter of the model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The checkpoint's layout.
    pub layout: Layout,
    /// The float type of the embedding's output, and so of the residual stream: BF16, F16 or F32.
    pub dtype: Dtype,
    /// Token embedding, `[vocabulary, hidden]`.
    pub embed_tokens: LinearPlan,
    /// The decoder layers, first to last.
    pub layers: Vec<LayerPlan>,
    /// Name of the final norm's weight, `[hidden]`.
    pub norm: String,
    /// Output head, `[vocabulary, hidden]`; `None` when it shares the embedding's weight.
    pub lm_head: Option<LinearPlan>,
}

/// Where the parameters of one decoder layer come from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerPlan {
    /// Name of the weight of the norm before attention, `[hidden]`.
    pub input_layernorm: String,
    /// The three projections into attention.
    pub qkv: QkvPlan,
    /// Name of the attention sinks, `[query heads]`.
    pub sinks: String,
    /// Projection out of attention, `[hidden, query heads * head dim]`.
    pub o_proj: LinearPlan,
    /// Name of the weight of the norm before the experts, `[hidden]`.
    pub post_attention_layernorm: String,
    /// Router, `[experts, hidden]`.
    pub router: LinearPlan,
    /// The experts' projections into their inner width.
    pub gate_up: GateUpPlan,
    /// The experts' projection out of it, `[experts, hidden, width]`.
    pub down_proj: LinearPlan,
}

/// The query, key and value projections, which read the same input.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QkvPlan {
    /// Query, `[query heads * head dim, hidden]`.
    pub q: LinearPlan,
    /// Key, `[key-value heads * head dim, hidden]`.
    pub k: LinearPlan,
    /// Value, the same shape as the key.
    pub v: LinearPlan,
    /// True when the three are stored alike, so that their rows, in this order, can be
    /// concatenated into one projection.
    pub joinable: bool,
}

/// The gate and up projections of all experts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GateUpPlan {
    /// One projection, `[experts, 2 * width, hidden]`: even outputs are gate, odd ones up.
    Interleaved(LinearPlan),
    /// Two projections, `[experts, width, hidden]` each.
    Split {
        /// The gate projection.
        gate: LinearPlan,
        /// The up projection.
        up: LinearPlan,
        /// True when the two are stored alike, so that their rows can be put into one projection.
        joinable: bool,
    },
}

/// A linear layer, an embedding, or one of them per expert. Names are those of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinearPlan {
    /// The module, such as `model.layers.0.self_attn.q_proj`, as config.json's `quantization` and
    /// error messages call it.
    pub path: String,
    /// The weight.
    pub weight: String,
    /// How the weight is arranged.
    pub form: WeightForm,
    /// How the weight is quantized; `None` for floats.
    pub quantization: Option<QuantizationParams>,
    /// The scale of each group, `[(expert,) out, in / group]`: U8 for MXFP4, floats for affine.
    /// Present exactly when quantized.
    pub scales: Option<String>,
    /// The offset of each group, shaped and typed as the scales: affine only.
    pub biases: Option<String>,
    /// What is added to the output, `[(expert,) out]`.
    pub bias: Option<String>,
    /// Experts stacked in each tensor; `None` when there is no such axis.
    pub experts: Option<usize>,
    /// Numbers in an output.
    pub outputs: usize,
    /// Numbers in an input.
    pub inputs: usize,
}

impl Plan {
    /// The names of all tensors that the plan uses, each once, in the order of the model.
    pub fn tensor_names(&self) -> Vec<&str> {
        let mut names = self.embed_tokens.tensor_names();
        for layer in &self.layers {
            names.push(&layer.input_layernorm);
            for part in layer.qkv.parts() {
                names.extend(part.tensor_names());
            }
            names.push(&layer.sinks);
            names.extend(layer.o_proj.tensor_names());
            names.push(&layer.post_attention_layernorm);
            names.extend(layer.router.tensor_names());
            for part in layer.gate_up.parts() {
                names.extend(part.tensor_names());
            }
            names.extend(layer.down_proj.tensor_names());
        }
        names.push(&self.norm);
        names.extend(self.lm_head.iter().flat_map(LinearPlan::tensor_names));
        names
    }
}

impl QkvPlan {
    /// Query, key, value.
    pub fn parts(&self) -> [&LinearPlan; 3] {
        [&self.q, &self.k, &self.v]
    }
}

impl GateUpPlan {
    /// The one interleaved projection, or gate and then up.
    pub fn parts(&self) -> Vec<&LinearPlan> {
        match self {
            Self::Interleaved(both) => vec![both],
            Self::Split { gate, up, .. } => vec![gate, up],
        }
    }
}

impl LinearPlan {
    /// The names of the tensors that make up this module.
    pub fn tensor_names(&self) -> Vec<&str> {
        std::iter::once(&self.weight)
            .chain(&self.scales)
            .chain(&self.biases)
            .chain(&self.bias)
            .map(String::as_str)
            .collect()
    }
}

/// Decides where every parameter of the model described by `config` comes from.
///
/// # Errors
/// [`crate::Error::Tensors`], with all that is wrong at once, unless every parameter is in the
/// checkpoint with the right shape and type and every tensor of the checkpoint is one of them.
pub fn plan(config: &Config, checkpoint: &Checkpoint) -> Result<Plan> {
    build::plan(config, checkpoint)
}
