//! What quantized keys and values cost in accuracy: the 140 known answers, on the f32 fixture.
//!
//! Teacher forcing: every policy is fed the prompt "Explain {topic}." and then the tokens that the
//! float model generates greedily (analysis, final answer and the token that ends the turn). The
//! prompt goes through a cache that is unpacked for attention, the answer in steps of eight tokens
//! through the packed one. `docs/kv-cache.md` holds the table that this prints.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};

use common::logits;
use gpt_oss_mlx::KvBits::{Eight, Four};
use gpt_oss_mlx::chat::template::ChatTemplate;
use gpt_oss_mlx::chat::{Conversation, Message};
use gpt_oss_mlx::{GenerateOptions, KvPolicy, LoadOptions, Model, Tokenizer};
use serde::Deserialize;

/// Tokens of an answer that are fed at once: the most that go through the packed path.
const STEP: usize = 8;

#[derive(Deserialize)]
struct Known {
    topic: String,
    answer: String,
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt-oss-tiny-f32")
}

fn load(kv: KvPolicy) -> Model {
    let mut options = LoadOptions::default();
    options.kv = kv;
    Model::load(fixture(), &options).expect("the model loads")
}

/// Every topic's prompt, and the answer that was taught.
fn prompts(tokenizer: &Tokenizer) -> Vec<(Vec<u32>, String)> {
    let known: Vec<Known> =
        serde_json::from_str(include_str!("fixtures/known-answers.json")).expect("JSON");
    assert_eq!(known.len(), 140);
    let template = ChatTemplate::from_dir(&fixture()).expect("a valid template").expect("one");
    let prompt = |Known { topic, answer }: Known| {
        let question = Message::user(format!("Explain {topic}."));
        let input = Conversation::new([question]).template_input().expect("a conversation");
        (template.render_ids(&input, tokenizer).expect("a prompt"), answer)
    };
    known.into_iter().map(prompt).collect()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(&fixture()).expect("tokenizer.json")
}

/// What the model generates greedily after `prompt`, until it stops.
fn greedy(model: &Model, prompt: &[u32]) -> Vec<u32> {
    let mut options = GenerateOptions::default();
    options.max_tokens = 200;
    let generation = model.generate(prompt, &options).expect("a generation");
    generation.map(|token| token.expect("a token").id).collect()
}

/// True when the final channel says `answer` and the turn ends with it.
fn is_right(tokenizer: &Tokenizer, tokens: &[u32], answer: &str) -> bool {
    let text = tokenizer.decode(tokens, false).expect("text");
    let last = text.split_once("<|channel|>final<|message|>").map(|(_, message)| message);
    last.and_then(|message| message.strip_suffix("<|return|>")) == Some(answer)
}

/// The log-probabilities of all tokens in each place of `answer`.
fn forced(model: &Model, kv: &KvPolicy, prompt: &[u32], answer: &[u32]) -> Vec<Vec<f64>> {
    let mut cache = model.new_cache_with(kv).expect("a cache");
    let mut rows = logits::of(model, &mut cache, prompt).split_off(prompt.len() - 1);
    // What comes after the last token is no part of the answer.
    rows.extend(logits::in_chunks(model, &mut cache, &answer[..answer.len() - 1], STEP));
    for row in &mut rows {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = row.iter().map(|v| (v - most).exp()).sum::<f64>().ln() + most;
        row.iter_mut().for_each(|v| *v -= total);
    }
    rows
}

/// Sums over all tokens of all answers.
#[derive(Clone, Copy, Default)]
struct Sums {
    tokens: usize,
    /// Negative log-likelihood of the token that follows.
    nll: f64,
    /// Kullback-Leibler divergence of floats' distribution from this one.
    kl: f64,
}

impl Sums {
    fn add(&mut self, floats: &[Vec<f64>], rows: &[Vec<f64>], answer: &[u32]) {
        assert_eq!(rows.len(), answer.len());
        for ((p, q), &id) in floats.iter().zip(rows).zip(answer) {
            self.tokens += 1;
            self.nll -= q[id as usize];
            self.kl += p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        }
    }
}

/// Not through `println!`, which the test harness keeps to itself.
fn report(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn answers_are_about_as_likely_as_in_floats() {
    let mixed = {
        let mut mixed = KvPolicy::quantized(Eight);
        mixed.value_bits = Four;
        mixed
    };
    // Largest relative change of the negative log-likelihood, largest mean divergence.
    let policies = [
        ("8 and 8", KvPolicy::quantized(Eight), 0.005, 1e-5),
        ("8 and 4", mixed, 0.01, 5e-5),
        ("4 and 4", KvPolicy::quantized(Four), 0.01, 5e-5),
    ];
    let model = load(KvPolicy::default());
    let tokenizer = tokenizer();
    let mut floats = Sums::default();
    let mut sums = [Sums::default(); 3];
    for (prompt, answer) in prompts(&tokenizer) {
        let tokens = greedy(&model, &prompt);
        assert!(is_right(&tokenizer, &tokens, &answer), "{answer}");
        let want = forced(&model, &KvPolicy::default(), &prompt, &tokens);
        floats.add(&want, &want, &tokens);
        for (sums, (_, kv, ..)) in sums.iter_mut().zip(&policies) {
            sums.add(&want, &forced(&model, kv, &prompt, &tokens), &tokens);
        }
    }

    let count = floats.tokens as f64;
    report("| bits of keys and values | mean NLL | against floats | mean KL |");
    report("|---|---|---|---|");
    report(&format!("| floats | {:.6} | | |", floats.nll / count));
    let changes = sums.map(|sums| sums.nll / floats.nll - 1.0);
    for ((sums, change), (what, ..)) in sums.iter().zip(changes).zip(&policies) {
        let (nll, kl) = (sums.nll / count, sums.kl / count);
        report(&format!("| {what} | {nll:.6} | {:+.3} % | {kl:.1e} |", 100.0 * change));
    }
    report(&format!("{} tokens", floats.tokens));
    for ((sums, change), (what, _, most_change, most_kl)) in sums.iter().zip(changes).zip(policies)
    {
        let kl = sums.kl / count;
        assert!(change.abs() <= most_change, "{what}: NLL {:+.3} %", 100.0 * change);
        assert!(kl <= most_kl, "{what}: KL {kl:.1e}");
        assert!(kl > 1e-9, "{what}: KL {kl:.1e}: nothing was quantized");
    }
}

#[test]
fn with_eight_bits_at_most_one_answer_is_wrong() {
    let model = load(KvPolicy::quantized(Eight));
    let tokenizer = tokenizer();
    let wrong: Vec<String> = (prompts(&tokenizer).into_iter())
        .filter(|(prompt, answer)| !is_right(&tokenizer, &greedy(&model, prompt), answer))
        .map(|(_, answer)| answer)
        .collect();
    report(&format!("8 bits, greedily: {} of 140 right", 140 - wrong.len()));
    assert!(wrong.len() <= 1, "{} wrong: {wrong:#?}", wrong.len());
}
