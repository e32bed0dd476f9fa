//! Memory that MLX allocates for a prompt: at most, with keys and values quantized and as floats, in
//! one full layer, so that the scores would show if they were computed for all queries at once; and
//! in the end, which is the cache and nothing else.
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

/// Everything small but the heads.
const SHAPE: Shape = Shape {
    layers: 1,
    hidden: 64,
    heads: 8,
    kv_heads: 2,
    head_dim: 64,
    width: 32,
    experts: 1,
    vocab: 64,
};
const TOKENS: usize = 2048;
/// The allocator rounds arrays up, and a sliding layer's block that was moved is computed, and the one
/// before it let go, by the next step only.
const ROUNDING: usize = 1 << 19;

/// A random model with one layer of this kind.
fn model(layer_type: &str) -> Model {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"num_experts_per_tok": 1, "layer_types": [layer_type]});
    let floats = |_: &str| Packing::Float;
    let specs = SHAPE.mlx(Dtype::F32, floats);
    random_model::write(dir.path(), &SHAPE.config(config), &specs, &floats, 1);
    Model::load(dir.path(), &LoadOptions::default()).unwrap()
}

/// The most memory that a prompt takes, fed in chunks, besides the model. `TOKENS` is a whole number of growth steps, so that a chunk may fill all
/// the memory at once.
fn prefill(model: &Model, policy: &KvPolicy, chunk: usize) -> usize {
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
    assert!(left.abs_diff(cache.nbytes()) < ROUNDING, "{left}, not {}", cache.nbytes());
    let computed = policy.bytes(model.config(), TOKENS, model.activation_bytes());
    assert!(left < computed.total() as usize + ROUNDING, "{left}: {computed:?}");
    assert!(left + ROUNDING > (computed.full + computed.sliding) as usize, "{left}: {computed:?}");
    println!("{policy:?}, chunks of {chunk}: at most {peak}, in the end {left}");
    peak
}

fn a_long_prompt_takes_no_more_than_twice_the_memory_of_floats() {
    let model = model("full_attention");
    // Of all queries with all keys, in all heads.
    let scores = SHAPE.heads * TOKENS * TOKENS * model.activation_bytes();
    for chunk in [512, TOKENS] {
        let mut of_floats = None;
        for (keys, values) in [(Float, Float), (Eight, Eight), (Four, Four), (Float, Eight)] {
            let mut policy = KvPolicy::default();
            (policy.key_bits, policy.value_bits) = (keys, values);
            let peak = prefill(&model, &policy, chunk);
            assert!(peak < scores / 2, "{peak}: the scores alone are {scores}");
            let most = 2 * *of_floats.get_or_insert(peak);
            assert!(peak <= most, "{policy:?}: {peak}, more than {most}");
        }
    }
}

/// A snapshot that were a view would hold the whole block that it was taken from.
fn snapshots_take_what_they_say() {
    let model = model("sliding_attention");
    let mut policy = KvPolicy::default();
    policy.snapshot_every = 100;
    for chunk in [100, 512] {
        prefill(&model, &policy, chunk);
    }
}

/// MLX counts memory for the whole process: one after the other.
#[test]
fn the_memory_of_prompts() {
    snapshots_take_what_they_say();
    a_long_prompt_takes_no_more_than_twice_the_memory_of_floats();
}
