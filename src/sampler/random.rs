//! Random numbers that follow from the seed and the step: no state, neither ours nor MLX's.

use mlx_rs::Array;

use crate::error::Result;
use crate::mlx::random_uniform;

/// The streams of random numbers of one step.
#[derive(Clone, Copy)]
enum Purpose {
    Draw = 1,
    Xtc = 2,
}

/// 64 random bits for one purpose at one step.
fn bits(seed: u64, step: u64, purpose: Purpose) -> u64 {
    mix(mix(mix(seed) ^ step) ^ purpose as u64)
}

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014): one
/// step from the state `x`.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Whether XTC is applied at this step. Known to the host, so that a step without it costs
/// nothing.
pub(super) fn coin(seed: u64, step: u64, probability: f32) -> bool {
    // 53 bits make a number in [0, 1), exactly.
    let uniform = (bits(seed, step, Purpose::Xtc) >> 11) as f64 / (1u64 << 53) as f64;
    uniform < f64::from(probability)
}

/// Gumbel noise for the draw at this step, f32 `[len]`.
pub(super) fn gumbel(seed: u64, step: u64, len: i32) -> Result<Array> {
    /// Half of the least number above 0 that MLX's uniform gives: keeps the noise finite.
    const LEAST: f32 = 1.0 / (1u64 << 33) as f32;
    let bits = bits(seed, step, Purpose::Draw);
    let key = Array::from_slice(&[(bits >> 32) as u32, bits as u32], &[2]);
    let uniform = mlx_rs::ops::maximum(random_uniform(&key, &[len])?, Array::from_f32(LEAST))?;
    // -ln(-ln(1 - u)). Not -ln(-ln(u)): large noise then comes from numbers near 0, which are 2^8
    // times as dense as those near 1, and decides among many unlikely tokens.
    Ok(uniform.negative()?.log1p()?.negative()?.log()?.negative()?)
}
