//! A whole transformer block and a whole small model, in f64 on f32 weights.

use super::attention::{Attention, dot};
use super::moe::Moe;
use super::rng::Rng;
use super::yarn::Yarn;

/// y = W x + b.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Row-major [out, inputs].
    pub weight: Vec<f32>,
    /// [out]
    pub bias: Option<Vec<f32>>,
    /// Input width.
    pub inputs: usize,
}

impl Linear {
    /// A layer with random weights of about unit gain.
    pub fn random(rng: &mut Rng, outputs: usize, inputs: usize, bias: bool) -> Self {
        Self {
            weight: rng.normals(outputs * inputs, 1.0 / (inputs as f64).sqrt()),
            bias: bias.then(|| rng.normals(outputs, 0.1)),
            inputs,
        }
    }

    /// One vector.
    pub fn forward(&self, x: &[f64]) -> Vec<f64> {
        assert_eq!(x.len(), self.inputs, "input width");
        let row = |row: &[f32]| row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum::<f64>();
        let mut y: Vec<f64> = self.weight.chunks(self.inputs).map(row).collect();
        for (y, &b) in y.iter_mut().zip(self.bias.iter().flatten()) {
            *y += f64::from(b);
        }
        y
    }
}

/// x / sqrt(mean(x²) + eps) · weight.
pub fn rms_norm(x: &[f64], weight: &[f32], eps: f64) -> Vec<f64> {
    assert_eq!(x.len(), weight.len(), "one weight per channel");
    let rms = (dot(x, x) / x.len() as f64 + eps).sqrt();
    x.iter().zip(weight).map(|(x, &w)| x / rms * f64::from(w)).collect()
}

/// One layer.
#[derive(Clone, Debug)]
pub struct Block {
    /// Norm before attention.
    pub input_norm: Vec<f32>,
    /// [heads · head_dim, hidden]
    pub q: Linear,
    /// [kv_heads · head_dim, hidden]
    pub k: Linear,
    /// [kv_heads · head_dim, hidden]
    pub v: Linear,
    /// [hidden, heads · head_dim]
    pub o: Linear,
    /// [heads]
    pub sinks: Vec<f32>,
    /// Norm before the experts.
    pub post_norm: Vec<f32>,
    /// Router and experts.
    pub moe: Moe,
    /// Sizes, window and scale.
    pub attention: Attention,
    /// Position embedding.
    pub yarn: Yarn,
    /// RMSNorm's epsilon.
    pub eps: f64,
}

impl Block {
    /// The whole sequence at once, from position 0.
    pub fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in x.iter().enumerate() {
            let x = rms_norm(x, &self.input_norm, self.eps);
            let (mut q, mut k) = (self.q.forward(&x), self.k.forward(&x));
            self.yarn.rotate(&mut q, position);
            self.yarn.rotate(&mut k, position);
            queries.push(q);
            keys.push(k);
            values.push(self.v.forward(&x));
        }
        let attended = self.attention.forward(&queries, &keys, &values, &self.sinks, 0);
        x.iter()
            .zip(attended)
            .map(|(x, a)| {
                let x = add(x, &self.o.forward(&a));
                add(&x, &self.moe.forward(&rms_norm(&x, &self.post_norm, self.eps)))
            })
            .collect()
    }
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(x, y)| x + y).collect()
}

/// Embedding, layers, norm and head.
#[derive(Clone, Debug)]
pub struct Model {
    /// Row-major [vocab, hidden].
    pub embedding: Vec<f32>,
    /// In order.
    pub blocks: Vec<Block>,
    /// Last norm.
    pub norm: Vec<f32>,
    /// [vocab, hidden], no bias.
    pub head: Linear,
}

impl Model {
    /// The hidden states after the embedding and after every layer: [1 + layers][position].
    pub fn hidden(&self, ids: &[u32]) -> Vec<Vec<Vec<f64>>> {
        let width = self.norm.len();
        let row = |id: &u32| &self.embedding[*id as usize * width..(*id as usize + 1) * width];
        let mut states: Vec<Vec<Vec<f64>>> =
            vec![ids.iter().map(|id| row(id).iter().map(|&v| f64::from(v)).collect()).collect()];
        for block in &self.blocks {
            let next = block.forward(states.last().expect("the embedding"));
            states.push(next);
        }
        states
    }

    /// Logits at every position: [position][vocab].
    pub fn forward(&self, ids: &[u32]) -> Vec<Vec<f64>> {
        let states = self.hidden(ids);
        let last = states.last().expect("the embedding");
        let eps = self.blocks.first().map_or(1e-5, |block| block.eps);
        last.iter().map(|x| self.head.forward(&rms_norm(x, &self.norm, eps))).collect()
    }
}
