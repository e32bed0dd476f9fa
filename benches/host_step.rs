//! Host time to build one decode step of a 24-layer model, without evaluating it: what the CPU
//! must do while the GPU works on the step before. `cargo bench --bench host_step`.
//!
//! HOST_STEP_MODEL names a model's folder; without it a random one is made. The last line,
//! `host_step_us: N`, is the median in microseconds; `benches/vs_mlx_lm.py` sets it beside mlx-lm's.

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::time::Instant;

use common::layouts::{Shape, mxfp4_q, mxfp4_q_config};
use common::random_model;
use gpt_oss_mlx::sampler::Sampler;
use gpt_oss_mlx::{LoadOptions, Model, Sampling, TokenSource};
use safetensors::Dtype;

/// The depth of the 20b at a width that fits a test machine; the host's work does not depend on
/// the width.
const SHAPE: Shape = Shape { layers: 24, experts: 32, ..common::layouts::SMALL };
const STEPS: usize = 200;

fn main() {
    let random = tempfile::tempdir().expect("a temporary folder");
    let dir = std::env::var_os("HOST_STEP_MODEL").map_or_else(
        || {
            let specs = SHAPE.mlx(Dtype::F32, mxfp4_q(8));
            let config = SHAPE.config(mxfp4_q_config(&SHAPE, 8));
            random_model::write(random.path(), &config, &specs, &mxfp4_q(8), 1);
            random.path().to_path_buf()
        },
        PathBuf::from,
    );
    let model = Model::load(dir, &LoadOptions::default()).expect("a model");
    let mut decoder = model.decoder();
    let vocab_size = model.config().vocab_size;
    let mut sampler = Sampler::new(&Sampling::default(), vocab_size, &[]).expect("a sampler");
    let prompt: Vec<u32> = (0..64).collect();
    let logits = decoder.logits(&prompt).expect("a prompt");
    let mut token = sampler.sample(&logits).expect("a token").token;
    let mut times: Vec<f64> = (0..STEPS)
        .map(|_| {
            let started = Instant::now();
            let logits = decoder.step(&token).expect("a step");
            token = sampler.sample(&logits).expect("a token").token;
            let time = started.elapsed();
            token.eval().expect("a step");
            time.as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("layers: {}, steps: {STEPS}", model.config().num_hidden_layers);
    println!("host_step_us: {:.1}", times[STEPS / 2]);
}
