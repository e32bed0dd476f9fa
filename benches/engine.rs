//! Tokens per second of an engine for 1 to 32 requests at once beside the same requests one after
//! another, the time to the first token, and the longest gap between two tokens of running requests
//! while a long prompt arrives. `cargo bench --bench engine`.
//!
//! ENGINE_MODEL names a model's folder; without it there are the bundled model and a random one of 24
//! layers. The two ways take turns, so that whatever else the machine does slows both; each line is
//! the median of the rounds.

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::layouts::{SMALL, Shape, mxfp4_q, mxfp4_q_config};
use common::random_model;
use gpt_oss_mlx::engine::{
    CompletionRequest, Engine, EngineEvent, EngineOptions, EngineStream, Shutdown, Usage,
};
use gpt_oss_mlx::{CompletionOptions, GenerateOptions, LoadOptions, Model, Visible};
use safetensors::Dtype;

/// The depth of the 20b at a width that fits a test machine, with the bundled model's vocabulary.
const DEEP: Shape = Shape { layers: 24, experts: 32, vocab: 2048, ..SMALL };
const STREAMS: [usize; 6] = [1, 2, 4, 8, 16, 32];
const ROUNDS: usize = 3;
const PROMPT: usize = 32;
const LONG_PROMPT: usize = 2000;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bundled = root.join("assets/gpt-oss-tiny");
    if let Some(dir) = std::env::var_os("ENGINE_MODEL") {
        return measure("ENGINE_MODEL", Path::new(&dir), 64);
    }
    measure("bundled model", &bundled, 64);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = DEEP.config(mxfp4_q_config(&DEEP, 8));
    random_model::write(dir.path(), &config, &DEEP.mlx(Dtype::F32, mxfp4_q(8)), &mxfp4_q(8), 1);
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(bundled.join(name), dir.path().join(name)).expect("a file");
    }
    measure("24 layers, MXFP4-Q8", dir.path(), 16);
}

fn start(dir: &Path, change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions::new(dir);
    // Else the same prompts would be found again.
    (options.max_running, options.prefix_bytes) = (32, 0);
    change(&mut options);
    Engine::start(options).wait().expect("an engine")
}

fn generate(tokens: usize) -> GenerateOptions {
    let mut options = GenerateOptions::default();
    (options.max_tokens, options.stop_ids) = (tokens, Some(Vec::new()));
    options
}

/// Different tokens for the requests, or they would all go to the same experts.
fn prompt(request: usize, length: usize) -> Vec<u32> {
    (0..length).map(|i| ((request * 53 + i * 37) % 1900) as u32).collect()
}

fn ask(engine: &Engine, prompt: Vec<u32>, tokens: usize) -> EngineStream {
    let mut options = CompletionOptions::default();
    (options.visible, options.generate) = (Visible::Everything, generate(tokens));
    engine.complete(CompletionRequest::new(prompt, options)).expect("a stream")
}

fn read(mut stream: EngineStream) -> Usage {
    loop {
        let event = stream.blocking_next().expect("an event").expect("no error");
        if let EngineEvent::Finished { usage, .. } = event {
            return usage;
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(what: &str, dir: &Path, tokens: usize) {
    let engine = start(dir, |_| ());
    let model = Model::load(dir, &LoadOptions::default()).expect("a model");
    println!("\n{what}: prompts of {PROMPT}, {tokens} tokens each\n");
    println!(
        "| streams | engine, tokens/s | one after another | ratio | first token, s | the last's |"
    );
    println!("|---|---|---|---|---|---|");
    for streams in STREAMS {
        let (mut speeds, mut firsts) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
        for _ in 0..ROUNDS {
            let per_second =
                |since: Instant| (streams * tokens) as f64 / since.elapsed().as_secs_f64();
            let started = Instant::now();
            let all: Vec<_> =
                (0..streams).map(|i| ask(&engine, prompt(i, PROMPT), tokens)).collect();
            let first = all
                .into_iter()
                .map(|s| read(s).time_to_first_token.as_secs_f64())
                .collect::<Vec<_>>();
            speeds[0].push(per_second(started));
            firsts[1].push(first.iter().copied().fold(0.0, f64::max));
            firsts[0].push(median(first));
            let started = Instant::now();
            for i in 0..streams {
                let tokens = model.generate(&prompt(i, PROMPT), &generate(tokens)).expect("tokens");
                tokens.for_each(|token| drop(token.expect("a token")));
            }
            speeds[1].push(per_second(started));
        }
        let ([batch, single], [first, last]) = (speeds.map(median), firsts.map(median));
        let ratio = batch / single;
        println!("| {streams} | {batch:.0} | {single:.0} | {ratio:.2} | {first:.3} | {last:.3} |");
    }
    engine.shutdown_blocking(Shutdown::Cancel);
    println!(
        "\n| while a prompt of {LONG_PROMPT} arrives | longest gap of 4 streams, s | its first token, s |"
    );
    println!("|---|---|---|");
    for chunk in [None, Some(512), Some(128)] {
        let engine = start(dir, |o| o.prefill_chunk = chunk.unwrap_or(512));
        let rounds: Vec<_> = (0..ROUNDS).map(|_| gap(&engine, chunk.is_some())).collect();
        let gap = median(rounds.iter().map(|(gap, _)| *gap).collect());
        let first = median(rounds.iter().map(|(_, first)| *first).collect());
        match chunk {
            None => println!("| none does | {gap:.3} | |"),
            Some(chunk) => println!("| in chunks of {chunk} | {gap:.3} | {first:.2} |"),
        }
        engine.shutdown_blocking(Shutdown::Cancel);
    }
}

/// The longest gap between two tokens of running requests, in seconds, and the time to the first
/// token of a long prompt that arrives meanwhile.
fn gap(engine: &Engine, arrives: bool) -> (f64, f64) {
    let mut running: Vec<_> = (0..4).map(|i| ask(engine, prompt(i, PROMPT), 100_000)).collect();
    for stream in &mut running {
        while !matches!(stream.blocking_next(), Some(Ok(EngineEvent::Text(_)))) {}
    }
    let tokens: Vec<_> = running.iter().map(EngineStream::cancel_token).collect();
    let readers: Vec<_> = running
        .into_iter()
        .map(|mut stream| {
            thread::spawn(move || {
                let (mut last, mut longest) = (None, Duration::ZERO);
                while let Some(Ok(EngineEvent::Text(_))) = stream.blocking_next() {
                    let now = Instant::now();
                    longest =
                        longest.max(last.replace(now).map_or(Duration::ZERO, |last| now - last));
                }
                longest.as_secs_f64()
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(500));
    let first = match arrives {
        true => read(ask(engine, prompt(9, LONG_PROMPT), 1)).time_to_first_token.as_secs_f64(),
        false => {
            thread::sleep(Duration::from_secs(2));
            0.0
        }
    };
    tokens.iter().for_each(|token| token.cancel());
    let longest = readers.into_iter().map(|reader| reader.join().expect("a reader"));
    (longest.fold(0.0, f64::max), first)
}
