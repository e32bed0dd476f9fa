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

#[cfg(test)]
mod tests {
    use mlx_rs::fast::scaled_dot_product_attention;

    use super::*;
    use crate::attention::Masks;
    use crate::cache::KvBits::{self, Eight, Float, Four};
    use crate::config::{Mode, QuantizationParams};

    const HEADS: usize = 8;
    const DIM: usize = 64;
    const SEEN: usize = 40;
    const SCALE: f32 = 0.125;

    /// Keys and values, in this order.
    const BITS: [[KvBits; 2]; 5] =
        [[Eight, Eight], [Four, Four], [Eight, Four], [Float, Four], [Eight, Float]];

    /// Evenly spread over -size to size, the same for the same seed: the golden ratio's multiples.
    fn numbers(shape: [usize; 4], size: f64, seed: usize, dtype: Dtype) -> Array {
        let number = |i: usize| {
            let x = ((i + 7919 * seed) as f64 * 0.618_033_988_749_894_9).fract();
            ((x * 97.0).fract() * 2.0 - 1.0) * size
        };
        let data: Vec<f32> = (0..shape.iter().product()).map(|i| number(i) as f32).collect();
        Array::from_slice(&data, &shape.map(|n| n as i32)).as_dtype(dtype).unwrap()
    }

    fn f64s(array: &Array) -> Vec<f64> {
        let array = array.as_dtype(Dtype::Float32).unwrap();
        array.eval().unwrap();
        array.as_slice::<f32>().iter().map(|&v| f64::from(v)).collect()
    }

    fn rows(array: Array, bits: KvBits) -> Rows {
        let params =
            bits.bits().map(|bits| QuantizationParams { group_size: 32, bits, mode: Mode::Affine });
        Rows::Float(array).packed(params).unwrap()
    }

    /// The numbers that rows stand for, worked out here from codes, scales and biases.
    fn meant(rows: &Rows) -> Vec<f64> {
        let PackedRows { codes, scales, biases, params } = match rows {
            Rows::Float(rows) => return f64s(rows),
            Rows::Packed(packed) => packed,
        };
        codes.eval().unwrap();
        let (words, scales, biases) = (codes.as_slice::<u32>(), f64s(scales), f64s(biases));
        let per_word = 32 / params.bits;
        (0..words.len() * per_word)
            .map(|i| {
                let code = words[i / per_word] >> (params.bits * (i % per_word));
                let code = code & ((1 << params.bits) - 1);
                f64::from(code) * scales[i / params.group_size] + biases[i / params.group_size]
            })
            .collect()
    }

    /// By the definition: exp(score) / (exp(sink) + Σ exp(score)), times values. The last query is
    /// at the last key.
    fn oracle(queries: &[f64], seen: &KeysValues, sinks: &[f64], length: usize) -> Vec<f64> {
        let (keys, values) = (meant(&seen.keys), meant(&seen.values));
        let kv_heads = keys.len() / (SEEN * DIM);
        let mut out = Vec::new();
        for (head, &sink) in sinks.iter().enumerate() {
            let at = |rows: &[f64], key: usize, d: usize| {
                rows[(head / (HEADS / kv_heads) * SEEN + key) * DIM + d]
            };
            for query in 0..length {
                let query = &queries[(head * length + query) * DIM..][..DIM];
                let visible = SEEN - length + 1 + out.len() / DIM % length;
                let score = |key: usize| -> f64 {
                    (0..DIM).map(|d| query[d] * at(&keys, key, d)).sum::<f64>() * f64::from(SCALE)
                };
                let scores: Vec<f64> = (0..visible).map(score).collect();
                let most = scores.iter().fold(sink, |most, &score| most.max(score));
                let exps: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                let total = exps.iter().sum::<f64>() + (sink - most).exp();
                let value = |d: usize| {
                    (0..visible).map(|key| exps[key] / total * at(&values, key, d)).sum::<f64>()
                };
                out.extend((0..DIM).map(value));
            }
        }
        out
    }

    /// Root of the mean square of what two results differ by.
    fn off(got: &[f64], want: &[f64]) -> f64 {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().all(|v| v.is_finite()));
        let squares = got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        f64::sqrt(squares / got.len() as f64)
    }

    /// How far [`attend`] is from the oracle, and how far MLX's own attention on the unpacked rows.
    fn errors(
        bits: [KvBits; 2],
        kv_heads: usize,
        length: usize,
        size: f64,
        sinks: &[f32],
        dtype: Dtype,
    ) -> [f64; 2] {
        let queries = numbers([1, HEADS, length, DIM], size, 1, dtype);
        let keys = rows(numbers([1, kv_heads, SEEN, DIM], 1.0, 2, dtype), bits[0]);
        let values = rows(numbers([1, kv_heads, SEEN, DIM], 1.0, 3, dtype), bits[1]);
        let seen = KeysValues { keys, values };
        let sinks = Array::from_slice(sinks, &[HEADS as i32]).as_dtype(dtype).unwrap();
        let want = oracle(&f64s(&queries), &seen, &f64s(&sinks), length);

        let mut masks = Masks::new(dtype);
        let mask = masks.causal(length as i32, SEEN as i32).unwrap();
        let given = (length > 1).then_some(mask);
        let got = attend(&queries, &seen, &sinks, SCALE, kv_heads as i32, given).unwrap();
        assert_eq!(got.shape(), [1, HEADS as i32, length as i32, DIM as i32]);
        assert_eq!(got.dtype(), dtype);
        let keys = seen.keys.unpacked(dtype).unwrap();
        let values = seen.values.unpacked(dtype).unwrap();
        let theirs =
            scaled_dot_product_attention(&queries, &keys, &values, SCALE, mask, &sinks).unwrap();
        [off(&f64s(&got), &want), off(&f64s(&theirs), &want)]
    }

    /// Sinks that take nothing, that take about as much as a key, and that take everything.
    fn some_sinks() -> [f32; HEADS] {
        [-1e4, -80.0, -1.0, 0.0, 1.0, 3.0, 80.0, 1e4]
    }

    fn each_case(mut check: impl FnMut([KvBits; 2], usize, usize, f64)) {
        for bits in BITS {
            for kv_heads in [8, 2, 1] {
                for length in [1, 2, 8] {
                    // Scores of about 1, and of about 40.
                    for size in [1.0, 40.0] {
                        check(bits, kv_heads, length, size);
                    }
                }
            }
        }
    }

    #[test]
    fn it_agrees_with_the_definition() {
        let mut largest = 0f64;
        each_case(|bits, kv_heads, length, size| {
            let [ours, _] = errors(bits, kv_heads, length, size, &some_sinks(), Dtype::Float32);
            largest = largest.max(ours);
            // Values are about 0.5, scores up to 40.
            assert!(ours < 3e-6, "{bits:?}, {kv_heads}, {length}, {size}: {ours:.1e}");
        });
        println!("largest error: {largest:.1e}");
    }

    /// MLX's quantized CPU kernel adds up in the activations' type, the one for floats in f32: √64
    /// times the rounding of one number, for a product of 64.
    #[test]
    fn in_half_precision_it_is_as_exact_as_its_sums_are() {
        for (dtype, unit) in [(Dtype::Bfloat16, 2f64.powi(-8)), (Dtype::Float16, 2f64.powi(-11))] {
            let mut largest = [0f64; 2];
            each_case(|bits, kv_heads, length, size| {
                let [ours, theirs] = errors(bits, kv_heads, length, size, &some_sinks(), dtype);
                largest = [largest[0].max(ours), largest[1].max(theirs)];
                assert!(
                    ours < 8.0 * theirs + unit / 4.0,
                    "{dtype:?}: {bits:?}, {kv_heads}, {length}, {size}: {ours:.1e}, {theirs:.1e}"
                );
            });
            println!("{dtype:?}: {:.1e}, MLX's own {:.1e}", largest[0], largest[1]);
        }
    }

    /// A sink of 1e4 leaves nothing for any value, one of -1e4 everything; both without a NaN.
    #[test]
    fn a_sink_may_take_everything_or_nothing() {
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
            let queries = numbers([1, HEADS, 1, DIM], 1.0, 1, dtype);
            let keys = rows(numbers([1, 1, SEEN, DIM], 1.0, 2, dtype), Eight);
            let ones = ops::ones_dtype(&[1, 1, SEEN as i32, DIM as i32], dtype).unwrap();
            let seen = KeysValues { keys, values: rows(ones, Four) };
            for (sink, want) in [(1e4, 0.0), (-1e4, 1.0)] {
                let sinks = Array::from_slice(&[sink; HEADS], &[HEADS as i32]);
                let sinks = sinks.as_dtype(dtype).unwrap();
                let got = f64s(&attend(&queries, &seen, &sinks, SCALE, 1, None).unwrap());
                // Forty weights of half precision that add up to one.
                assert!(got.iter().all(|v| (v - want).abs() < 0.02), "{dtype:?}, {sink}: {got:?}");
            }
        }
    }
}
