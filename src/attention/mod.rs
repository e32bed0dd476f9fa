//! Grouped-query attention with sinks: `AttentionBlock` of OpenAI's `gpt_oss/torch/model.py`.

mod batch;
mod masks;
mod packed;

use mlx_rs::fast::{ScaledDotProductAttentionMask as Mask, scaled_dot_product_attention};
use mlx_rs::{Array, ops};

use crate::cache::{KeysValues, LayerCache, Rows};
use crate::config::{Config, LayerType};
use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::mlx;
use crate::rope::{Rope, softmax_scale};

pub(crate) use masks::Masks;

/// Fewest queries that are taken at once when a chunk is cut into blocks.
pub(crate) const MIN_BLOCK: i32 = 64;
/// Most queries whose scores are computed for a whole packed cache. For more, unpacking it once
/// costs less than the scores' memory.
pub(crate) const PACKED_QUERIES: i32 = 8;
/// Scores of a block from which the host waits for it before it queues the next. MLX allocates what
/// it queues, some blocks ahead: for large ones that memory counts, for small ones the waiting.
pub(crate) const WAIT_FROM_SCORES: i32 = 1 << 21;

/// The projections into attention.
#[derive(Debug)]
pub(crate) enum Qkv {
    /// One projection; its outputs are the query, key and value heads in this order.
    Joined(Linear),
    /// Three projections, for checkpoints that store them in different ways.
    Apart([Linear; 3]),
}

impl Qkv {
    /// [batch, length, hidden] → [batch, length, (heads + 2 · key-value heads) · head_dim].
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Joined(linear) => linear.forward(x),
            Self::Apart([q, k, v]) => {
                Ok(ops::concatenate(&[q.forward(x)?, k.forward(x)?, v.forward(x)?], -1)?)
            }
        }
    }
}

/// Sizes that all layers share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    window: i32,
    scale: f32,
    /// Queries of a full layer that are taken at once.
    full_block: i32,
}

impl AttentionShape {
    pub(crate) fn new(config: &Config, on_gpu: bool) -> Result<Self> {
        let size = |field: &'static str, n: usize| {
            i32::try_from(n).map_err(|_| Error::argument(field, "too large"))
        };
        Ok(Self {
            heads: size("num_attention_heads", config.num_attention_heads)?,
            kv_heads: size("num_key_value_heads", config.num_key_value_heads)?,
            head_dim: size("head_dim", config.head_dim)?,
            window: size("sliding_window", config.sliding_window)?,
            scale: softmax_scale(config),
            // The fused GPU kernels leave out what a causal mask hides; MLX's CPU path computes
            // all scores, so that there blocks save time and memory.
            full_block: if on_gpu { i32::MAX } else { MIN_BLOCK },
        })
    }
}

/// The attention of one layer.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) shape: AttentionShape,
    pub(crate) layer_type: LayerType,
    pub(crate) qkv: Qkv,
    /// [heads]: one more score for every query, which takes weight and gives nothing.
    pub(crate) sinks: Array,
    pub(crate) o_proj: Linear,
}

impl Attention {
    /// [batch, length, hidden] → the same, appending to the cache. `offset` is the position of
    /// the first row.
    pub(crate) fn forward(
        &self,
        x: &Array,
        rope: &Rope,
        offset: i32,
        masks: &mut Masks,
        cache: &mut LayerCache,
    ) -> Result<Array> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let &[batch, length, _] = x.shape() else {
            return Err(Error::Mlx { op: "attention", message: format!("shape {:?}", x.shape()) });
        };
        let all_heads = heads + 2 * kv_heads;
        let qkv = self.qkv.forward(x)?; // [batch, length, all_heads · head_dim]
        let qkv = heads_first(&qkv, [batch, length, all_heads, head_dim])?;
        let select = |array: &Array, from: i32, to: i32| {
            mlx::slice(array, &[0, from, 0, 0], &[batch, to, length, head_dim])
        };
        // Queries and keys lie side by side, so that one call turns both.
        let turned = rope.forward(&select(&qkv, 0, heads + kv_heads)?, offset)?;
        let queries = select(&turned, 0, heads)?;
        let keys = select(&turned, heads, heads + kv_heads)?;
        let values = select(&qkv, heads + kv_heads, all_heads)?;

        let seen = cache.update(keys, values)?; // [batch, kv_heads, seen, head_dim]
        let mixed = match (&seen.keys, &seen.values) {
            _ if length == 1 => self.attend_one(&queries, &seen)?,
            (Rows::Float(keys), Rows::Float(values)) => {
                self.in_blocks(&queries, keys, values, masks)?
            }
            _ if length <= PACKED_QUERIES => {
                let mask = masks.causal(length, seen.count()?)?;
                self.attend_packed(&queries, &seen, Some(mask))?
            }
            _ => {
                let dtype = queries.dtype();
                let (keys, values) = (seen.keys.unpacked(dtype)?, seen.values.unpacked(dtype)?);
                self.in_blocks(&queries, &keys, &values, masks)?
            }
        }; // [batch, heads, length, head_dim]
        let mixed = if length == 1 { mixed } else { mixed.transpose_axes(&[0, 2, 1, 3])? };
        self.o_proj.forward(&mixed.reshape(&[batch, length, heads * head_dim])?)
    }

    /// softmax over scores and sink, times values. One entry for all layers; the sink is never
    /// left out.
    fn attend(
        &self,
        queries: &Array,
        keys: &Array,
        values: &Array,
        mask: Option<Mask<'_>>,
    ) -> Result<Array> {
        let scale = self.shape.scale;
        // mlx-rs takes the mask through a conversion that has no form for an `Option`.
        Ok(match mask {
            Some(Mask::Array(mask)) => {
                scaled_dot_product_attention(queries, keys, values, scale, mask, &self.sinks)?
            }
            Some(causal) => {
                scaled_dot_product_attention(queries, keys, values, scale, causal, &self.sinks)?
            }
            None => scaled_dot_product_attention(queries, keys, values, scale, None, &self.sinks)?,
        })
    }

    /// [`Attention::attend`] on a cache of which keys or values are packed.
    fn attend_packed(
        &self,
        queries: &Array,
        seen: &KeysValues,
        mask: Option<&Array>,
    ) -> Result<Array> {
        let AttentionShape { scale, kv_heads, .. } = self.shape;
        packed::attend(queries, seen, &self.sinks, scale, kv_heads, mask)
    }

    /// Attention of a single query, which needs no mask: the cache shows it what it may see and
    /// nothing else.
    fn attend_one(&self, queries: &Array, seen: &KeysValues) -> Result<Array> {
        match (&seen.keys, &seen.values) {
            (Rows::Float(keys), Rows::Float(values)) => self.attend(queries, keys, values, None),
            _ => self.attend_packed(queries, seen, None),
        }
    }

    /// Attention of several queries, a block of them at a time, each with the keys that some query
    /// of the block sees. Without that, a chunk's scores would be computed for all of its keys,
    /// most of which a sliding layer does not look at.
    fn in_blocks(
        &self,
        queries: &Array,
        keys: &Array,
        values: &Array,
        masks: &mut Masks,
    ) -> Result<Array> {
        let AttentionShape { window, full_block, .. } = self.shape;
        let (&[batch, heads, length, dim], &[_, kv_heads, seen, _]) =
            (queries.shape(), keys.shape())
        else {
            return Err(Error::Mlx { op: "attention", message: "rank of queries or keys".into() });
        };
        let (block, reach) = match self.layer_type {
            LayerType::FullAttention => (full_block, seen),
            LayerType::SlidingAttention => (window.max(MIN_BLOCK), window),
        };
        let earlier = seen - length;
        let rows = |array: &Array, heads: i32, from: i32, to: i32| {
            mlx::slice(array, &[0, 0, from, 0], &[batch, heads, to, dim])
        };
        let mut outputs: Vec<Array> = Vec::new();
        let mut start = 0;
        while start < length {
            let stop = length.min(start.saturating_add(block));
            let (first, last) = ((earlier + start - (reach - 1)).max(0), earlier + stop);
            let queries = match (outputs.last(), self.layer_type) {
                // MLX goes through a graph breadth-first: it would compute the scores of all blocks
                // before it uses those of the first, and hold them all.
                (Some(before), LayerType::FullAttention) => {
                    let scores = heads.saturating_mul(block).saturating_mul(last);
                    if scores >= WAIT_FROM_SCORES {
                        before.eval()?;
                    }
                    mlx::depends(&rows(queries, heads, start, stop)?, before)?
                }
                _ => rows(queries, heads, start, stop)?,
            };
            let (keys, values) =
                (rows(keys, kv_heads, first, last)?, rows(values, kv_heads, first, last)?);
            // Up to `reach` keys, "not after the query" says everything that a mask would say.
            let mask = match last - first <= reach {
                true => Mask::Causal,
                false => Mask::Array(masks.sliding(stop - start, last - first, window)?),
            };
            outputs.push(self.attend(&queries, &keys, &values, Some(mask))?);
            start = stop;
        }
        match outputs.as_slice() {
            [one] => Ok(one.clone()),
            _ => Ok(ops::concatenate(&outputs, 2)?),
        }
    }
}

/// [batch, length, heads · head_dim] → [batch, heads, length, head_dim]. For a single row the two
/// are the same numbers in the same order.
fn heads_first(x: &Array, [batch, length, heads, head_dim]: [i32; 4]) -> Result<Array> {
    if length == 1 {
        return Ok(x.reshape(&[batch, heads, 1, head_dim])?);
    }
    Ok(x.reshape(&[batch, length, heads, head_dim])?.transpose_axes(&[0, 2, 1, 3])?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use mlx_rs::{Dtype, memory};

    use super::*;
    use crate::cache::{Cache, KvBits, KvPolicy};
    use crate::linear::Weight;
    use crate::mlx::Device;

    const TOKENS: i32 = 32 << 10;
    const CHUNK: i32 = 512;

    /// One full layer of gpt-oss-20b.
    fn config() -> Config {
        let text = serde_json::json!({
            "model_type": "gpt_oss",
            "hidden_size": 2880,
            "num_hidden_layers": 1,
            "layer_types": ["full_attention"],
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 2880,
            "num_local_experts": 32,
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

    /// Numbers between -1 and 1 without a pattern that matters.
    fn numbers(shape: &[i32]) -> Array {
        let count: i32 = shape.iter().product();
        let data: Vec<f32> = (0..count).map(|i| ((i % 100_003) as f32 * 0.7).sin()).collect();
        Array::from_slice(&data, shape)
    }

    fn linear(inputs: i32, outputs: i32) -> Linear {
        let weight = numbers(&[inputs, outputs]).multiply(Array::from_f32(0.02)).unwrap();
        weight.eval().unwrap();
        Linear { weight: Weight::Float(weight), bias: None, unpack_from: usize::MAX }
    }

    /// The most memory that the last chunk of a long prompt takes, besides the weights: the cache is
    /// then at its largest, and so are the scores.
    fn peak(config: &Config, attention: &Attention, policy: &KvPolicy) -> usize {
        memory::clear_cache().unwrap();
        let before = memory::active_memory().unwrap();
        let rope = Rope::new(config).unwrap();
        let mut cache = Cache::new(config, policy);
        let layer = cache.layers.first_mut().unwrap();
        let rows = numbers(&[1, 8, CHUNK, 64]);
        for _ in 1..TOKENS / CHUNK {
            layer.update(rows.clone(), rows.clone()).unwrap();
            layer.held().unwrap().arrays().for_each(|array| array.eval().unwrap());
        }
        drop(rows);
        memory::reset_peak_memory().unwrap();
        let x = numbers(&[1, CHUNK, 2880]);
        let mut masks = Masks::new(Dtype::Float32);
        let out = attention.forward(&x, &rope, TOKENS - CHUNK, &mut masks, layer).unwrap();
        out.eval().unwrap();
        assert_eq!(layer.held().unwrap().count().unwrap(), TOKENS);
        memory::peak_memory().unwrap() - before
    }

    /// `docs/kv-cache.md` states what this prints; `tests/kv_memory.rs` is a smaller form of it.
    #[test]
    #[ignore = "takes minutes, and must run alone: MLX counts memory for the whole process"]
    fn a_prompt_of_32k_in_the_20b_shape_takes_at_most_twice_the_memory_of_floats() {
        Device::Auto
            .run(|| {
                let config = config();
                let attention = Attention {
                    shape: AttentionShape::new(&config, Device::Auto.is_gpu())?,
                    layer_type: LayerType::FullAttention,
                    qkv: Qkv::Joined(linear(2880, 80 * 64)),
                    sinks: numbers(&[64]),
                    o_proj: linear(64 * 64, 2880),
                };
                let mut of_floats = None;
                for bits in [KvBits::Float, KvBits::Eight] {
                    let policy = KvPolicy::quantized(bits);
                    let peak = peak(&config, &attention, &policy);
                    let line = format!("{bits:?}: {} MB at most", peak / 1_000_000);
                    let _ = writeln!(std::io::stderr(), "{line}");
                    assert!(peak <= 2 * *of_floats.get_or_insert(peak), "{line}");
                }
                Ok(())
            })
            .unwrap();
    }
}
