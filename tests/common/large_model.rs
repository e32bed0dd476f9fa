//! Random checkpoints of a gigabyte, written fast: for tests that look at memory, not at numbers.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::layouts::{Shape, mxfp4_q, mxfp4_q_config};
use super::rng::Rng;
use super::safetensors::{Spec, Tensor, place, write_index, write_with};

const SHARDS: usize = 4;

/// What a model's files hold.
pub struct Sizes {
    /// Bytes of all tensors.
    pub total: usize,
    /// Bytes of the largest.
    pub largest: usize,
}

/// Writes a checkpoint in mlx-lm's layout, MXFP4-Q8, in several files; `extra` are further fields
/// of its config.
pub fn write(dir: &Path, shape: &Shape, float: Dtype, extra: Map<String, Value>) -> Sizes {
    let mut config = mxfp4_q_config(shape, 8);
    config.as_object_mut().unwrap().extend(extra);
    std::fs::write(dir.join("config.json"), shape.config(config)).unwrap();
    let specs = shape.mlx(float, mxfp4_q(8));
    let mut shards: Vec<Vec<Spec>> = vec![Vec::new(); SHARDS];
    let per_shard = specs.len().div_ceil(SHARDS);
    for (i, spec) in specs.into_iter().enumerate() {
        shards[i / per_shard].push(spec);
    }
    let random = Random::new();
    let mut listed = Vec::new();
    let mut sizes = Sizes { total: 0, largest: 0 };
    for (i, specs) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{SHARDS:05}.safetensors", i + 1);
        let tensors = place(specs);
        write_with(&dir.join(&file), &tensors, |tensor, bytes| random.fill(tensor, bytes));
        for tensor in tensors {
            let size = (tensor.end - tensor.start) as usize;
            sizes.total += size;
            sizes.largest = sizes.largest.max(size);
            listed.push((tensor.name, file.clone()));
        }
    }
    write_index(dir, listed.iter().map(|(name, file)| (name.as_str(), file.as_str())));
    sizes
}

/// A megabyte of random numbers of each kind, repeated: random enough for memory, and fast.
struct Random {
    codes: Vec<u8>,
    exponents: Vec<u8>,
    f32s: Vec<u8>,
    bf16s: Vec<u8>,
}

impl Random {
    fn new() -> Self {
        const LEN: usize = 1 << 20;
        let mut rng = Rng::new(8);
        let codes = (0..LEN / 8).flat_map(|_| rng.bits().to_le_bytes()).collect();
        let mut rng = Rng::new(9);
        let exponents = (0..LEN).map(|_| 120 + rng.below(3) as u8).collect();
        let floats: Vec<f32> = (0..LEN / 4).map(|_| 0.001 * (rng.uniform() - 0.5) as f32).collect();
        let f32s = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
        let bf16s = floats
            .iter()
            .flat_map(|float| ((float.to_bits() >> 16) as u16).to_le_bytes())
            .collect();
        Self { codes, exponents, f32s, bf16s }
    }

    fn fill(&self, tensor: &Tensor, bytes: &mut [u8]) {
        let source = match tensor.dtype {
            Dtype::F32 => &self.f32s,
            Dtype::BF16 => &self.bf16s,
            Dtype::U8 => &self.exponents,
            _ => &self.codes,
        };
        for chunk in bytes.chunks_mut(source.len()) {
            chunk.copy_from_slice(&source[..chunk.len()]);
        }
    }
}
