//! Makes a [`Plan`] and keeps the books while doing so.

use std::collections::HashSet;

use safetensors::Dtype;

use super::{GateUpPlan, LayerPlan, Layout, LinearPlan, Plan, QkvPlan, WeightForm};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::config::{Config, Mode, QuantizationParams};
use crate::error::{Result, TensorMismatch};

/// How OpenAI's layout quantizes its experts: 32 FP4 values share one power-of-two scale
/// (OCP Microscaling Formats, version 1.0).
const MXFP4: QuantizationParams = QuantizationParams { group_size: 32, bits: 4, mode: Mode::Mxfp4 };

/// Bits in one word of a packed weight.
const WORD_BITS: usize = 32;

/// Bytes that hold one group of 32 FP4 values in OpenAI's layout.
const BLOCK_BYTES: usize = 16;

/// See [`super::plan`].
pub(super) fn plan(config: &Config, checkpoint: &Checkpoint) -> Result<Plan> {
    let mut planner = Planner::new(config, checkpoint);
    let plan = planner.model(layout_of(config, checkpoint));
    planner.finish()?;
    Ok(plan)
}

/// Tells the layouts apart. Without any expert tensor the config decides; the plan then fails in
/// any case, and its list of missing names should be of the layout that was meant.
fn layout_of(config: &Config, checkpoint: &Checkpoint) -> Layout {
    let mut found = None;
    for (name, _) in checkpoint.tensors() {
        if name.ends_with(".mlp.experts.gate_up_proj_blocks") {
            return Layout::OpenAi;
        } else if name.ends_with(".mlp.experts.gate_up_proj") {
            return Layout::Transformers;
        } else if name.contains(".mlp.experts.gate_proj.") {
            found = Some(Layout::Mlx);
        }
    }
    found.unwrap_or(match (&config.quantization, config.packed_mxfp4) {
        (Some(_), _) => Layout::Mlx,
        (None, true) => Layout::OpenAi,
        (None, false) => Layout::Transformers,
    })
}

/// What a tensor's elements may be.
#[derive(Clone, Copy)]
enum Kind {
    /// Any of the float types that MLX computes in.
    Float,
    /// One exact type.
    Exactly(Dtype),
}

impl Kind {
    fn admits(self, dtype: Dtype) -> bool {
        match self {
            Self::Float => is_float(dtype),
            Self::Exactly(wanted) => dtype == wanted,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Float => "BF16, F16 or F32".into(),
            Self::Exactly(dtype) => dtype.to_string(),
        }
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32)
}

/// The part of a linear layer that does not follow from its names.
#[derive(Clone, Copy)]
struct Size {
    experts: Option<usize>,
    outputs: usize,
    inputs: usize,
}

impl Size {
    /// `last` behind the expert axis, where there is one.
    fn shape(self, last: &[usize]) -> Vec<usize> {
        self.experts.iter().chain(last).copied().collect()
    }
}

/// Walks the model once and keeps the books: what was asked for, found, and left over. Sizes are
/// multiplied saturating: one that does not fit into a `usize` fits no tensor either, and is
/// reported as a wrong shape.
struct Planner<'a> {
    config: &'a Config,
    checkpoint: &'a Checkpoint,
    used: HashSet<String>,
    mismatch: TensorMismatch,
}

impl<'a> Planner<'a> {
    fn new(config: &'a Config, checkpoint: &'a Checkpoint) -> Self {
        Self { config, checkpoint, used: HashSet::new(), mismatch: TensorMismatch::default() }
    }

    fn model(&mut self, layout: Layout) -> Plan {
        let config = self.config;
        let hidden = config.hidden_size;
        let vocabulary = Size { experts: None, outputs: config.vocab_size, inputs: hidden };
        let embed_tokens = self.linear("model.embed_tokens", vocabulary, false);
        let layers = (0..config.num_hidden_layers).map(|layer| self.layer(layer, layout)).collect();
        let norm = self.take_float("model.norm.weight".into(), &[hidden]);
        let lm_head =
            (!config.tie_word_embeddings).then(|| self.linear("lm_head", vocabulary, false));
        let dtype = self.float_type(&embed_tokens, &norm);
        Plan { layout, dtype, embed_tokens, layers, norm, lm_head }
    }

    fn layer(&mut self, index: usize, layout: Layout) -> LayerPlan {
        let config = self.config;
        let hidden = config.hidden_size;
        let queries = config.num_attention_heads.saturating_mul(config.head_dim);
        let keys = config.num_key_value_heads.saturating_mul(config.head_dim);
        let prefix = format!("model.layers.{index}");
        let attention = format!("{prefix}.self_attn");
        let into = |outputs| Size { experts: None, outputs, inputs: hidden };
        let out_of = Size { experts: None, outputs: hidden, inputs: queries };
        let bias = config.attention_bias;

        let input_layernorm =
            self.take_float(format!("{prefix}.input_layernorm.weight"), &[hidden]);
        let q = self.linear(&format!("{attention}.q_proj"), into(queries), bias);
        let k = self.linear(&format!("{attention}.k_proj"), into(keys), bias);
        let v = self.linear(&format!("{attention}.v_proj"), into(keys), bias);
        let joinable = self.alike(&q, &k) && self.alike(&q, &v);
        let qkv = QkvPlan { q, k, v, joinable };
        let sinks = self.take_float(format!("{attention}.sinks"), &[config.num_attention_heads]);
        let o_proj = self.linear(&format!("{attention}.o_proj"), out_of, bias);
        let post_attention_layernorm =
            self.take_float(format!("{prefix}.post_attention_layernorm.weight"), &[hidden]);
        let router =
            self.linear(&format!("{prefix}.mlp.router"), into(config.num_local_experts), true);
        let (gate_up, down_proj) = self.experts(&format!("{prefix}.mlp.experts"), layout);
        LayerPlan {
            input_layernorm,
            qkv,
            sinks,
            o_proj,
            post_attention_layernorm,
            router,
            gate_up,
            down_proj,
        }
    }

    fn experts(&mut self, path: &str, layout: Layout) -> (GateUpPlan, LinearPlan) {
        let config = self.config;
        let width = config.intermediate_size;
        let experts = Some(config.num_local_experts);
        let up = Size { experts, outputs: width, inputs: config.hidden_size };
        let both = Size { outputs: width.saturating_mul(2), ..up };
        let down = Size { experts, outputs: config.hidden_size, inputs: width };
        let (gate_up, down_proj) = (format!("{path}.gate_up_proj"), format!("{path}.down_proj"));
        match layout {
            Layout::OpenAi => (
                GateUpPlan::Interleaved(self.blocks(&gate_up, both)),
                self.blocks(&down_proj, down),
            ),
            Layout::Transformers => (
                GateUpPlan::Interleaved(self.columns(&gate_up, both)),
                self.columns(&down_proj, down),
            ),
            Layout::Mlx => {
                let gate = self.linear(&format!("{path}.gate_proj"), up, true);
                let up = self.linear(&format!("{path}.up_proj"), up, true);
                let joinable = self.alike(&gate, &up);
                (GateUpPlan::Split { gate, up, joinable }, self.linear(&down_proj, down, true))
            }
        }
    }

    /// A module with MLX's names: `.weight`, `.scales` and `.biases` when quantized, `.bias`.
    fn linear(&mut self, path: &str, size: Size, bias: bool) -> LinearPlan {
        let quantization = self.quantization(path);
        let weight = format!("{path}.weight");
        let (mut scales, mut biases) = (None, None);
        if let Some(QuantizationParams { group_size, bits, mode }) = quantization {
            let row_bits = size.inputs.saturating_mul(bits);
            let groups = size.inputs.checked_div(group_size).unwrap_or(0);
            if groups.saturating_mul(group_size) != size.inputs || row_bits % WORD_BITS != 0 {
                self.mismatch.misshapen.push(format!(
                    "{path}: its {} inputs cannot be quantized to {bits} bits in groups of \
                     {group_size}",
                    size.inputs
                ));
            }
            let packed = size.shape(&[size.outputs, row_bits / WORD_BITS]);
            let grouped = size.shape(&[size.outputs, groups]);
            self.take(&weight, Kind::Exactly(Dtype::U32), &packed);
            let scale_name = format!("{path}.scales");
            match mode {
                Mode::Mxfp4 => {
                    self.take(&scale_name, Kind::Exactly(Dtype::U8), &grouped);
                }
                Mode::Affine => {
                    let name = format!("{path}.biases");
                    // MLX reads the two as one type; a pair of types is a broken conversion.
                    let kind = match self.take(&scale_name, Kind::Float, &grouped) {
                        Some(dtype) => Kind::Exactly(dtype),
                        None => Kind::Float,
                    };
                    self.take(&name, kind, &grouped);
                    biases = Some(name);
                }
            }
            scales = Some(scale_name);
        } else {
            let shape = size.shape(&[size.outputs, size.inputs]);
            self.take(&weight, Kind::Float, &shape);
        }
        let bias =
            bias.then(|| self.take_float(format!("{path}.bias"), &size.shape(&[size.outputs])));
        LinearPlan {
            path: path.into(),
            weight,
            form: WeightForm::Rows,
            quantization,
            scales,
            biases,
            bias,
            experts: size.experts,
            outputs: size.outputs,
            inputs: size.inputs,
        }
    }

    /// An expert module with OpenAI's names: `_blocks`, `_scales` and `_bias`.
    fn blocks(&mut self, path: &str, size: Size) -> LinearPlan {
        let groups = size.inputs / MXFP4.group_size;
        if !size.inputs.is_multiple_of(MXFP4.group_size) {
            self.mismatch.misshapen.push(format!(
                "{path}: its {} inputs cannot be quantized in groups of {}",
                size.inputs, MXFP4.group_size
            ));
        }
        let weight = format!("{path}_blocks");
        let scales = format!("{path}_scales");
        let u8 = Kind::Exactly(Dtype::U8);
        self.take(&weight, u8, &size.shape(&[size.outputs, groups, BLOCK_BYTES]));
        self.take(&scales, u8, &size.shape(&[size.outputs, groups]));
        LinearPlan {
            path: path.into(),
            weight,
            form: WeightForm::Blocks,
            quantization: Some(MXFP4),
            scales: Some(scales),
            biases: None,
            bias: Some(self.take_float(format!("{path}_bias"), &size.shape(&[size.outputs]))),
            experts: size.experts,
            outputs: size.outputs,
            inputs: size.inputs,
        }
    }

    /// An expert module in floats with transformers' names: the bare name, and `_bias`.
    fn columns(&mut self, path: &str, size: Size) -> LinearPlan {
        let shape = size.shape(&[size.inputs, size.outputs]);
        LinearPlan {
            path: path.into(),
            weight: self.take_float(path.into(), &shape),
            form: WeightForm::Columns,
            quantization: None,
            scales: None,
            biases: None,
            bias: Some(self.take_float(format!("{path}_bias"), &size.shape(&[size.outputs]))),
            experts: size.experts,
            outputs: size.outputs,
            inputs: size.inputs,
        }
    }

    /// How a module with MLX's names is quantized. Where the config names the module, that holds.
    /// Otherwise it shows in the files, since mlx-lm does not say when it leaves a module in floats
    /// for a width that is no multiple of the group.
    fn quantization(&self, path: &str) -> Option<QuantizationParams> {
        let (params, otherwise) = match &self.config.quantization {
            Some(quantization) if quantization.modules.contains_key(path) => {
                return quantization.for_module(path);
            }
            Some(quantization) => (quantization.for_module(path)?, true),
            None if self.config.packed_mxfp4 => (MXFP4, false),
            None => return None,
        };
        let scaled = self.info(&format!("{path}.scales")).is_some();
        let packed = match self.info(&format!("{path}.weight")) {
            Some(weight) => weight.dtype == Dtype::U32,
            None => otherwise,
        };
        (scaled || packed).then_some(params)
    }

    /// The type that a lookup in the embedding gives. MXFP4 scales have no float type: there the
    /// norms', which read the result, decides.
    fn float_type(&self, embed_tokens: &LinearPlan, norm: &str) -> Dtype {
        let source = match (embed_tokens.quantization, &embed_tokens.scales) {
            (Some(QuantizationParams { mode: Mode::Affine, .. }), Some(scales)) => scales,
            (None, _) => &embed_tokens.weight,
            _ => norm,
        };
        self.info(source).map_or(Dtype::F32, |info| info.dtype)
    }

    /// Whether two modules are stored so that concatenating their rows changes no number.
    fn alike(&self, a: &LinearPlan, b: &LinearPlan) -> bool {
        let dtypes = |linear: &LinearPlan| {
            [
                Some(&linear.weight),
                linear.scales.as_ref(),
                linear.biases.as_ref(),
                linear.bias.as_ref(),
            ]
            .map(|name| name.and_then(|name| self.info(name)).map(|info| info.dtype))
        };
        (a.form, a.quantization, a.experts, a.inputs)
            == (b.form, b.quantization, b.experts, b.inputs)
            && dtypes(a) == dtypes(b)
    }

    fn info(&self, name: &str) -> Option<&'a TensorInfo> {
        self.checkpoint.info(name)
    }

    /// Books a tensor of any float type and gives its name back.
    fn take_float(&mut self, name: String, shape: &[usize]) -> String {
        self.take(&name, Kind::Float, shape);
        name
    }

    /// Books a tensor: it is used from now on, and reported if it is not there or not right.
    /// Returns its type when it is right.
    fn take(&mut self, name: &str, kind: Kind, shape: &[usize]) -> Option<Dtype> {
        let Some(info) = self.info(name) else {
            self.mismatch.missing.push(name.into());
            return None;
        };
        self.used.insert(name.into());
        if info.shape == shape && kind.admits(info.dtype) {
            return Some(info.dtype);
        }
        self.mismatch.misshapen.push(format!(
            "{name}: is {} {:?}, should be {} {shape:?}",
            info.dtype,
            info.shape,
            kind.name()
        ));
        None
    }

    /// Closes the books.
    fn finish(mut self) -> Result<()> {
        let unused = self.checkpoint.tensors().filter(|(name, _)| !self.used.contains(*name));
        self.mismatch.unexpected = unused.map(|(name, _)| name.to_owned()).collect();
        if self.mismatch.is_empty() { Ok(()) } else { Err(self.mismatch.into()) }
    }
}
