//! A batched step leaves nothing behind but a row in each cache.
//!
//! The only test of its program, since MLX's counters are the process's.

use std::path::Path;

use gpt_oss_mlx::{Cache, KvBits, KvPolicy, LoadOptions, Model};
use mlx_rs::memory;

const STEPS: usize = 200;
/// What MLX's reuse of memory of about the right size makes of 13 MB; the logits of a single step
/// are as much.
const REUSE: usize = 64 << 10;

/// Bytes in arrays.
fn active() -> usize {
    memory::active_memory().unwrap()
}

#[test]
fn memory_is_flat_over_many_steps_and_free_after_them() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/gpt-oss-tiny");
    let model = Model::load(dir, &LoadOptions::default()).unwrap();
    let at_first = active();
    let cache = |row: usize| {
        let mut policy = KvPolicy::default();
        // Room for all steps from the first on, and no copies for going back.
        (policy.growth_step, policy.snapshot_every) = (1024, 0);
        if row % 2 == 1 {
            (policy.key_bits, policy.value_bits) = (KvBits::Eight, KvBits::Four);
        }
        let mut cache = model.new_cache_with(&policy).unwrap();
        let ids: Vec<u32> = (0..1 + 37 * row as u32).collect();
        model.forward(&ids, &mut cache).unwrap().eval().unwrap();
        cache
    };
    let mut caches: Vec<Cache> = (0..8).map(cache).collect();
    let held = active() - at_first;
    let in_caches: usize = caches.iter().map(Cache::nbytes).sum();
    for step in 0..STEPS {
        let mut caches: Vec<&mut Cache> = caches.iter_mut().collect();
        let tokens: Vec<u32> = (0..8).map(|row| (row * 31 + step as u32 * 7) % 2000).collect();
        let logits = model.forward_batch(&tokens, &mut caches).unwrap();
        logits.eval().unwrap();
        drop(logits);
        let off = active().abs_diff(at_first + held);
        assert!(off < REUSE, "off by {off} bytes after {} steps", step + 1);
    }
    assert_eq!(caches.iter().map(Cache::nbytes).sum::<usize>(), in_caches);
    drop(caches);
    assert_eq!(active(), at_first);
}
