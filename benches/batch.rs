//! Decode speed of several sequences at once beside the same one after another, for 1 to 32 of
//! them. `cargo bench --bench batch`.
//!
//! BATCH_MODEL names a model's folder; without it there are the bundled model, the same in floats,
//! and random ones of 24 layers. The two ways take turns, token by token, so that whatever else the
//! machine does slows both; each number is the median of the steps.

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::time::Instant;

use common::layouts::{Packing, SMALL, Shape, mxfp4_q, mxfp4_q_config};
use common::random_model;
use gpt_oss_mlx::{Cache, LoadOptions, Model};
use safetensors::Dtype;
use serde_json::json;

/// The depth of the 20b at a width that fits a test machine.
const DEEP: Shape = Shape { layers: 24, experts: 32, ..SMALL };
const ROWS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Tokens of each; the first is not counted.
const STEPS: usize = 10;

fn main() {
    if let Some(dir) = std::env::var_os("BATCH_MODEL") {
        return table("BATCH_MODEL", Path::new(&dir));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    table("bundled model", &root.join("assets/gpt-oss-tiny"));
    table("the same in floats", &root.join("tests/fixtures/gpt-oss-tiny-f32"));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let packed = DEEP.config(mxfp4_q_config(&DEEP, 8));
    random_model::write(dir.path(), &packed, &DEEP.mlx(Dtype::F32, mxfp4_q(8)), &mxfp4_q(8), 1);
    table("24 layers, MXFP4-Q8", dir.path());
    let floats = |_: &str| Packing::Float;
    let specs = DEEP.mlx(Dtype::F32, floats);
    random_model::write(dir.path(), &DEEP.config(json!({})), &specs, &floats, 1);
    table("24 layers, floats", dir.path());
}

fn table(what: &str, dir: &Path) {
    let model = Model::load(dir, &LoadOptions::default()).expect("a model");
    println!(
        "\n{what}\n\n| rows | at once, tokens/s | one after another | ratio |\n|---|---|---|---|"
    );
    for rows in ROWS {
        let mut caches = filled(&model, rows);
        let mut times = [const { Vec::new() }; 2];
        let mut ratios = Vec::new();
        for step in 0..STEPS {
            let tokens: Vec<u32> = (0..rows).map(|row| token(row, step)).collect();
            let batch = at_once(&model, &tokens, &mut caches);
            let single = one_after_another(&model, &tokens, &mut caches);
            // The first writes to what the caches share.
            if step > 0 {
                times[0].push(batch);
                times[1].push(single);
                ratios.push(single / batch);
            }
        }
        let [batch, single] = times.map(|times| rows as f64 / median(times));
        println!("| {rows} | {batch:.0} | {single:.0} | {:.2} |", median(ratios));
    }
}

/// Caches of 100 tokens and more, each of another length.
fn filled(model: &Model, rows: usize) -> Vec<Cache> {
    let mut cache = model.new_cache();
    let mut feed = |count: usize| {
        let ids: Vec<u32> = (0..count).map(|i| (i * 37 % 300) as u32).collect();
        model.forward(&ids, &mut cache).expect("logits").eval().expect("numbers");
        cache.clone()
    };
    feed(100);
    (0..rows).map(|_| feed(7)).collect()
}

/// Different tokens for the rows, or they would all go to the same experts.
fn token(row: usize, step: usize) -> u32 {
    ((row * 53 + step * 17) % 300) as u32
}

/// Seconds for one token of each.
fn at_once(model: &Model, tokens: &[u32], caches: &mut [Cache]) -> f64 {
    let started = Instant::now();
    let mut caches: Vec<&mut Cache> = caches.iter_mut().collect();
    model.forward_batch(tokens, &mut caches).expect("logits").eval().expect("numbers");
    started.elapsed().as_secs_f64()
}

/// The same, as if each were alone.
fn one_after_another(model: &Model, tokens: &[u32], caches: &mut [Cache]) -> f64 {
    let started = Instant::now();
    for (&token, cache) in tokens.iter().zip(caches) {
        model.forward(&[token], cache).expect("logits").eval().expect("numbers");
    }
    started.elapsed().as_secs_f64()
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
