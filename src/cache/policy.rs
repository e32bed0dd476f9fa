//! What a cache holds and how much of it: one value that says everything.

use std::str::FromStr;

use crate::config::{Config, LayerType, Mode, QuantizationParams};
use crate::error::{Error, Result};

/// Group sizes that MLX has kernels for.
const GROUP_SIZES: [usize; 3] = [32, 64, 128];
/// Most rows by which a cache's memory grows, and that a sliding layer keeps beyond its window.
const MAX_ROWS: usize = 1 << 16;

/// How keys or values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvBits {
    /// As they are, in the activations' type.
    #[default]
    Float,
    /// 8-bit integers with a scale and a bias for each group.
    Eight,
    /// 4-bit integers with a scale and a bias for each group.
    Four,
}

impl KvBits {
    /// Bits of a code; None for floats.
    pub fn bits(self) -> Option<usize> {
        match self {
            Self::Float => None,
            Self::Eight => Some(8),
            Self::Four => Some(4),
        }
    }

    /// Bytes of a row of `width` numbers, where a float has `item_size` bytes.
    pub(super) fn row_bytes(self, width: usize, group_size: usize, item_size: usize) -> usize {
        match self.bits() {
            None => width.saturating_mul(item_size),
            Some(bits) => {
                let groups = width / group_size.max(1);
                (width.saturating_mul(bits) / 8)
                    .saturating_add(groups.saturating_mul(2).saturating_mul(item_size))
            }
        }
    }
}

/// As an option spells it: `4`, `8` or `float`.
impl FromStr for KvBits {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "float" => Ok(Self::Float),
            "8" => Ok(Self::Eight),
            "4" => Ok(Self::Four),
            _ => Err(Error::argument("kv_bits", format!("`{text}` is none of 4, 8, float"))),
        }
    }
}

/// How keys and values are kept: in how many bits, from which length on, and what is kept for going
/// back. Sliding layers always stay in floats: they are small, 5.5 MB in all for gpt-oss-20b in bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct KvPolicy {
    /// Keys of full layers.
    pub key_bits: KvBits,
    /// Values of full layers.
    pub value_bits: KvBits,
    /// Numbers of a head that share a scale: 32, 64 or 128, and a divisor of `head_dim`.
    pub group_size: usize,
    /// Tokens that are read as floats before a full layer is quantized: the queries at this
    /// position and after it see quantized keys and values, of all positions.
    pub quantize_from: usize,
    /// Tokens that can be taken back exactly at any time, counted from the furthest position fed:
    /// rows that sliding layers keep beyond their window.
    pub slack: usize,
    /// Rows by which the memory of full layers grows.
    pub growth_step: usize,
    /// Tokens between two snapshots of the sliding layers; 0 takes none but those asked for.
    pub snapshot_every: usize,
    /// Most bytes that all snapshots of one cache take; 0 keeps none.
    pub snapshot_bytes: usize,
}

impl Default for KvPolicy {
    fn default() -> Self {
        Self {
            key_bits: KvBits::Float,
            value_bits: KvBits::Float,
            group_size: 64,
            quantize_from: 0,
            slack: 32,
            growth_step: 256,
            snapshot_every: 512,
            snapshot_bytes: 64 << 20,
        }
    }
}

impl KvPolicy {
    /// The default policy with keys and values in the same number of bits.
    pub fn quantized(bits: KvBits) -> Self {
        Self { key_bits: bits, value_bits: bits, ..Self::default() }
    }

    /// True when keys or values are quantized.
    pub fn is_quantized(&self) -> bool {
        [self.key_bits, self.value_bits].iter().any(|bits| bits.bits().is_some())
    }

    /// Checks that a model of this shape can honour the policy.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the field and says why it cannot.
    pub fn validate(&self, config: &Config) -> Result<()> {
        let rows = 1..=MAX_ROWS;
        if !rows.contains(&self.growth_step) {
            let reason = format!("{} is not between 1 and {MAX_ROWS}", self.growth_step);
            return Err(Error::argument("kv.growth_step", reason));
        }
        if self.slack > MAX_ROWS {
            let reason = format!("{} is more than {MAX_ROWS}", self.slack);
            return Err(Error::argument("kv.slack", reason));
        }
        if !self.is_quantized() {
            return Ok(());
        }
        if !GROUP_SIZES.contains(&self.group_size) {
            let reason = format!("{} is none of 32, 64, 128", self.group_size);
            return Err(Error::argument("kv.group_size", reason));
        }
        if !config.head_dim.is_multiple_of(self.group_size) {
            let reason =
                format!("{} does not divide the head_dim of {}", self.group_size, config.head_dim);
            return Err(Error::argument("kv.group_size", reason));
        }
        if !config.layer_types.contains(&LayerType::FullAttention) {
            let reason = "the model has no full layer, and sliding layers stay in floats";
            let field = match self.key_bits {
                KvBits::Float => "kv.value_bits",
                _ => "kv.key_bits",
            };
            return Err(Error::argument(field, reason));
        }
        Ok(())
    }

    /// All fields as JSON, for a file; two policies are the same when their texts are.
    pub(crate) fn to_json(self) -> String {
        let Self {
            key_bits,
            value_bits,
            group_size,
            quantize_from,
            slack,
            growth_step,
            snapshot_every,
            snapshot_bytes,
        } = self;
        serde_json::json!({
            "key_bits": key_bits.bits(),
            "value_bits": value_bits.bits(),
            "group_size": group_size,
            "quantize_from": quantize_from,
            "slack": slack,
            "growth_step": growth_step,
            "snapshot_every": snapshot_every,
            "snapshot_bytes": snapshot_bytes,
        })
        .to_string()
    }

    /// How keys are packed; None for floats.
    pub(super) fn key_packing(&self) -> Option<QuantizationParams> {
        self.packing(self.key_bits)
    }

    /// How values are packed; None for floats.
    pub(super) fn value_packing(&self) -> Option<QuantizationParams> {
        self.packing(self.value_bits)
    }

    fn packing(&self, bits: KvBits) -> Option<QuantizationParams> {
        let bits = bits.bits()?;
        Some(QuantizationParams { group_size: self.group_size, bits, mode: Mode::Affine })
    }
}
