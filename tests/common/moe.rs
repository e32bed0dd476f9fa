//! The mixture of experts: router, clamped SwiGLU and the weighted sum, one token at a time.

use super::attention::softmax_with_sink;
use super::block::Linear;

/// SwiGLU's steepness in GPT-OSS.
pub const ALPHA: f64 = 1.702;

/// The `top_k` largest logits, the earlier expert first among equals, with the softmax over just
/// these: (expert, weight), greatest first.
pub fn route(logits: &[f64], top_k: usize) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).expect("no NaN").then(a.cmp(&b)));
    order.truncate(top_k);
    let chosen: Vec<f64> = order.iter().map(|&e| logits[e]).collect();
    let weights = softmax_with_sink(&chosen, f64::NEG_INFINITY);
    order.into_iter().zip(weights).collect()
}

/// gate · σ(α gate) · (up + 1), the gate clamped from above only and `up` from both sides.
pub fn swiglu(gate: f64, up: f64, limit: f64) -> f64 {
    let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
    gate / (1.0 + (-ALPHA * gate).exp()) * (up + 1.0)
}

/// The router's and the experts' weights.
#[derive(Clone, Debug)]
pub struct Moe {
    /// [experts, hidden]
    pub router: Linear,
    /// Per expert [intermediate, hidden].
    pub gate: Vec<Linear>,
    /// Per expert [intermediate, hidden].
    pub up: Vec<Linear>,
    /// Per expert [hidden, intermediate].
    pub down: Vec<Linear>,
    /// Experts per token.
    pub top_k: usize,
    /// SwiGLU's clamp.
    pub limit: f64,
}

impl Moe {
    /// One token's hidden state, without the residual.
    pub fn forward(&self, x: &[f64]) -> Vec<f64> {
        let mut sum = vec![0.0; x.len()];
        for (expert, weight) in route(&self.router.forward(x), self.top_k) {
            let gate = self.gate[expert].forward(x);
            let up = self.up[expert].forward(x);
            let hidden: Vec<f64> =
                gate.iter().zip(&up).map(|(&g, &u)| swiglu(g, u, self.limit)).collect();
            for (s, y) in sum.iter_mut().zip(self.down[expert].forward(&hidden)) {
                *s += weight * y;
            }
        }
        sum
    }
}
