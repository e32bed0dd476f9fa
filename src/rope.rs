//! Rotary position embedding with YaRN (Peng et al. 2023, arXiv:2309.00071), as GPT-OSS defines it
//! in `gpt_oss/torch/model.py`, class `RotaryEmbedding`.

use std::f64::consts::PI;

use mlx_rs::{Array, fast};

use crate::config::{Config, RopeScaling};
use crate::error::{Error, Result};

/// Turns queries and keys by their position.
#[derive(Debug)]
pub(crate) struct Rope {
    head_dim: i32,
    /// Angle per position is `1 / periods[i]`, f32 [head_dim / 2]: MLX's form.
    periods: Array,
}

impl Rope {
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let periods: Vec<f32> = inverse_frequencies(config)
            .into_iter()
            .map(|frequency| (1.0 / frequency) as f32)
            .collect();
        let (head_dim, half) = match (i32::try_from(config.head_dim), i32::try_from(periods.len()))
        {
            (Ok(head_dim), Ok(half)) => (head_dim, half),
            _ => return Err(Error::argument("head_dim", "too large")),
        };
        Ok(Self { head_dim, periods: Array::from_slice(&periods, &[half]) })
    }

    /// `x` [batch, heads, length, head_dim], whose first row stands at position `offset`.
    pub(crate) fn forward(&self, x: &Array, offset: i32) -> Result<Array> {
        Ok(fast::rope(x, self.head_dim, false, None, 1.0, offset, &self.periods)?)
    }

    /// [`Rope::forward`] of sequences at positions of their own: `offsets` i32 [batch].
    pub(crate) fn forward_each(&self, x: &Array, offsets: &Array) -> Result<Array> {
        Ok(fast::rope_dynamic(x, self.head_dim, false, None, 1.0, offsets, &self.periods)?)
    }
}

/// Angle per position of each pair of dimensions, radians, [head_dim / 2].
pub fn inverse_frequencies(config: &Config) -> Vec<f64> {
    let theta = f64::from(config.rope_theta);
    let head_dim = config.head_dim as f64;
    let pairs = config.head_dim / 2;
    let range = config.rope_scaling.as_ref().map(|yarn| (yarn, yarn_range(config, yarn)));
    (0..pairs)
        .map(|pair| {
            let extrapolated = theta.powf(-2.0 * pair as f64 / head_dim);
            let Some((yarn, (low, high))) = range else { return extrapolated };
            let interpolated = extrapolated / f64::from(yarn.factor);
            let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            interpolated * ramp + extrapolated * (1.0 - ramp)
        })
        .collect()
}

/// The pairs between which YaRN goes over from plain to interpolated frequencies: 8.09278 and
/// 17.39802 for the 20b, or 8 and 18 when the config says `truncate`.
pub fn yarn_range(config: &Config, yarn: &RopeScaling) -> (f64, f64) {
    let head_dim = config.head_dim as f64;
    let pair_of = |rotations: f32| {
        let context = yarn.original_max_position_embeddings as f64;
        head_dim * (context / (f64::from(rotations) * 2.0 * PI)).ln()
            / (2.0 * f64::from(config.rope_theta).ln())
    };
    let (mut low, mut high) = (pair_of(yarn.beta_fast), pair_of(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(head_dim - 1.0));
    // A range without width would divide by nothing; transformers widens it in the same way.
    if high <= low { (low, low + 0.001) } else { (low, high) }
}

/// What attention scores are multiplied by: 1/√head_dim, times the square of YaRN's concentration
/// 0.1·ln(factor) + 1, which the definition applies to queries and keys each.
pub fn softmax_scale(config: &Config) -> f32 {
    let concentration = match &config.rope_scaling {
        Some(yarn) if yarn.factor > 1.0 => 0.1 * f64::from(yarn.factor).ln() + 1.0,
        _ => 1.0,
    };
    (concentration.powi(2) / (config.head_dim as f64).sqrt()) as f32
}
