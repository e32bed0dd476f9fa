//! Grouped-query attention with sinks: `AttentionBlock` of OpenAI's `gpt_oss/torch/model.py`.

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
const MIN_BLOCK: i32 = 64;
/// Most queries whose scores are computed for a whole packed cache. For more, unpacking it once
/// costs less than the scores' memory.
const PACKED_QUERIES: i32 = 8;

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
            // The cache shows a single query what it may see and nothing else.
            (Rows::Float(keys), Rows::Float(values)) if length == 1 => {
                self.attend(&queries, keys, values, None)?
            }
            (Rows::Float(keys), Rows::Float(values)) => {
                self.in_blocks(&queries, keys, values, masks)?
            }
            _ if length <= PACKED_QUERIES => self.attend_packed(&queries, &seen, masks)?,
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
        masks: &mut Masks,
    ) -> Result<Array> {
        let AttentionShape { scale, kv_heads, .. } = self.shape;
        let mask = match queries.shape() {
            [_, _, 1, _] => None,
            [_, _, length, _] => Some(masks.causal(*length, seen.count()?)?),
            _ => return Err(Error::Mlx { op: "attention", message: "rank of queries".into() }),
        };
        packed::attend(queries, seen, &self.sinks, scale, kv_heads, mask)
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
        let mut outputs = Vec::new();
        let mut start = 0;
        while start < length {
            let stop = length.min(start.saturating_add(block));
            let (first, last) = ((earlier + start - (reach - 1)).max(0), earlier + stop);
            let queries = rows(queries, heads, start, stop)?;
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
