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
    /// Snapshots of the sliding layers taken every so many tokens. A session's turns add theirs, up
    /// to the policy's budget in all.
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
        let one = self.one_snapshot(config, tokens, item_size);
        let capacity = sliding::capacity(config.sliding_window, self.slack);
        // Besides those taken every so many tokens there are those asked for, at the ends of turns
        // for example: one at each position at most.
        KvBytes {
            full: bytes(rows).saturating_mul(per_row),
            sliding: sliding_bytes(config, capacity, item_size),
            snapshots: bytes(tokens).saturating_mul(one).min(bytes(self.snapshot_bytes)),
        }
    }

    /// Bytes of a snapshot after `tokens`; 0 when none is kept.
    pub(crate) fn one_snapshot(&self, config: &Config, tokens: usize, item_size: usize) -> u64 {
        if self.snapshot_bytes == 0 {
            return 0;
        }
        let rows = sliding::kept(config.sliding_window, self.slack).min(tokens);
        sliding_bytes(config, rows, item_size)
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

/// Bytes of so many rows in all sliding layers.
fn sliding_bytes(config: &Config, rows: usize, item_size: usize) -> u64 {
    let row = kv_row(config, KvBits::Float, KvBits::Float, 1, item_size);
    let layers = count(config, LayerType::SlidingAttention);
    bytes(rows).saturating_mul(bytes(row)).saturating_mul(bytes(layers))
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mlx_rs::{Dtype, ops};

    use super::*;
    use crate::cache::{Cache, KeysValues, LayerCache};

    /// The published models, as far as a cache depends on them.
    fn config(layers: usize, experts: usize) -> Config {
        let text = serde_json::json!({
            "model_type": "gpt_oss",
            "hidden_size": 2880,
            "num_hidden_layers": layers,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 2880,
            "num_local_experts": experts,
            "num_experts_per_tok": 4,
            "vocab_size": 201_088,
            "sliding_window": 128,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150_000,
            "rope_scaling": null,
            "attention_bias": true,
        });
        Config::from_json(Path::new("config.json"), &text.to_string()).unwrap()
    }

    fn gpt_oss_20b() -> Config {
        config(24, 32)
    }

    fn gpt_oss_120b() -> Config {
        config(36, 128)
    }

    fn policy(key_bits: KvBits, value_bits: KvBits) -> KvPolicy {
        KvPolicy { key_bits, value_bits, ..KvPolicy::default() }
    }

    fn policies() -> Vec<KvPolicy> {
        let all = [KvBits::Float, KvBits::Eight, KvBits::Four];
        all.iter().flat_map(|&key| all.map(|value| policy(key, value))).collect()
    }

    #[test]
    fn a_token_takes_the_bytes_that_were_worked_out_by_hand() {
        // 12 full layers, a key and a value, 8 heads of 64: 2 bytes each; or a byte or half of one
        // each, and two groups' worth of 4 bytes.
        let of = |config: &Config, bits| KvPolicy::quantized(bits).bytes_per_token(config, 2);
        let [b20, b120] = [gpt_oss_20b(), gpt_oss_120b()];
        assert_eq!(of(&b20, KvBits::Float), 24_576);
        assert_eq!(of(&b20, KvBits::Eight), 13_056);
        assert_eq!(of(&b20, KvBits::Four), 6_912);
        assert_eq!(of(&b120, KvBits::Float), 36_864);
        assert_eq!(of(&b120, KvBits::Eight), 19_584);
        assert_eq!(of(&b120, KvBits::Four), 10_368);
        let mixed = policy(KvBits::Eight, KvBits::Four);
        assert_eq!(mixed.bytes_per_token(&b20, 2), (13_056 + 6_912) / 2);
        let groups_of_32 = KvPolicy { group_size: 32, ..KvPolicy::quantized(KvBits::Four) };
        assert_eq!(groups_of_32.bytes_per_token(&b20, 2), 12 * 2 * 8 * (32 + 2 * 4));
    }

    /// Bytes of the arrays of full layers, of sliding ones, and of snapshots.
    fn held(cache: &Cache) -> KvBytes {
        let of = |full: bool| {
            let layers = cache.layers.iter();
            let layers = layers.filter(|layer| matches!(layer, LayerCache::Full(_)) == full);
            let arrays = layers.flat_map(LayerCache::held).flat_map(KeysValues::arrays);
            arrays.map(|array| bytes(array.nbytes())).sum::<u64>()
        };
        let (full, sliding) = (of(true), of(false));
        KvBytes { full, sliding, snapshots: bytes(cache.nbytes()) - full - sliding }
    }

    /// Feeds every layer keys and values of so many tokens.
    fn feed(cache: &mut Cache, config: &Config, tokens: usize, dtype: Dtype) {
        let rows = ops::ones_dtype(&[1, 8, i32::try_from(tokens).unwrap(), 64], dtype).unwrap();
        cache.begin(config, tokens).unwrap();
        for layer in &mut cache.layers {
            layer.update(rows.clone(), rows.clone()).unwrap();
        }
        cache.advance(tokens).unwrap();
        cache.arrays().for_each(|array| array.eval().unwrap());
    }

    fn assert_as_computed(cache: &Cache, config: &Config, item_size: usize) {
        let computed = cache.policy().bytes(config, cache.len(), item_size);
        let held = held(cache);
        let what = format!("{} tokens, {:?}", cache.len(), cache.policy());
        assert_eq!(held.full, computed.full, "{what}");
        assert_eq!(held.sliding, computed.sliding, "{what}");
        assert!(held.snapshots <= computed.snapshots, "{what}: {} bytes", held.snapshots);
    }

    #[test]
    fn arrays_take_the_bytes_that_are_computed() {
        for (config, lengths) in
            [(gpt_oss_20b(), &[1, 255, 256, 257, 4096][..]), (gpt_oss_120b(), &[257, 4096])]
        {
            for policy in policies() {
                let mut cache = Cache::new(&config, &policy);
                assert_eq!(held(&cache), policy.bytes(&config, 0, 2));
                for length in lengths {
                    while cache.len() < *length {
                        let left = length - cache.len();
                        feed(&mut cache, &config, left.min(512), Dtype::Bfloat16);
                    }
                    assert_as_computed(&cache, &config, 2);
                }
                let snapshots = held(&cache).snapshots;
                assert!(snapshots > 0, "none was taken, and nothing was shown");
            }
        }
    }

    #[test]
    fn arrays_shrink_when_a_cache_is_quantized_half_way() {
        let config = gpt_oss_20b();
        for item_size in [2, 4] {
            let dtype = if item_size == 2 { Dtype::Float16 } else { Dtype::Float32 };
            for from in [1, 256, 300] {
                let policy = KvPolicy {
                    quantize_from: from,
                    growth_step: 100,
                    group_size: 32,
                    slack: 5,
                    ..policy(KvBits::Eight, KvBits::Four)
                };
                let mut cache = Cache::new(&config, &policy);
                for length in [from - 1, from, from + 1, 2 * from + 1] {
                    let new = length - cache.len();
                    if new > 0 {
                        feed(&mut cache, &config, new, dtype);
                    }
                    assert_as_computed(&cache, &config, item_size);
                }
            }
        }
    }

    #[test]
    fn snapshots_asked_for_at_every_token_stay_within_what_is_computed() {
        let config = gpt_oss_20b();
        for (snapshot_every, snapshot_bytes) in [(0, 64 << 20), (1, 20 << 20), (512, 0)] {
            let policy = KvPolicy { snapshot_every, snapshot_bytes, ..KvPolicy::default() };
            let mut cache = Cache::new(&config, &policy);
            for _ in 0..30 {
                feed(&mut cache, &config, 1, Dtype::Bfloat16);
                cache.snapshot().unwrap();
                assert_as_computed(&cache, &config, 2);
            }
        }
    }

    #[test]
    fn long_contexts_fit_in_memory_in_every_policy() {
        for config in [gpt_oss_20b(), gpt_oss_120b()] {
            for policy in policies() {
                for (tokens, most) in [(8 << 10, 2_000_000_000), (128 << 10, 10_000_000_000)] {
                    let total = policy.bytes(&config, tokens, 2).total();
                    assert!(total < most, "{total} bytes for {tokens} tokens in {policy:?}");
                }
            }
        }
    }

    #[test]
    fn the_table_in_the_docs_is_what_is_computed() {
        let docs = include_str!("../../docs/kv-cache.md");
        let named = [
            ("floats", KvBits::Float, KvBits::Float),
            ("8 bits", KvBits::Eight, KvBits::Eight),
            ("keys 8, values 4", KvBits::Eight, KvBits::Four),
            ("4 bits", KvBits::Four, KvBits::Four),
        ];
        for (model, config) in [("20b", gpt_oss_20b()), ("120b", gpt_oss_120b())] {
            for (what, key_bits, value_bits) in named {
                let policy = policy(key_bits, value_bits);
                let per_token = policy.bytes_per_token(&config, 2);
                let megabytes = [4, 8, 128].map(|k| {
                    let KvBytes { full, sliding, .. } = policy.bytes(&config, k << 10, 2);
                    format!("{:.1}", (full + sliding) as f64 / 1e6)
                });
                let row = format!(
                    "| {model} | {what} | {},{:03} | {} |",
                    per_token / 1000,
                    per_token % 1000,
                    megabytes.join(" | ")
                );
                assert!(docs.contains(&row), "not in docs/kv-cache.md: {row}");
            }
        }
    }

    #[test]
    fn sizes_that_no_memory_has_do_not_overflow() {
        let policy = KvPolicy { growth_step: usize::MAX, slack: usize::MAX, ..KvPolicy::default() };
        let bytes = policy.bytes(&gpt_oss_120b(), usize::MAX, usize::MAX);
        assert_eq!(bytes.total(), u64::MAX);
    }
}
