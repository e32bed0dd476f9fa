//! Rotary position embedding with YaRN's frequencies (Peng et al., "YaRN: Efficient Context Window
//! Extension of Large Language Models", 2023), as GPT-OSS uses it.

use std::f64::consts::TAU;

/// The parameters of the rotation.
#[derive(Clone, Debug)]
pub struct Yarn {
    /// Width of a head; pairs are (i, i + head_dim / 2).
    pub head_dim: usize,
    /// RoPE's theta.
    pub base: f64,
    /// Context extension; 1 or less for plain RoPE.
    pub factor: f64,
    /// Rotations over the original context from which a frequency is left as it is.
    pub beta_fast: f64,
    /// Rotations over the original context up to which a frequency is divided by `factor`.
    pub beta_slow: f64,
    /// Context length before the extension.
    pub original: usize,
    /// Round the range outwards to whole dimensions.
    pub truncate: bool,
}

impl Yarn {
    /// The values of gpt-oss-20b and 120b.
    pub fn gpt_oss() -> Self {
        Self {
            head_dim: 64,
            base: 150_000.0,
            factor: 32.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original: 4096,
            truncate: false,
        }
    }

    /// The pairs between which the frequencies go over from kept to interpolated.
    pub fn range(&self) -> (f64, f64) {
        // The pair i turns original / (TAU · base^(2i / head_dim)) times over the original
        // context; solved for i.
        let pair = |rotations: f64| {
            self.head_dim as f64 / 2.0 * (self.original as f64 / (rotations * TAU)).ln()
                / self.base.ln()
        };
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low.max(0.0), high.min(self.head_dim as f64 - 1.0))
    }

    /// Radians per position, one for each of the head_dim / 2 pairs.
    pub fn inv_freq(&self) -> Vec<f64> {
        let (low, high) = self.range();
        let width = if high == low { 0.001 } else { high - low };
        (0..self.head_dim / 2)
            .map(|i| {
                let plain = self.base.powf(-2.0 * i as f64 / self.head_dim as f64);
                if self.factor <= 1.0 {
                    return plain;
                }
                let interpolated = ((i as f64 - low) / width).clamp(0.0, 1.0);
                plain * (1.0 - interpolated) + plain / self.factor * interpolated
            })
            .collect()
    }

    /// What cosine and sine are multiplied by, for queries and keys alike.
    pub fn concentration(&self) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * self.factor.ln() + 1.0 }
    }

    /// Rotates every head of one position's queries or keys (`heads · head_dim` values).
    pub fn rotate(&self, x: &mut [f64], position: usize) {
        let (freqs, concentration) = (self.inv_freq(), self.concentration());
        for head in x.chunks_mut(self.head_dim) {
            let (first, second) = head.split_at_mut(self.head_dim / 2);
            for ((a, b), freq) in first.iter_mut().zip(second).zip(&freqs) {
                let (sin, cos) = (position as f64 * freq).sin_cos();
                let (x, y) = (*a * concentration, *b * concentration);
                (*a, *b) = (x * cos - y * sin, y * cos + x * sin);
            }
        }
    }
}
