//! Grouped-query attention with sinks: `AttentionBlock` of OpenAI's `gpt_oss/torch/model.py`.

use mlx_rs::fast::{ScaledDotProductAttentionMask as Mask, scaled_dot_product_attention};
use mlx_rs::{Array, ops};

use crate::cache::LayerCache;
use crate::config::{Config, LayerType};
use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::mlx;
use crate::rope::{Rope, softmax_scale};

/// Fewest queries that are taken at once when a chunk is cut into blocks.
const MIN_BLOCK: i32 = 64;

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
        masks: &mut SlidingMasks,
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

        let (keys, values) = cache.update(keys, values)?; // [batch, kv_heads, seen, head_dim]
        let mixed = if length == 1 {
            // The cache shows a single query what it may see and nothing else.
            self.attend(&queries, &keys, &values, None)?
        } else {
            self.in_blocks(&queries, &keys, &values, masks)?
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

    /// Attention of several queries, a block of them at a time, each with the keys that some query
    /// of the block sees. Without that, a chunk's scores would be computed for all of its keys,
    /// most of which a sliding layer does not look at.
    fn in_blocks(
        &self,
        queries: &Array,
        keys: &Array,
        values: &Array,
        masks: &mut SlidingMasks,
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
                false => Mask::Array(masks.get(stop - start, last - first, window)?),
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

/// The masks of one forward pass, made once for all sliding layers.
#[derive(Debug)]
pub(crate) struct SlidingMasks {
    dtype: mlx_rs::Dtype,
    /// By number of queries and keys; two or three entries at most.
    made: Vec<((i32, i32), Array)>,
}

impl SlidingMasks {
    /// Masks to be added to scores of type `dtype`.
    pub(crate) fn new(dtype: mlx_rs::Dtype) -> Self {
        Self { dtype, made: Vec::new() }
    }

    /// 0 where a query sees a key, −∞ elsewhere, [queries, keys]; the last query is that of the
    /// last key.
    fn get(&mut self, queries: i32, keys: i32, window: i32) -> Result<&Array> {
        let key = (queries, keys);
        if !self.made.iter().any(|(made, _)| *made == key) {
            self.made.push((key, self.make(queries, keys, window)?));
        }
        self.made
            .iter()
            .find_map(|(made, mask)| (*made == key).then_some(mask))
            .ok_or_else(|| Error::Mlx { op: "mask", message: "not made".into() })
    }

    fn make(&self, queries: i32, keys: i32, window: i32) -> Result<Array> {
        let query: Vec<i32> = (keys - queries..keys).collect();
        let query = Array::from_slice(&query, &[queries, 1]);
        let key = Array::from_slice(&(0..keys).collect::<Vec<i32>>(), &[1, keys]);
        let behind = query.subtract(&key)?;
        // A window of w sees the query's own key and the w − 1 before it.
        let seen =
            ops::logical_and(behind.ge(Array::from_int(0))?, behind.lt(Array::from_int(window))?)?;
        let mask = ops::select(&seen, Array::from_f32(0.0), Array::from_f32(f32::NEG_INFINITY))?;
        Ok(mask.as_dtype(self.dtype)?)
    }
}
