//! How the weights are quantized: MLX's `quantization` and OpenAI's `quantization_config`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Config;
use super::fields::{Fields, keyword, list, one_of, shown};
use crate::error::Result;

/// Values that share one scale in MXFP4 (OCP Microscaling Formats specification 1.0).
pub(super) const MXFP4_GROUP_SIZE: usize = 32;

/// A way of packing weights into few bits, named as in MLX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Integers with a float scale and bias for each group.
    Affine,
    /// 4-bit floats (E2M1) with a power of two (E8M0) as the scale of each group of 32.
    Mxfp4,
}

impl Mode {
    /// MLX's name of the mode.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
        }
    }

    /// The group sizes that MLX has kernels for.
    fn group_sizes(self) -> &'static [usize] {
        match self {
            Self::Affine => &[32, 64, 128],
            Self::Mxfp4 => &[MXFP4_GROUP_SIZE],
        }
    }

    /// The bits per weight that MLX has kernels for.
    fn bits(self) -> &'static [usize] {
        match self {
            Self::Affine => &[2, 3, 4, 5, 6, 8],
            Self::Mxfp4 => &[4],
        }
    }
}

/// How one module's weight is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuantizationParams {
    /// Weights, along the input dimension, that share a scale.
    pub group_size: usize,
    /// Bits of one weight.
    pub bits: usize,
    /// How they are packed.
    pub mode: Mode,
}

/// MLX's `quantization`: a default, and modules that differ from it.
///
/// The default is what a quantized module has; which modules are quantized at all shows in the
/// checkpoint, by their scales.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quantization {
    /// For modules that are not in `modules`.
    pub default: QuantizationParams,
    /// By module path, such as `model.layers.0.mlp.router`; `None` is a module that is expressly
    /// not quantized.
    pub modules: BTreeMap<String, Option<QuantizationParams>>,
}

impl Quantization {
    /// How the module at this path is quantized; `None` where the config says that it is not.
    pub fn for_module(&self, path: &str) -> Option<QuantizationParams> {
        self.modules.get(path).copied().unwrap_or(Some(self.default))
    }
}

/// What a config says about quantization.
#[derive(Default)]
pub(super) struct Found {
    pub(super) quantization: Option<Quantization>,
    pub(super) packed_mxfp4: bool,
}

/// Reads `quantization` and `quantization_config`.
///
/// The second is OpenAI's where it names a `quant_method`, else a copy of the first, which must
/// agree with it. MLX's `quantization` wins over OpenAI's, as in mlx-lm: converters leave the
/// latter behind.
pub(super) fn parse(fields: &Fields, config: &Config) -> Result<Found> {
    let ours = fields.object("quantization")?.map(|block| mlx(&block, config)).transpose()?;
    let Some(block) = fields.object("quantization_config")? else {
        return Ok(Found { quantization: ours, packed_mxfp4: false });
    };
    if block.contains("quant_method") {
        openai(&block)?;
        if ours.is_none() {
            check_packed_widths(fields, config)?;
        }
        return Ok(Found { packed_mxfp4: ours.is_none(), quantization: ours });
    }
    let copy = mlx(&block, config)?;
    match ours {
        Some(ours) if ours != copy => {
            Err(fields.error("quantization_config", "disagrees with `quantization`"))
        }
        _ => Ok(Found { quantization: Some(copy), packed_mxfp4: false }),
    }
}

/// OpenAI's block: the only method is MXFP4, and the tensors' names tell which modules have it.
fn openai(block: &Fields) -> Result<()> {
    block.required("quant_method", keyword(&[("mxfp4", ())]))?;
    let text = |value: &Value| match value {
        Value::String(_) => Ok(()),
        other => Err(format!("must be a string, not {}", shown(other))),
    };
    block.optional("modules_to_not_convert", list(text))?;
    Ok(())
}

/// OpenAI's experts are packed along both widths.
fn check_packed_widths(fields: &Fields, config: &Config) -> Result<()> {
    let widths =
        [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)];
    for (key, width) in widths {
        if !width.is_multiple_of(MXFP4_GROUP_SIZE) {
            let reason = format!("must be a multiple of {MXFP4_GROUP_SIZE} for MXFP4, not {width}");
            return Err(fields.error(key, reason));
        }
    }
    Ok(())
}

/// MLX's block: the default's three settings, and one entry for each module that differs.
fn mlx(block: &Fields, config: &Config) -> Result<Quantization> {
    let default = params(block)?;
    let mut modules = BTreeMap::new();
    for (path, value) in block.iter().filter(|(key, _)| !SETTINGS.contains(&key.as_str())) {
        let Some(input) = Input::of(path, config) else {
            return Err(block.error(path, "is neither a setting nor a module of this model"));
        };
        let params = module_params(block, path, value, default)?;
        let (width, group_size) = (input.width(config), params.map_or(1, |p| p.group_size));
        if !width.is_multiple_of(group_size) {
            let reason = format!(
                "has groups of {group_size}, which do not divide the module's input width {width} \
                 ({})",
                input.fields()
            );
            return Err(block.error(path, reason));
        }
        modules.insert(path.clone(), params);
    }
    Ok(Quantization { default, modules })
}

/// The keys of a block of quantization settings.
const SETTINGS: [&str; 3] = ["group_size", "bits", "mode"];

/// One module's entry: an object, true for the default, or false for none.
fn module_params(
    block: &Fields,
    path: &str,
    value: &Value,
    default: QuantizationParams,
) -> Result<Option<QuantizationParams>> {
    match value {
        Value::Bool(true) => return Ok(Some(default)),
        Value::Bool(false) => return Ok(None),
        _ => {}
    }
    let Some(entry) = block.object(path)? else { return Err(block.missing(path)) };
    if let Some((unknown, _)) = entry.iter().find(|(key, _)| !SETTINGS.contains(&key.as_str())) {
        return Err(entry.error(unknown, "is not a setting that this library knows"));
    }
    params(&entry).map(Some)
}

/// The three settings. No `mode` means affine in every block, whatever the top level says.
fn params(fields: &Fields) -> Result<QuantizationParams> {
    let modes = [Mode::Affine, Mode::Mxfp4].map(|mode| (mode.as_str(), mode));
    let mode = fields.optional("mode", keyword(&modes))?.unwrap_or(Mode::Affine);
    let context = format!(" in mode {}", mode.as_str());
    Ok(QuantizationParams {
        group_size: fields.required("group_size", one_of(mode.group_sizes(), &context))?,
        bits: fields.required("bits", one_of(mode.bits(), &context))?,
        mode,
    })
}

/// What goes into a module that can be quantized, and so how wide its weight's rows are.
#[derive(Clone, Copy)]
enum Input {
    Residual,
    Heads,
    ExpertHidden,
}

impl Input {
    /// The input of the module at this path, or `None` if the model has no such module.
    fn of(path: &str, config: &Config) -> Option<Self> {
        let Some(rest) = path.strip_prefix("model.layers.") else {
            return matches!(path, "model.embed_tokens" | "lm_head").then_some(Self::Residual);
        };
        let (index, name) = rest.split_once('.')?;
        let layer: usize = index.parse().ok()?;
        // "+1" and "01" parse as well, but name no layer.
        if layer >= config.num_hidden_layers || layer.to_string() != index {
            return None;
        }
        match name {
            "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" => Some(Self::Residual),
            "self_attn.o_proj" => Some(Self::Heads),
            "mlp.router" => Some(Self::Residual),
            "mlp.experts.gate_proj" | "mlp.experts.up_proj" | "mlp.experts.gate_up_proj" => {
                Some(Self::Residual)
            }
            "mlp.experts.down_proj" => Some(Self::ExpertHidden),
            _ => None,
        }
    }

    fn width(self, config: &Config) -> usize {
        match self {
            Self::Residual => config.hidden_size,
            Self::Heads => config.num_attention_heads.saturating_mul(config.head_dim),
            Self::ExpertHidden => config.intermediate_size,
        }
    }

    /// The config's fields that make the width.
    fn fields(self) -> &'static str {
        match self {
            Self::Residual => "hidden_size",
            Self::Heads => "num_attention_heads times head_dim",
            Self::ExpertHidden => "intermediate_size",
        }
    }
}
