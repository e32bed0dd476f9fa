//! How much memory loading takes: a random checkpoint of 1 GB never needs more than its own size
//! and that of its largest tensor, and the mapped files are let go.
//!
//! The only test of its program, so that nothing else uses memory meanwhile.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::layouts::{Shape, mxfp4_q, mxfp4_q_config};
use common::rng::Rng;
use common::safetensors::{Spec, Tensor, place, write_index, write_with};
use gpt_oss_mlx::{GenerateOptions, LoadOptions, Model};
use mlx_rs::memory;
use safetensors::Dtype;

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
const SHARDS: usize = 4;

/// What the process needs besides: stacks, tables, memory that malloc keeps after it was freed.
const SLACK: usize = 32 << 20;

/// What a model's files hold.
struct Sizes {
    /// Bytes of all tensors.
    total: usize,
    /// Bytes of the largest.
    largest: usize,
}

/// Writes the checkpoint in several files. Floats are f32, which the CPU computes in, so that the
/// loaded model is as large as the files.
fn write_model(dir: &Path) -> Sizes {
    let config = SHAPE.config(mxfp4_q_config(&SHAPE, 8));
    std::fs::write(dir.join("config.json"), config).unwrap();
    let specs = SHAPE.mlx(Dtype::F32, mxfp4_q(8));
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
    floats: Vec<u8>,
}

impl Random {
    fn new() -> Self {
        const LEN: usize = 1 << 20;
        let mut rng = Rng::new(8);
        let codes = (0..LEN / 8).flat_map(|_| rng.bits().to_le_bytes()).collect();
        let mut rng = Rng::new(9);
        let exponents = (0..LEN).map(|_| 120 + rng.below(3) as u8).collect();
        let mut float = || 0.001 * (rng.uniform() - 0.5) as f32;
        let floats = (0..LEN / 4).flat_map(|_| float().to_le_bytes()).collect();
        Self { codes, exponents, floats }
    }

    fn fill(&self, tensor: &Tensor, bytes: &mut [u8]) {
        let source = match tensor.dtype {
            Dtype::F32 => &self.floats,
            Dtype::U8 => &self.exponents,
            _ => &self.codes,
        };
        for chunk in bytes.chunks_mut(source.len()) {
            chunk.copy_from_slice(&source[..chunk.len()]);
        }
    }
}

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
    let sizes = write_model(dir.path());
    assert!(sizes.total >= 1_000_000_000);
    println!("written in {:?}", started.elapsed());
    let level = anonymous_memory();
    for fuse_gate_up in [true, false] {
        check(dir.path(), &sizes, level, fuse_gate_up);
    }
    println!("done in {:?}", started.elapsed());
}
