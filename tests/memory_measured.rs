//! The estimate of memory against MLX's own counters: never less than was measured, and not much
//! more.
//!
//! The only test of its program, since the counters are the process's.

mod common;

use std::path::Path;

use common::large_model;
use common::layouts::Shape;
use gpt_oss_mlx::{GenerateOptions, KvBits, KvPolicy, LoadOptions, Model, Session};
use mlx_rs::memory;
use safetensors::Dtype;
use serde_json::json;

/// Many experts and a wide vocabulary: 0.96 GB, of which a token uses little; and many heads, for
/// attention to need memory.
const SHAPE: Shape = Shape {
    layers: 4,
    hidden: 512,
    heads: 32,
    kv_heads: 4,
    head_dim: 64,
    width: 512,
    experts: 480,
    vocab: 131_072,
};

/// Bytes that MLX held at most, over those at the start: while loading, and then in prefill and
/// decoding.
struct Measured {
    weights: u64,
    loading: u64,
    running: u64,
    cache: u64,
}

fn measure(dir: &Path, options: &LoadOptions, context: usize, chunk: usize) -> Measured {
    memory::clear_cache().unwrap();
    let before = memory::active_memory().unwrap();
    let over = |bytes: usize| bytes.saturating_sub(before) as u64;
    memory::reset_peak_memory().unwrap();
    let model = Model::load(dir, options).unwrap();
    let weights = over(memory::active_memory().unwrap());
    let loading = over(memory::peak_memory().unwrap());

    const ANSWER: usize = 8;
    let prompt: Vec<u32> = (0..(context - ANSWER) as u32).map(|i| i * 7 % 1000).collect();
    let mut generate = GenerateOptions::default();
    generate.prefill_chunk = chunk;
    generate.max_tokens = ANSWER;
    generate.stop_ids = Some(Vec::new());
    let mut session = Session::new(&model);
    memory::reset_peak_memory().unwrap();
    let answer = model.generate_in(&mut session, &prompt, &generate).unwrap();
    assert_eq!(answer.map(Result::unwrap).count(), ANSWER);
    let running = over(memory::peak_memory().unwrap());
    Measured { weights, loading, running, cache: session.cache().nbytes() as u64 }
}

/// MLX's counters on a GPU follow other rules, which nobody has compared with the estimate yet.
#[cfg(all(target_os = "linux", not(feature = "cuda")))]
#[test]
fn the_estimate_is_what_loading_and_running_a_model_takes() {
    // Not in the system's folder for temporary files, which may be in memory itself.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let extra = json!({"num_experts_per_tok": 2});
    let fields = extra.as_object().unwrap().clone();
    let sizes = large_model::write(dir.path(), &SHAPE, Dtype::BF16, fields);
    assert!(sizes.total > 900_000_000);

    let float = KvPolicy::default();
    let (eight, four) = (KvPolicy::quantized(KvBits::Eight), KvPolicy::quantized(KvBits::Four));
    for (context, chunk, mut policy) in [(512, 512, float), (256, 64, eight), (1024, 512, four)] {
        // The budget counts whether it is used up or not, and would hide what else is estimated.
        policy.snapshot_bytes = 2 << 20;
        let mut options = LoadOptions::default();
        options.kv = policy;
        options.max_context = Some(context);
        let estimate = Model::estimate_memory(dir.path(), &options).unwrap();
        let estimate = estimate.with_prefill_chunk(chunk);
        let measured = measure(dir.path(), &options, context, chunk);
        let peak = measured.loading.max(measured.running);
        println!(
            "context {context}, chunk {chunk}, keys {:?}: weights {} of {}, loading {} of {}, \
             cache {}, beyond weights {} of {}, peak {peak} of {}",
            policy.key_bits,
            measured.weights,
            estimate.weights,
            measured.loading,
            estimate.load_peak,
            measured.cache,
            measured.running - measured.weights,
            estimate.cache.total() + estimate.working,
            estimate.total(),
        );
        let between = |what: &str, measured: u64, estimate: u64, percent: u64| {
            let most = measured + measured / 100 * percent;
            assert!(estimate >= measured, "{what}: {measured} bytes, estimated {estimate}");
            assert!(estimate <= most, "{what}: {measured} bytes, estimated {estimate}");
        };
        // MLX's constants besides the weights are a few kilobytes.
        let (slack, weights) = (1 << 20, estimate.weights);
        between("weights", measured.weights, weights + slack, 1);
        between("loading", measured.loading, estimate.load_peak + slack, 1);
        between("peak", peak, estimate.total(), 10);
        // Small arrays, logits of a sampler and unpacked weights are allowed for in any case.
        const FIXED: u64 = 24 << 20;
        let beyond = measured.running - measured.weights;
        let estimated = estimate.cache.total() + estimate.working;
        assert!((beyond..=2 * beyond + FIXED).contains(&estimated), "{beyond}: {estimated}");
    }
}
