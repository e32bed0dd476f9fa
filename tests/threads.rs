//! Models in several threads: at once, one after another, loaded in one thread and used or dropped
//! in another. MLX's streams belong to the thread that made them; the tokens must be those of a
//! single thread all the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::thread;

use gpt_oss_mlx::{Cache, FinishReason, GenerateOptions, LoadOptions, Model, TextModel};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Weights that are cast when they are loaded, weights that are not, and the other layout.
const FOLDERS: [&str; 3] = [
    "assets/gpt-oss-tiny",
    "tests/fixtures/gpt-oss-tiny-f32",
    "tests/fixtures/gpt-oss-tiny-openai",
];

fn load(folder: usize) -> Model {
    let dir = format!("{ROOT}/{}", FOLDERS[folder % FOLDERS.len()]);
    Model::load(dir, &LoadOptions::default()).expect("the model loads")
}

/// A prompt of several chunks, long enough to fill a sliding layer's window, that differs with `n`.
fn prompt(n: usize) -> Vec<u32> {
    (0..70).map(|i| ((7 * i + 31 * n) % 2000) as u32).collect()
}

fn options(sampled: bool, seed: usize) -> GenerateOptions {
    let mut options = GenerateOptions::default();
    options.max_tokens = 24;
    options.prefill_chunk = 16;
    options.stop_ids = Some(vec![]);
    options.logprobs = Some(2);
    options.sampling.seed = seed as u64;
    if sampled {
        options.sampling.temperature = 1.0;
    }
    options
}

/// Greedy tokens and sampled ones.
fn tokens(model: &Model, n: usize) -> [Vec<u32>; 2] {
    [false, true].map(|sampled| {
        let mut generation = model.generate(&prompt(n), &options(sampled, n)).expect("arguments");
        let ids = generation.by_ref().map(|token| token.expect("a token").id).collect();
        assert_eq!(generation.finish_reason(), Some(FinishReason::Length));
        ids
    })
}

/// Runs `f` in a thread of its own, to the thread's end.
fn elsewhere<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(f).join().expect("the thread ends well"))
}

#[test]
fn models_and_caches_may_move() {
    fn assert_send<T: Send>() {}
    assert_send::<Model>();
    assert_send::<TextModel>();
    assert_send::<Cache>();
}

#[test]
fn several_threads_generate_at_once() {
    const THREADS: usize = 4;
    let expected: Vec<_> = (0..THREADS).map(|n| tokens(&load(n), n)).collect();
    assert_ne!(expected[0], expected[3], "same model, other prompt and seed");
    let barrier = Barrier::new(THREADS);
    for round in 0..4 {
        thread::scope(|scope| {
            for (n, expected) in expected.iter().enumerate() {
                let barrier = &barrier;
                scope.spawn(move || {
                    // Loading at once in the first rounds, generating at once in the others.
                    let model = if round < 2 { None } else { Some(load(n)) };
                    barrier.wait();
                    let model = model.unwrap_or_else(|| load(n));
                    assert_eq!(tokens(&model, n), *expected, "thread {n}, round {round}");
                });
            }
        });
    }
}

#[test]
fn a_model_loaded_in_one_thread_runs_in_another() {
    for (folder, name) in FOLDERS.iter().enumerate() {
        let expected = tokens(&load(folder), 1);
        for fuse_gate_up in [true, false] {
            let dir = format!("{ROOT}/{name}");
            let mut options = LoadOptions::default();
            options.fuse_gate_up = fuse_gate_up;
            // Not used there: what is still to be computed must not belong to the thread that ended.
            let model = elsewhere(|| Model::load(dir, &options).expect("the model loads"));
            assert_eq!(tokens(&model, 1), expected, "{name}");
        }
    }
}

#[test]
fn a_model_goes_from_thread_to_thread_and_comes_back() {
    let mut model = load(0);
    let expected = &tokens(&model, 2);
    for _ in 0..3 {
        model = elsewhere(move || {
            assert_eq!(tokens(&model, 2), *expected);
            model
        });
        assert_eq!(tokens(&model, 2), *expected);
    }
}

/// Feeds `ids` and returns the likeliest token after them.
fn likeliest(model: &Model, ids: &[u32], cache: &mut Cache) -> u32 {
    let logits = model.forward(ids, cache).expect("logits");
    let logits = logits.try_as_slice::<f32>().expect("f32 on the CPU");
    let last = logits.chunks(model.config().vocab_size).next_back().expect("a row");
    (0u32..).zip(last).max_by(|a, b| a.1.total_cmp(b.1)).expect("a token").0
}

#[test]
fn a_sequence_goes_on_in_another_thread() {
    let model = load(1);
    let [expected, _] = tokens(&model, 3);
    let (mut model, mut cache, mut ids) = (model, None, prompt(3));
    for &expected in &expected {
        // A new thread for each token; the cache holds what the threads before have computed.
        let (id, next_model, next_cache) = elsewhere(move || {
            let mut cache = cache.unwrap_or_else(|| model.new_cache());
            (likeliest(&model, &ids, &mut cache), model, cache)
        });
        assert_eq!(id, expected);
        (model, cache, ids) = (next_model, Some(next_cache), vec![id]);
    }
}

#[test]
fn models_are_dropped_elsewhere_while_others_run() {
    let model = load(0);
    let expected = tokens(&model, 4);
    thread::scope(|scope| {
        for folder in 0..6 {
            let other = load(folder);
            let mut started = options(false, 0);
            started.max_tokens = 3;
            other.generate(&prompt(folder), &started).expect("arguments").next();
            scope.spawn(move || drop(other));
            assert_eq!(tokens(&model, 4), expected);
        }
    });
}

#[test]
fn a_thread_that_ends_in_the_middle_leaves_the_others_alone() {
    let model = load(0);
    let expected = tokens(&model, 5);
    for panics in [false, true] {
        elsewhere(|| {
            let model = load(0);
            let end_early = || {
                let mut generation =
                    model.generate(&prompt(5), &options(true, 5)).expect("arguments");
                // The step after this one is queued.
                generation.next().expect("a token").expect("no error");
                if panics {
                    std::panic::resume_unwind(Box::new("on purpose"));
                }
            };
            assert_eq!(catch_unwind(AssertUnwindSafe(end_early)).is_err(), panics);
        });
        assert_eq!(tokens(&model, 5), expected);
    }
}

#[test]
fn twenty_threads_one_after_another() {
    let expected = tokens(&load(0), 6);
    for _ in 0..20 {
        elsewhere(|| assert_eq!(tokens(&load(0), 6), expected));
    }
}
