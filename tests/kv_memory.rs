//! The most memory that a long prompt takes, with keys and values quantized and as floats: one full
//! layer, so that the scores would show if they were computed for all queries at once.
//!
//! The only test of its program, since MLX counts memory for the whole process.

mod common;

use common::layouts::{Packing, Shape};
use common::random_model;
use gpt_oss_mlx::KvBits::{Eight, Float, Four};
use gpt_oss_mlx::{KvPolicy, LoadOptions, Model};
use mlx_rs::memory;
use safetensors::Dtype;
use serde_json::json;

/// As many query heads for a key as in the published models; everything else small.
const SHAPE: Shape = Shape {
    layers: 1,
    hidden: 64,
    heads: 8,
    kv_heads: 1,
    head_dim: 64,
    width: 32,
    experts: 1,
    vocab: 64,
};
/// Not a whole number of growth steps: MLX takes rows that fill all the memory as they are, a part
/// of larger arrays, and copies them when the next ones come.
const TOKENS: usize = 3000;

/// What a prompt took.
#[derive(Debug)]
struct Taken {
    /// At most, besides the model.
    peak: usize,
    /// At the end: the cache.
    left: usize,
}

/// Feeds a prompt in chunks.
fn prefill(model: &Model, policy: &KvPolicy, chunk: usize) -> Taken {
    let mut cache = model.new_cache_with(policy).unwrap();
    memory::clear_cache().unwrap();
    memory::reset_peak_memory().unwrap();
    let before = memory::active_memory().unwrap();
    let ids: Vec<u32> = (0..TOKENS).map(|i| (i * i % SHAPE.vocab) as u32).collect();
    for ids in ids.chunks(chunk) {
        model.forward(ids, &mut cache).unwrap().eval().unwrap();
    }
    let peak = memory::peak_memory().unwrap() - before;
    let left = memory::active_memory().unwrap() - before;
    assert_eq!(cache.len(), TOKENS);
    Taken { peak, left }
}

#[test]
fn a_long_prompt_takes_no_more_than_twice_the_memory_of_floats() {
    let dir = tempfile::tempdir().unwrap();
    let config = SHAPE.config(json!({
        "num_experts_per_tok": 1,
        "layer_types": ["full_attention"],
    }));
    let floats = |_: &str| Packing::Float;
    random_model::write(dir.path(), &config, &SHAPE.mlx(Dtype::F32, floats), &floats, 1);
    let model = Model::load(dir.path(), &LoadOptions::default()).unwrap();
    let item_size = model.activation_bytes();
    // Of all queries with all keys, in all heads.
    let scores = SHAPE.heads * TOKENS * TOKENS * item_size;
    for chunk in [512, TOKENS] {
        let mut of_floats = None;
        for (keys, values) in [(Float, Float), (Eight, Eight), (Four, Four), (Float, Eight)] {
            let mut policy = KvPolicy::default();
            (policy.key_bits, policy.value_bits) = (keys, values);
            let taken = prefill(&model, &policy, chunk);
            println!("{keys:?} and {values:?}, chunks of {chunk}: {taken:?}");
            assert!(taken.peak < scores / 4, "{taken:?}: the scores alone are {scores}");
            let most = 2 * *of_floats.get_or_insert(taken.peak);
            assert!(taken.peak <= most, "{policy:?}: {taken:?}, more than {most}");
            // What is computed is what is allocated; the allocator rounds each array up.
            let computed = policy.bytes(model.config(), TOKENS, item_size).full as usize;
            assert!(taken.left.abs_diff(computed) < 1 << 17, "{taken:?}, computed {computed}");
        }
    }
}
