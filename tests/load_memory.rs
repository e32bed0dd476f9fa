//! How much memory loading takes: a random checkpoint of 1 GB never needs more than its own size
//! and that of its largest tensor, and the mapped files are let go.
//!
//! The only test of its program, so that nothing else uses memory meanwhile.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::large_model::{self, Sizes};
use common::layouts::Shape;
use gpt_oss_mlx::{GenerateOptions, LoadOptions, Model};
use mlx_rs::memory;
use safetensors::Dtype;
use serde_json::Map;

/// MXFP4 experts of 36.8 MB, an embedding and a head of 54.3 MB, 1.03 GB in all.
const SHAPE: Shape = Shape {
    layers: 8,
    hidden: 1472,
    heads: 16,
    kv_heads: 4,
    head_dim: 64,
    width: 1472,
    experts: 32,
    vocab: 32_768,
};

/// What the process needs besides: stacks, tables, memory that malloc keeps after it was freed.
const SLACK: usize = 32 << 20;

/// Memory of this process that belongs to no file, bytes; None where the system does not say.
fn anonymous_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? * 1024)
}

/// Runs `f`; returns how much anonymous memory there was at most meanwhile.
fn with_peak<T>(f: impl FnOnce() -> T) -> (T, Option<usize>) {
    let done = AtomicBool::new(false);
    let sample = || {
        let mut peak = None;
        while !done.load(Ordering::Acquire) {
            peak = peak.max(anonymous_memory());
            thread::sleep(Duration::from_millis(1));
        }
        peak.max(anonymous_memory())
    };
    thread::scope(|scope| {
        let sampler = scope.spawn(sample);
        let result = f();
        done.store(true, Ordering::Release);
        (result, sampler.join().unwrap())
    })
}

/// Loads the model; `level` is the anonymous memory before anything was loaded. Measured from there,
/// since freed memory that malloc keeps would hide as much of a second load.
fn check(dir: &Path, sizes: &Sizes, level: Option<usize>, fuse_gate_up: bool) {
    let mut options = LoadOptions::default();
    options.fuse_gate_up = fuse_gate_up;
    let active_before = memory::active_memory().unwrap();
    memory::reset_peak_memory().unwrap();
    let (model, peak) = with_peak(|| Model::load(dir, &options).expect("the model loads"));
    let peak = peak.zip(level).map(|(peak, level)| peak.saturating_sub(level));
    let mlx_peak = memory::peak_memory().unwrap().saturating_sub(active_before);
    println!(
        "fuse_gate_up {fuse_gate_up}: files {}, largest tensor {}, peak {peak:?}, MLX's {mlx_peak}",
        sizes.total, sizes.largest
    );
    let limit = sizes.total + sizes.largest;
    assert!(mlx_peak <= limit + SLACK, "MLX held {mlx_peak} of {limit} bytes");
    // On a GPU the weights are elsewhere.
    if cfg!(all(target_os = "linux", not(feature = "cuda"))) {
        let peak = peak.expect("/proc/self/status has RssAnon");
        assert!(peak <= limit + SLACK, "the process held {peak} of {limit} bytes");
        assert!(peak >= sizes.total - SLACK, "{peak} bytes cannot hold the model: not measured");
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains(".safetensors"), "a file is still mapped");
    }

    let mut greedy = GenerateOptions::default();
    greedy.max_tokens = 1;
    let mut generation = model.generate(&[1], &greedy).unwrap();
    generation.next().expect("a token").expect("from finite logits");
    assert!(generation.timings().peak_memory >= mlx_peak, "Timings reports MLX's counter");
    drop(generation);

    drop(model);
    memory::clear_cache().unwrap();
    let left = memory::active_memory().unwrap().saturating_sub(active_before);
    assert!(left <= SLACK, "{left} bytes outlive the model");
}

#[test]
fn loading_takes_the_models_size_and_at_most_its_largest_tensor_more() {
    let started = Instant::now();
    // Not in the system's folder for temporary files, which may be in memory itself.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // Floats are f32, which the CPU computes in, so that the loaded model is as large as the files.
    let sizes = large_model::write(dir.path(), &SHAPE, Dtype::F32, Map::new());
    assert!(sizes.total >= 1_000_000_000);
    println!("written in {:?}", started.elapsed());
    let level = anonymous_memory();
    for fuse_gate_up in [true, false] {
        check(dir.path(), &sizes, level, fuse_gate_up);
    }
    println!("done in {:?}", started.elapsed());
}
