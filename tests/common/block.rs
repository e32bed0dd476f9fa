//! A whole transformer block and a whole small model, in f64 on f32 weights.

use super::affine;
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

/// How full layers keep keys and values.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kv {
    /// None for floats.
    pub key_bits: Option<usize>,
    /// None for floats.
    pub value_bits: Option<usize>,
    /// Numbers that share a scale.
    pub group_size: usize,
    /// Queries from this position on see what quantization leaves of keys and values, of all
    /// positions; those before it see floats.
    pub quantize_from: usize,
}

impl Kv {
    /// What is left of rows in so many bits.
    fn kept(&self, rows: &[Vec<f64>], bits: Option<usize>) -> Vec<Vec<f64>> {
        let Some(bits) = bits else { return rows.to_vec() };
        let through = |row: &Vec<f64>| {
            let row: Vec<f32> = row.iter().map(|&v| v as f32).collect();
            let row = affine::through_mlx(&row, bits, self.group_size);
            row.into_iter().map(f64::from).collect()
        };
        rows.iter().map(through).collect()
    }
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
    /// Query, key and value at one position.
    fn project(&self, x: &[f64], position: usize) -> [Vec<f64>; 3] {
        let x = rms_norm(x, &self.input_norm, self.eps);
        let (mut q, mut k) = (self.q.forward(&x), self.k.forward(&x));
        self.yarn.rotate(&mut q, position);
        self.yarn.rotate(&mut k, position);
        [q, k, self.v.forward(&x)]
    }

    /// How far the key and the value of this input are from being rounded otherwise, in steps.
    pub fn rounding_margin(&self, x: &[f64], position: usize, kv: &Kv) -> f64 {
        let [_, key, value] = self.project(x, position);
        let margin = |row: &[f64], bits: Option<usize>| {
            let row: Vec<f32> = row.iter().map(|&v| v as f32).collect();
            bits.map_or(0.5, |bits| affine::rounding_margin(&row, bits, kv.group_size))
        };
        margin(&key, kv.key_bits).min(margin(&value, kv.value_bits))
    }

    /// The whole sequence at once, from position 0.
    pub fn forward(&self, x: &[Vec<f64>], kv: &Kv) -> Vec<Vec<f64>> {
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in x.iter().enumerate() {
            let [query, key, value] = self.project(x, position);
            queries.push(query);
            keys.push(key);
            values.push(value);
        }
        // Sliding layers stay in floats.
        let floats = match self.attention.window {
            None => kv.quantize_from.min(x.len()),
            Some(_) => x.len(),
        };
        let (before, after) = queries.split_at(floats);
        let mut attended = self.attention.forward(before, &keys, &values, &self.sinks, 0);
        let (keys, values) = (kv.kept(&keys, kv.key_bits), kv.kept(&values, kv.value_bits));
        attended.extend(self.attention.forward(after, &keys, &values, &self.sinks, floats));
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
        self.hidden_with(ids, &Kv::default())
    }

    fn hidden_with(&self, ids: &[u32], kv: &Kv) -> Vec<Vec<Vec<f64>>> {
        let mut states = vec![ids.iter().map(|&id| self.embedded(id)).collect::<Vec<_>>()];
        for block in &self.blocks {
            let next = block.forward(states.last().expect("the embedding"), kv);
            states.push(next);
        }
        states
    }

    /// A token's row of the embedding.
    pub fn embedded(&self, id: u32) -> Vec<f64> {
        let width = self.norm.len();
        let row = &self.embedding[id as usize * width..(id as usize + 1) * width];
        row.iter().map(|&v| f64::from(v)).collect()
    }

    /// Logits at every position: [position][vocab].
    pub fn forward(&self, ids: &[u32]) -> Vec<Vec<f64>> {
        self.forward_with(ids, &Kv::default())
    }

    /// [`Model::forward`] with keys and values of full layers kept like that.
    pub fn forward_with(&self, ids: &[u32], kv: &Kv) -> Vec<Vec<f64>> {
        let states = self.hidden_with(ids, kv);
        let last = states.last().expect("the embedding");
        let eps = self.blocks.first().map_or(1e-5, |block| block.eps);
        last.iter().map(|x| self.head.forward(&rms_norm(x, &self.norm, eps))).collect()
    }
}
