//! Decode speed with a quantized cache against floats, on the bundled model, after 1K and 4K
//! tokens. `cargo bench --bench kv_cache`. The policies take turns, so that whatever else the
//! machine does slows all of them; each line is the median of the rounds.

use std::time::Instant;

use gpt_oss_mlx::KvBits::{Eight, Float, Four};
use gpt_oss_mlx::{Cache, KvPolicy, LoadOptions, Model};

const ROUNDS: usize = 15;
const STEPS: usize = 16;
const CHUNK: usize = 512;

fn main() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");
    let model = Model::load(dir, &LoadOptions::default()).expect("the bundled model");
    let mut mixed = KvPolicy::quantized(Eight);
    mixed.value_bits = Four;
    let policies = [
        ("floats", KvPolicy::quantized(Float)),
        ("8 bits", KvPolicy::quantized(Eight)),
        ("keys 8, values 4", mixed),
        ("4 bits", KvPolicy::quantized(Four)),
    ];
    println!("| after | cache | tokens/s | against floats | bytes of the cache |");
    println!("|---|---|---|---|---|");
    for length in [1024, 4096] {
        let mut caches = policies.map(|(_, policy)| filled(&model, &policy, length));
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            for (cache, times) in caches.iter_mut().zip(&mut times) {
                times.push(decode(&model, cache));
            }
        }
        let medians = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        for (((what, _), seconds), cache) in policies.iter().zip(medians).zip(&caches) {
            let (speed, ratio) = (STEPS as f64 / seconds, medians[0] / seconds);
            println!("| {length} | {what} | {speed:.0} | {ratio:.2} | {} |", cache.nbytes());
        }
    }
}

/// A cache of `length` tokens.
fn filled(model: &Model, policy: &KvPolicy, length: usize) -> Cache {
    let mut cache = model.new_cache_with(policy).expect("a cache");
    let ids: Vec<u32> = (0..length).map(|i| (i * 37 % 2000) as u32).collect();
    for ids in ids.chunks(CHUNK) {
        model.forward(ids, &mut cache).expect("logits").eval().expect("numbers");
    }
    cache
}

/// Seconds for a few tokens, one after another.
fn decode(model: &Model, cache: &mut Cache) -> f64 {
    let started = Instant::now();
    for id in 0..STEPS {
        model.forward(&[id as u32 + 100], cache).expect("logits").eval().expect("numbers");
    }
    started.elapsed().as_secs_f64()
}
