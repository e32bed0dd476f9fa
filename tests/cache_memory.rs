//! The memory of a cache, by MLX's own counter: what a sequence holds is what its cache says it
//! holds, however long it grows and however often it goes back.
//!
//! The only test of its program, so that nothing else uses memory meanwhile.

mod common;

use common::layouts::{Packing, Shape};
use common::random_model;
use common::rng::Rng;
use gpt_oss_mlx::{Cache, GenerateOptions, KvBits, KvPolicy, LoadOptions, Model, Session};
use mlx_rs::{Array, memory};
use safetensors::Dtype;
use serde_json::json;

/// Large keys and values beside small weights: 16 KB for a token in each layer.
const SHAPE: Shape = Shape {
    layers: 2,
    hidden: 32,
    heads: 16,
    kv_heads: 16,
    head_dim: 64,
    width: 32,
    experts: 2,
    vocab: 61,
};
const WINDOW: usize = 64;
/// Tokens, logits, and what MLX rounds up for each array.
const SMALL: usize = 256 << 10;

fn model() -> Model {
    let dir = tempfile::tempdir().unwrap();
    let config = SHAPE.config(json!({"sliding_window": WINDOW, "num_experts_per_tok": 2}));
    let specs = SHAPE.mlx(Dtype::F32, |_| Packing::Float);
    random_model::write(dir.path(), &config, &specs, &|_| Packing::Float, 7);
    Model::load(dir.path(), &LoadOptions::default()).unwrap()
}

fn ids(len: usize) -> Vec<u32> {
    let mut rng = Rng::new(3);
    (0..len).map(|_| rng.below(SHAPE.vocab) as u32).collect()
}

fn feed(model: &Model, cache: &mut Cache, ids: &[u32]) {
    model.forward(ids, cache).unwrap().eval().unwrap();
}

/// Bytes beyond those at the start.
fn held(before: usize) -> usize {
    // Behind all that is queued, so that it holds no memory any more.
    Array::from_int(1).add(Array::from_int(1)).unwrap().eval().unwrap();
    memory::clear_cache().unwrap();
    memory::active_memory().unwrap().saturating_sub(before)
}

fn assert_holds(before: usize, cache: &Cache, what: &str) {
    let (held, said) = (held(before), cache.nbytes());
    println!("{what}: {held} bytes held, {said} said, {} tokens", cache.len());
    assert!(held.abs_diff(said) < SMALL, "{what}: {held} bytes held, {said} said");
}

#[test]
fn a_cache_holds_what_it_says() {
    let model = model();
    feed(&model, &mut model.new_cache(), &ids(300));
    let start = held(0);

    for bits in [KvBits::Float, KvBits::Eight] {
        let mut policy = KvPolicy::quantized(bits);
        policy.snapshot_every = 100;
        policy.snapshot_bytes = 6 << 20;
        as_it_grows_and_goes_back(&model, &policy, start);
        in_a_session(&model, &policy, start);
    }
    assert!(held(start) < SMALL);
    a_snapshot_leaves_the_next_write_in_place(&model);
    assert!(held(start) < SMALL);
}

fn as_it_grows_and_goes_back(model: &Model, policy: &KvPolicy, start: usize) {
    // First chunks that fill the memory of full layers, or of sliding ones, to the last row.
    for first in [policy.growth_step, WINDOW - 1 + policy.slack + 64, 1000] {
        let mut cache = model.new_cache_with(policy).unwrap();
        feed(model, &mut cache, &ids(first));
        assert_holds(start, &cache, "a first chunk");
    }
    let mut cache = model.new_cache_with(policy).unwrap();
    for (n, id) in ids(1100).iter().enumerate() {
        feed(model, &mut cache, &[*id]);
        if n % 300 == 299 {
            assert_holds(start, &cache, "token by token");
        }
    }
    // What is cut off is let go, before anything is fed again.
    for to in [1090, 800, 500, 10] {
        cache.rewind(to).unwrap();
        assert_holds(start, &cache, "gone back");
    }
    assert!(cache.nbytes() < 24 << 20);
    feed(model, &mut cache, &ids(5));
    assert_holds(start, &cache, "gone back and on");
    // A clone costs nothing before it is written to, and nothing when it is gone.
    let clone = cache.clone();
    assert_holds(start, &cache, "a clone");
    feed(model, &mut cache, &[1]);
    drop(clone);
    assert_holds(start, &cache, "a clone that is gone");
    cache.clear();
    assert_holds(start, &cache, "cleared");
}

fn in_a_session(model: &Model, policy: &KvPolicy, start: usize) {
    let mut options = GenerateOptions::default();
    options.max_tokens = 2000;
    options.stop_ids = Some(vec![]);
    let mut session = Session::with_policy(model, policy).unwrap();
    memory::reset_peak_memory().unwrap();
    let mut generation = model.generate_in(&mut session, &ids(300), &options).unwrap();
    assert_eq!(generation.by_ref().filter(|token| token.is_ok()).count(), 2000);
    drop(generation);
    let peak = memory::peak_memory().unwrap() - start;
    assert_holds(start, session.cache(), "a session");
    // While a full layer's memory grows, the old and the new are there.
    assert!(peak < 2 * session.cache().nbytes() + SMALL, "{peak} bytes at once");
    let earlier = session.ids()[..1500].to_vec();
    assert!(session.reuse(&earlier).unwrap() > 0);
    assert_holds(start, session.cache(), "a session gone back");
    let branch = session.clone();
    drop(session);
    assert_holds(start, branch.cache(), "a branch");
}

/// Most bytes held at once while one token is fed, beyond those before.
fn peak_of_one_token(model: &Model, cache: &mut Cache) -> usize {
    memory::clear_cache().unwrap();
    let before = memory::active_memory().unwrap();
    memory::reset_peak_memory().unwrap();
    feed(model, cache, &[1]);
    memory::peak_memory().unwrap().saturating_sub(before)
}

fn a_snapshot_leaves_the_next_write_in_place(model: &Model) {
    let mut policy = KvPolicy::default();
    policy.snapshot_every = 0;
    let mut cache = model.new_cache_with(&policy).unwrap();
    // No move and no growth in the next few tokens.
    feed(model, &mut cache, &ids(1030));
    feed(model, &mut cache, &[1]);
    let block = (WINDOW - 1 + policy.slack + 64) * SHAPE.kv_heads * SHAPE.head_dim * 4;
    let in_place = peak_of_one_token(model, &mut cache);
    cache.snapshot().unwrap();
    assert!(cache.nbytes() > 0);
    let after_snapshot = peak_of_one_token(model, &mut cache);
    println!("one token: {in_place} bytes; after a snapshot {after_snapshot}; a block {block}");
    assert!(in_place < block / 2 && after_snapshot < in_place + block / 2);
    // What a copy would look like.
    let clone = cache.clone();
    let copied = peak_of_one_token(model, &mut cache);
    assert!(copied > in_place + block, "{copied}");
    drop(clone);
}
