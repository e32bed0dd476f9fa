//! Attention of a few queries on a packed cache, without unpacking it.
//!
//! The sink is one more score in each softmax, with no value. Instead of appending it to the scores
//! and cutting it off again, the softmax is taken over the scores alone and its result multiplied by
//! the share that the sink leaves:
//!
//! exp(sᵢ) / (Σ exp(sⱼ) + exp(sink)) = softmax(s)ᵢ · sigmoid(logsumexp(s) − sink)

use mlx_rs::{Array, Dtype, ops};

use crate::cache::{KeysValues, PackedRows, Rows};
use crate::error::{Error, Result};
use crate::mlx;

/// Queries [batch, heads, length, head_dim] over keys and values [batch, kv_heads, seen, head_dim];
/// `sinks` [heads], `mask` [length, seen] or none → [batch, heads, length, head_dim].
pub(super) fn attend(
    queries: &Array,
    seen: &KeysValues,
    sinks: &Array,
    scale: f32,
    kv_heads: i32,
    mask: Option<&Array>,
) -> Result<Array> {
    let &[batch, heads, length, head_dim] = queries.shape() else {
        return Err(Error::Mlx { op: "attention", message: "rank of queries".into() });
    };
    let count = seen.count()?;
    // The query heads of a key-value head lie side by side: as rows of one product they share its
    // keys without repeating them.
    let group = heads / kv_heads.max(1);
    let rows = group * length;
    let queries = queries.multiply(Array::from_f32(scale).as_dtype(queries.dtype())?)?;
    let queries = queries.reshape(&[batch, kv_heads, rows, head_dim])?;

    let mut scores = product(&queries, &seen.keys, true)?; // [batch, kv_heads, rows, seen]
    if let Some(mask) = mask {
        let apart = scores.reshape(&[batch, kv_heads, group, length, count])?;
        scores = apart.add(mask)?.reshape(&[batch, kv_heads, rows, count])?;
    }
    let weights = ops::softmax_axis(&scores, -1, true)?;
    let mixed = product(&weights, &seen.values, false)?; // [batch, kv_heads, rows, head_dim]
    let mixed = mixed.reshape(&[batch, kv_heads, group, length, head_dim])?;

    // In f32 whatever the activations' type: exp would multiply the rounding of large sums.
    let total = scores.as_dtype(Dtype::Float32)?.logsumexp_axes(&[-1], true)?;
    let total = total.reshape(&[batch, kv_heads, group, length, 1])?;
    let sinks = sinks.as_dtype(Dtype::Float32)?.reshape(&[kv_heads, group, 1, 1])?;
    let share = ops::sigmoid(total.subtract(sinks)?)?.as_dtype(mixed.dtype())?;
    Ok(mixed.multiply(share)?.reshape(&[batch, heads, length, head_dim])?)
}

/// `x` [..., n] times rows: with `transpose` over their width (n = head_dim), else over the rows
/// themselves (n = rows).
fn product(x: &Array, rows: &Rows, transpose: bool) -> Result<Array> {
    match rows {
        Rows::Packed(PackedRows { codes, scales, biases, params }) => {
            mlx::quantized_matmul(x, codes, scales, Some(biases), *params, transpose)
        }
        Rows::Float(rows) if transpose => Ok(x.matmul(ops::swap_axes(rows, -1, -2)?)?),
        Rows::Float(rows) => Ok(x.matmul(rows)?),
    }
}
