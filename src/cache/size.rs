//! How many bytes a cache takes, computed from the model's shape alone.

use super::KvPolicy;
use super::policy::KvBits;
use super::sliding;
use crate::config::{Config, LayerType};

/// Bytes of the cache of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct KvBytes {
    /// Keys and values of the full layers, rows allocated ahead included.
    pub full: u64,
    /// Keys and values of the sliding layers: the same from the first token on.
    pub sliding: u64,
    /// Most that the snapshots of the sliding layers take.
    pub snapshots: u64,
}

impl KvBytes {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.full.saturating_add(self.sliding).saturating_add(self.snapshots)
    }
}

impl KvPolicy {
    /// Bytes of the cache of one sequence of `tokens` in a model of this shape, where a float of
    /// the activations has `item_size` bytes: 2 on a GPU as a rule, 4 on the CPU.
    pub fn bytes(&self, config: &Config, tokens: usize, item_size: usize) -> KvBytes {
        if tokens == 0 {
            return KvBytes::default();
        }
        let step = self.growth_step.max(1);
        let rows = tokens.div_ceil(step).saturating_mul(step);
        let per_row = self.row_bytes(config, tokens > self.quantize_from, item_size);
        let sliding_row = kv_row(config, KvBits::Float, KvBits::Float, 1, item_size);
        let sliding_layers = count(config, LayerType::SlidingAttention);
        let sliding = |rows: usize| -> u64 {
            bytes(rows).saturating_mul(bytes(sliding_row)).saturating_mul(bytes(sliding_layers))
        };
        let kept = sliding::kept(config.sliding_window, self.slack);
        let one = sliding(kept.min(tokens));
        let taken = tokens.checked_div(self.snapshot_every).map_or(0, bytes);
        KvBytes {
            full: bytes(rows).saturating_mul(per_row),
            sliding: sliding(sliding::capacity(config.sliding_window, self.slack)),
            snapshots: taken.saturating_mul(one).min(bytes(self.snapshot_bytes)),
        }
    }

    /// Bytes that each further token adds once full layers are as the policy wants them:
    /// 24,576 for gpt-oss-20b in bf16, 13,056 in 8 bits and 6,912 in 4 bits with groups of 64.
    pub fn bytes_per_token(&self, config: &Config, item_size: usize) -> u64 {
        self.row_bytes(config, true, item_size)
    }

    /// Bytes of one token in all full layers.
    fn row_bytes(&self, config: &Config, quantized: bool, item_size: usize) -> u64 {
        let (key_bits, value_bits) = match quantized {
            true => (self.key_bits, self.value_bits),
            false => (KvBits::Float, KvBits::Float),
        };
        let row = kv_row(config, key_bits, value_bits, self.group_size, item_size);
        bytes(row).saturating_mul(bytes(count(config, LayerType::FullAttention)))
    }
}

/// Bytes of the key and the value of one token in one layer.
fn kv_row(config: &Config, key: KvBits, value: KvBits, group: usize, item_size: usize) -> usize {
    let row = |bits: KvBits| bits.row_bytes(config.head_dim, group, item_size);
    row(key).saturating_add(row(value)).saturating_mul(config.num_key_value_heads)
}

fn count(config: &Config, kind: LayerType) -> usize {
    config.layer_types.iter().filter(|&&layer| layer == kind).count()
}

fn bytes(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
