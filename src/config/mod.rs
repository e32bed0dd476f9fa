//! config.json and generation_config.json, parsed and validated.
//!
//! Every field that the model uses is checked here, so that sizes can be multiplied and handed to
//! MLX without further thought. A required field is never guessed. Fields that may be absent take
//! the value that transformers gives them for `gpt_oss`, named at the field.

mod fields;
mod file;
mod generation;
mod quantization;
mod rope;

use std::path::Path;

use fields::{Fields, boolean, integer, keyword, list, number, one_or_many, token_id};
use file::{parse_object, read_text};

use crate::error::Result;
pub use generation::GenerationConfig;
pub use quantization::{Mode, Quantization, QuantizationParams};
pub use rope::RopeScaling;

/// Largest `hidden_size` and `intermediate_size`: more than 20 times GPT-OSS's 2880.
const MAX_WIDTH: usize = 1 << 16;
/// Largest `num_hidden_layers`.
const MAX_LAYERS: usize = 1 << 10;
/// Largest `num_attention_heads` and `num_key_value_heads`.
const MAX_HEADS: usize = 1 << 10;
/// Largest `head_dim`.
const MAX_HEAD_DIM: usize = 1 << 10;
/// Largest `num_local_experts`.
const MAX_EXPERTS: usize = 1 << 12;
/// Largest `vocab_size`.
const MAX_VOCAB_SIZE: usize = 1 << 22;
/// Largest context and sliding window, in tokens.
const MAX_POSITIONS: usize = 1 << 24;
/// Largest base of the rotary frequencies.
const MAX_ROPE_THETA: f32 = 1e12;
/// Largest factor by which YaRN stretches the context.
const MAX_ROPE_FACTOR: f32 = 65_536.0;
/// Largest number of rotations that bounds YaRN's range of dimensions.
const MAX_YARN_ROTATIONS: f32 = 65_536.0;

/// MLX counts dimensions in `i32`: the widest rows, fused q, k and v, and fused gate and up, fit.
const _: () = assert!(3 * MAX_HEADS * MAX_HEAD_DIM <= i32::MAX as usize);
const _: () = assert!(2 * MAX_WIDTH <= i32::MAX as usize);

/// `swiglu_limit` where the field is absent: what OpenAI's reference clamps at.
const DEFAULT_SWIGLU_LIMIT: f32 = 7.0;

/// Slope of the sigmoid in the experts' SwiGLU: `x * sigmoid(1.702 x)` approximates GELU
/// (Hendrycks and Gimpel 2016). A config that names another `swiglu_alpha` is refused.
pub const SWIGLU_ALPHA: f32 = 1.702;

/// What a layer's attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerType {
    /// The last `sliding_window` positions, the token's own among them.
    SlidingAttention,
    /// All positions up to the token's own.
    FullAttention,
}

/// The shape of a GPT-OSS model, from config.json.
///
/// All sizes are at least 1 and small enough that any of a model's dimensions fits MLX's `i32`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads; a multiple of `num_key_value_heads`.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even, since RoPE turns pairs.
    pub head_dim: usize,
    /// Width inside an expert.
    pub intermediate_size: usize,
    /// Experts in each layer.
    pub num_local_experts: usize,
    /// Experts that a token uses; at most `num_local_experts`. Also read as `experts_per_token`.
    pub num_experts_per_tok: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Positions that a sliding layer sees, the token's own among them.
    pub sliding_window: usize,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm; between 0 and 1.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies; above 1.
    pub rope_theta: f32,
    /// Bound of the clamped SwiGLU; 7 where the field is absent.
    pub swiglu_limit: f32,
    /// How positions beyond the original context are reached; `None` for plain RoPE.
    pub rope_scaling: Option<RopeScaling>,
    /// One entry per layer. Where the field is absent, layers alternate and the first slides.
    pub layer_types: Vec<LayerType>,
    /// Whether the head uses the embedding's weight; false where the field is absent.
    pub tie_word_embeddings: bool,
    /// Whether q, k, v and o have biases. Always true: a config that says false is refused.
    pub attention_bias: bool,
    /// MLX's quantization settings, where the checkpoint has any.
    pub quantization: Option<Quantization>,
    /// Whether this is OpenAI's own layout with MXFP4 experts (`quant_method` is "mxfp4").
    pub packed_mxfp4: bool,
    /// Tokens that end an answer; the file has none, one or a list. generation_config.json may
    /// list more.
    pub eos_token_id: Vec<u32>,
    /// The token that fills up batches.
    pub pad_token_id: Option<u32>,
}

impl Config {
    /// Reads and validates `config.json` in `dir`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::error::Error::Io) for a file that is missing, unreadable, not UTF-8 or
    /// longer than 16 MiB, else as [`Config::from_json`].
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        Self::from_json(&path, &read_text(&path)?)
    }

    /// Parses and validates the text of a config.json; `path` is only for errors.
    ///
    /// # Errors
    /// [`Error::Json`](crate::error::Error::Json) for text that is not a JSON object,
    /// [`Error::Config`](crate::error::Error::Config) for a field that is missing, duplicate,
    /// unsupported or out of range.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let object = parse_object(path, text)?;
        let fields = Fields::new(path, &object);
        check_supported(&fields)?;

        let size = |key, max| fields.required(key, integer(1..=max));
        let num_hidden_layers = size("num_hidden_layers", MAX_LAYERS)?;
        let vocab_size = size("vocab_size", MAX_VOCAB_SIZE)?;
        let token = token_id(vocab_size);
        let (rope_theta, rope_scaling) = rope::parse(&fields)?;
        let mut config = Self {
            hidden_size: size("hidden_size", MAX_WIDTH)?,
            num_hidden_layers,
            num_attention_heads: size("num_attention_heads", MAX_HEADS)?,
            num_key_value_heads: size("num_key_value_heads", MAX_HEADS)?,
            head_dim: size("head_dim", MAX_HEAD_DIM)?,
            intermediate_size: size("intermediate_size", MAX_WIDTH)?,
            num_local_experts: size("num_local_experts", MAX_EXPERTS)?,
            num_experts_per_tok: experts_per_token(&fields)?,
            vocab_size,
            sliding_window: size("sliding_window", MAX_POSITIONS)?,
            max_position_embeddings: size("max_position_embeddings", MAX_POSITIONS)?,
            rms_norm_eps: fields.required(
                "rms_norm_eps",
                number("a number between 0 and 1", |eps| eps > 0.0 && eps < 1.0),
            )?,
            rope_theta,
            swiglu_limit: fields
                .optional("swiglu_limit", number("a number above 0", |limit| limit > 0.0))?
                .unwrap_or(DEFAULT_SWIGLU_LIMIT),
            rope_scaling,
            layer_types: layer_types(&fields, num_hidden_layers)?,
            tie_word_embeddings: fields.optional("tie_word_embeddings", boolean)?.unwrap_or(false),
            attention_bias: true,
            quantization: None,
            packed_mxfp4: false,
            eos_token_id: fields.optional("eos_token_id", one_or_many(token))?.unwrap_or_default(),
            pad_token_id: fields.optional("pad_token_id", token)?,
        };
        config.check_sizes_fit(&fields)?;
        let quantization = quantization::parse(&fields, &config)?;
        config.quantization = quantization.quantization;
        config.packed_mxfp4 = quantization.packed_mxfp4;
        Ok(config)
    }

    /// The rules between two sizes.
    fn check_sizes_fit(&self, fields: &Fields) -> Result<()> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            let reason =
                format!("must be a multiple of num_key_value_heads ({kv_heads}), not {heads}");
            return Err(fields.error("num_attention_heads", reason));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(fields.error("head_dim", format!("must be even, not {}", self.head_dim)));
        }
        let (used, experts) = (self.num_experts_per_tok, self.num_local_experts);
        if used > experts {
            let reason = format!("must be at most num_local_experts ({experts}), not {used}");
            return Err(fields.error("num_experts_per_tok", reason));
        }
        Ok(())
    }
}

/// The fields that must have the one value that this library computes.
fn check_supported(fields: &Fields) -> Result<()> {
    fields.required("model_type", keyword(&[("gpt_oss", ())]))?;
    // The experts' activation is a SwiGLU, which every published config calls by its base.
    fields.optional("hidden_act", keyword(&[("silu", ())]))?;
    if fields.optional("attention_bias", boolean)? == Some(false) {
        return Err(fields.error("attention_bias", "must be true: GPT-OSS has biases"));
    }
    let wanted = format!("absent or {SWIGLU_ALPHA}; other values are not supported");
    fields.optional("swiglu_alpha", number(&wanted, |alpha| alpha == SWIGLU_ALPHA))?;
    Ok(())
}

/// `num_experts_per_tok`, or its older name; where both are there, they must agree.
fn experts_per_token(fields: &Fields) -> Result<usize> {
    let (name, alias) = ("num_experts_per_tok", "experts_per_token");
    let experts = || integer(1..=MAX_EXPERTS);
    match (fields.optional(name, experts())?, fields.optional(alias, experts())?) {
        (Some(one), Some(other)) if one != other => {
            Err(fields.error(alias, format!("is {other}, but {name} is {one}")))
        }
        (one, other) => one.or(other).ok_or_else(|| fields.missing(name)),
    }
}

/// One type per layer; alternating where the field is absent, as in OpenAI's reference.
fn layer_types(fields: &Fields, layers: usize) -> Result<Vec<LayerType>> {
    use LayerType::{FullAttention, SlidingAttention};
    let names = [("sliding_attention", SlidingAttention), ("full_attention", FullAttention)];
    let Some(types) = fields.optional("layer_types", list(keyword(&names)))? else {
        return Ok([SlidingAttention, FullAttention].into_iter().cycle().take(layers).collect());
    };
    if types.len() != layers {
        let reason = format!("has {} entries for {layers} layers (num_hidden_layers)", types.len());
        return Err(fields.error("layer_types", reason));
    }
    Ok(types)
}
