//! What a saved session saves: the time to compute a prompt, and the time to load its cache from a
//! file. `cargo bench --bench prompt_cache`.
//!
//! PROMPT_CACHE_MODEL names a model's folder, PROMPT_CACHE_TOKENS the length of the prompt; else it
//! is the bundled model and 4096. The medians of several runs; the file is in the system's memory
//! when it is read, as after it was written.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpt_oss_mlx::{GenerateOptions, KvBits, KvPolicy, LoadOptions, Model, Session};

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");
const TOKENS: usize = 4096;
const RUNS: usize = 5;

fn main() {
    let dir = std::env::var_os("PROMPT_CACHE_MODEL").map_or_else(|| BUNDLED.into(), PathBuf::from);
    let tokens = std::env::var("PROMPT_CACHE_TOKENS").map_or(TOKENS, |n| n.parse().expect("n"));
    let model = Model::load(&dir, &LoadOptions::default()).expect("a model");
    println!("{}, {tokens} tokens, loaded in {:?}", dir.display(), model.load_time());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("session.safetensors");
    for (name, policy) in [
        ("float", KvPolicy::default()),
        ("8 bits", KvPolicy::quantized(KvBits::Eight)),
        ("4 bits", KvPolicy::quantized(KvBits::Four)),
    ] {
        let mut session = None;
        let prefill = median(|| session = Some(prefilled(&model, &policy, tokens)));
        let mut session = session.expect("a session");
        let save = median(|| session.save(&path).expect("a saved session"));
        let load = median(|| drop(loaded(&model, &policy, &path)));
        let bytes = path.metadata().expect("a file").len();
        println!(
            "{name}: prefill {:.1} ms, save {:.1} ms, load {:.2} ms, {:.1} MB; load_share: {:.5}",
            ms(prefill),
            ms(save),
            ms(load),
            bytes as f64 / 1e6,
            load.as_secs_f64() / prefill.as_secs_f64(),
        );
    }
}

fn prefilled(model: &Model, policy: &KvPolicy, tokens: usize) -> Session {
    let vocab_size = model.config().vocab_size;
    let prompt: Vec<u32> = (0..tokens).map(|i| (i * 31 % vocab_size) as u32).collect();
    let mut session = Session::with_policy(model, policy).expect("a session");
    let mut options = GenerateOptions::default();
    options.max_tokens = 1;
    let generation = model.generate_in(&mut session, &prompt, &options).expect("a prompt");
    generation.for_each(|token| drop(token.expect("a token")));
    session
}

fn loaded(model: &Model, policy: &KvPolicy, path: &Path) -> Session {
    Session::load_with_policy(model, policy, path).expect("a saved session")
}

fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            run();
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[RUNS / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
