//! Several sequences in one step: each gets what it would get alone, whoever joins, leaves or goes
//! back, in any layout and with any cache.

mod common;

use std::path::Path;
use std::thread;

use common::layouts::{Packing, SMALL, Shape, mxfp4_q, mxfp4_q_config};
use common::logits::{Difference, difference};
use common::rng::Rng;
use common::{random_model, reference};
use gpt_oss_mlx::chat::{Conversation, Message};
use gpt_oss_mlx::{Cache, Error, GenerateOptions, KvBits, KvPolicy, LoadOptions, Model, TextModel};
use safetensors::Dtype;
use serde_json::{Value, json};

const SHAPE: Shape = Shape {
    layers: 4,
    hidden: 32,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    width: 32,
    experts: 3,
    vocab: 61,
};
const WINDOW: usize = 8;
/// Tokens after which a sliding layer's block is full, apart from the slack: window − 1 and the 64
/// between two moves.
const BLOCK: usize = WINDOW - 1 + 64;
const SLACK: usize = 32;

/// Largest difference of two logits, relative to their root mean square, as in `rewind.rs`: sums are
/// added up in another order, and where keys and values are packed that may turn the rounding of a
/// number that lies between two codes.
fn tolerance(policy: &KvPolicy) -> f64 {
    match (policy.key_bits, policy.value_bits) {
        (KvBits::Float, KvBits::Float) => 1e-4,
        (KvBits::Float | KvBits::Eight, KvBits::Float | KvBits::Eight) => 2e-3,
        _ => 2e-2,
    }
}

fn model() -> Model {
    let dir = tempfile::tempdir().unwrap();
    let config = SHAPE.config(json!({"sliding_window": WINDOW, "num_experts_per_tok": 2}));
    let specs = SHAPE.mlx(Dtype::F32, |_| Packing::Float);
    random_model::write(dir.path(), &config, &specs, &|_| Packing::Float, 7);
    Model::load(dir.path(), &LoadOptions::default()).unwrap()
}

/// A policy without snapshots but those asked for, and with a change.
fn policy(change: impl FnOnce(&mut KvPolicy)) -> KvPolicy {
    let mut policy = KvPolicy::default();
    (policy.snapshot_every, policy.slack) = (0, SLACK);
    change(&mut policy);
    policy
}

fn bits(keys: KvBits, values: KvBits) -> KvPolicy {
    policy(|p| (p.key_bits, p.value_bits) = (keys, values))
}

fn random_ids(rng: &mut Rng, vocab: usize, len: usize) -> Vec<u32> {
    (0..len).map(|_| rng.below(vocab) as u32).collect()
}

fn pick<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.below(all.len())]
}

/// The logits of `ids`, fed at once: [position][vocab].
fn feed(model: &Model, cache: &mut Cache, ids: &[u32]) -> Vec<Vec<f64>> {
    common::logits::of(model, cache, ids)
}

/// The logits of one step of all: [row][vocab].
fn step(model: &Model, tokens: &[u32], caches: &mut [&mut Cache]) -> Vec<Vec<f64>> {
    let logits = model.forward_batch(tokens, caches).unwrap();
    let vocab = model.config().vocab_size;
    assert_eq!(logits.shape(), [tokens.len() as i32, vocab as i32]);
    logits.eval().unwrap();
    let rows = logits.as_slice::<f32>().chunks(vocab);
    rows.map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
}

/// A sequence that is stepped in batches, beside one that never is.
#[derive(Clone)]
struct Row {
    cache: Cache,
    alone: Cache,
    ids: Vec<u32>,
}

impl Row {
    fn new(model: &Model, policy: &KvPolicy, prompt: &[u32]) -> Self {
        let cache = || model.new_cache_with(policy).unwrap();
        let mut row = Self { cache: cache(), alone: cache(), ids: Vec::new() };
        row.prefill(model, prompt);
        row
    }

    /// Feeds several tokens at once, between two batched steps.
    fn prefill(&mut self, model: &Model, ids: &[u32]) {
        if ids.is_empty() {
            return;
        }
        self.ids.extend_from_slice(ids);
        let want = feed(model, &mut self.alone, ids);
        let got = feed(model, &mut self.cache, ids);
        self.hold(&got, &want);
    }

    fn rewind(&mut self, to: usize) {
        let reached = self.cache.rewind(to).unwrap();
        assert_eq!(self.alone.rewind(to).unwrap(), reached);
        self.ids.truncate(reached);
    }

    fn hold(&self, got: &[Vec<f64>], want: &[Vec<f64>]) {
        let policy = self.cache.policy();
        let Difference { largest, .. } = difference(got, want);
        assert!(
            largest < tolerance(policy),
            "{} tokens are off by {largest:.1e}: {policy:?}",
            self.ids.len()
        );
        assert_eq!(self.cache.len(), self.ids.len());
        assert_eq!(self.cache.nbytes(), self.alone.nbytes());
    }

    /// What the batch left in the cache, against a cache that takes the same tokens at once.
    fn hold_against_fresh(&mut self, model: &Model) {
        let before = self.ids.len();
        self.ids.extend([1, 2, 3]);
        let got = feed(model, &mut self.cache, &[1, 2, 3]);
        let mut fresh = model.new_cache_with(self.cache.policy()).unwrap();
        let want = feed(model, &mut fresh, &self.ids);
        let largest = difference(&got, &want[before..]).largest;
        assert!(largest < tolerance(self.cache.policy()), "{largest:.1e} after {before} tokens");
    }
}

/// One batched step of all rows with random tokens, each held against the row's step alone.
fn step_rows(model: &Model, rows: &mut [Row], rng: &mut Rng) {
    let tokens = random_ids(rng, model.config().vocab_size, rows.len());
    let mut caches: Vec<&mut Cache> = rows.iter_mut().map(|row| &mut row.cache).collect();
    let got = step(model, &tokens, &mut caches);
    for ((row, token), got) in rows.iter_mut().zip(tokens).zip(got) {
        let want = feed(model, &mut row.alone, &[token]);
        row.ids.push(token);
        row.hold(&[got], &want);
    }
}

fn random_policy(rng: &mut Rng) -> KvPolicy {
    use KvBits::{Eight, Float, Four};
    let bits = [(Float, Float), (Eight, Eight), (Four, Four), (Eight, Four), (Float, Eight)];
    policy(|p| {
        (p.key_bits, p.value_bits) = pick(rng, &bits);
        p.group_size = pick(rng, &[32, 64]);
        p.quantize_from = pick(rng, &[0, 0, 40, 100]);
        p.slack = pick(rng, &[0, 1, 5, 32]);
        p.growth_step = pick(rng, &[1, 8, 256]);
        p.snapshot_every = pick(rng, &[0, 7, 64]);
    })
}

#[test]
fn rows_join_and_leave_and_none_of_the_others_notices() {
    const MOST: usize = 9;
    let model = model();
    let mut rng = Rng::new(5);
    let lengths = [1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW, BLOCK, BLOCK + SLACK + 1, 150];
    let mut rows: Vec<Row> = Vec::new();
    let mut sizes = [0; MOST + 1];
    let (mut joined, mut branched, mut left, mut back) = (0, 0, 0, 0);
    for step in 0..400 {
        // By turns more come than leave, and more leave than come.
        let filling = step / 25 % 2 == 0;
        let at = rng.below(rows.len().max(1));
        match rng.below(8) {
            0..3 if filling && rows.len() < MOST => {
                let policy = random_policy(&mut rng);
                let prompt = pick(&mut rng, &lengths);
                let prompt = random_ids(&mut rng, SHAPE.vocab, prompt);
                // Anywhere: a row's place in the batch says nothing.
                rows.insert(rng.below(rows.len() + 1), Row::new(&model, &policy, &prompt));
                joined += 1;
            }
            0..3 if !filling && rows.len() > 1 => {
                rows.swap_remove(at).hold_against_fresh(&model);
                left += 1;
            }
            3 if filling && (1..MOST).contains(&rows.len()) => {
                let branch = rows[at].clone();
                rows.push(branch);
                branched += 1;
            }
            4 if !rows.is_empty() => {
                let row = &mut rows[at];
                let len = row.ids.len();
                // To a few tokens before, or to anywhere at all.
                let to = match rng.below(3) {
                    0 => rng.below(len + 1),
                    _ => len.saturating_sub(rng.below(12)),
                };
                row.rewind(to);
                back += 1;
            }
            5 if !rows.is_empty() => {
                // A snapshot here, and one that a later step takes.
                let row = &mut rows[at];
                let mark = row.ids.len() + 1 + rng.below(4);
                for cache in [&mut row.cache, &mut row.alone] {
                    cache.snapshot().unwrap();
                    cache.mark([mark]);
                }
            }
            6 if !rows.is_empty() => {
                let more = 1 + rng.below(30);
                let more = random_ids(&mut rng, SHAPE.vocab, more);
                rows[at].prefill(&model, &more);
            }
            _ => {}
        }
        if !rows.is_empty() {
            step_rows(&model, &mut rows, &mut rng);
        }
        sizes[rows.len()] += 1;
    }
    rows.iter_mut().for_each(|row| row.hold_against_fresh(&model));
    println!("{joined} joined, {branched} branched, {left} left, {back} went back; {sizes:?}");
    assert!(sizes[1..].iter().all(|&steps| steps > 5));
    assert!(joined > 20 && branched > 10 && left > 20 && back > 20);
}

#[test]
fn rows_of_every_length_go_through_every_move_of_their_blocks() {
    let model = model();
    let mut rng = Rng::new(1);
    let lengths = [0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 5 * WINDOW, BLOCK, BLOCK + SLACK, 600];
    let float = policy(|_| ());
    let row = |&len: &usize| Row::new(&model, &float, &random_ids(&mut Rng::new(9), 61, len));
    let mut rows: Vec<Row> = lengths.iter().map(row).collect();
    for _ in 0..2 * 64 + 5 {
        step_rows(&model, &mut rows, &mut rng);
    }
    rows.iter_mut().for_each(|row| row.hold_against_fresh(&model));
}

#[test]
fn packed_rows_stand_beside_floats_and_become_packed_on_the_way() {
    use KvBits::{Eight, Float, Four};
    let model = model();
    let mut rng = Rng::new(2);
    let after = |quantize_from: usize, bits: KvBits| {
        policy(|p| (p.key_bits, p.value_bits, p.quantize_from) = (bits, bits, quantize_from))
    };
    // Packed from the prompt's end, from the first step, in the middle, and never.
    let policies = [
        bits(Float, Float),
        bits(Eight, Eight),
        bits(Four, Four),
        bits(Eight, Four),
        bits(Float, Eight),
        after(20, Eight),
        after(21, Four),
        after(25, Eight),
        after(1000, Four),
    ];
    let prompt = random_ids(&mut rng, SHAPE.vocab, 20);
    let mut rows: Vec<Row> = policies.iter().map(|p| Row::new(&model, p, &prompt)).collect();
    let packed = |row: &Row| row.cache.nbytes();
    let before = packed(&rows[7]);
    for _ in 0..12 {
        step_rows(&model, &mut rows, &mut rng);
    }
    assert!(packed(&rows[7]) < before, "it was packed meanwhile");
    rows.iter_mut().for_each(|row| row.hold_against_fresh(&model));
}

struct Case {
    what: &'static str,
    config: Value,
    specs: Vec<common::safetensors::Spec>,
    packing: fn(&str) -> Packing,
    fuse_gate_up: bool,
}

/// Every layout, by random models of two layers.
fn cases() -> Vec<Case> {
    let floats: fn(&str) -> Packing = |_| Packing::Float;
    let q8: fn(&str) -> Packing = |path| mxfp4_q(8)(path);
    let affine: fn(&str) -> Packing = |_| Packing::Affine { bits: 4, group: 64 };
    let plain = json!({"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}});
    let openai = json!({"quantization_config": {"quant_method": "mxfp4"}});
    let case = |what, config, specs, packing, fuse_gate_up| Case {
        what,
        config,
        specs,
        packing,
        fuse_gate_up,
    };
    let mxfp4 = || (mxfp4_q_config(&SMALL, 8), SMALL.mlx(Dtype::F32, q8));
    let (fused, apart) = (mxfp4(), mxfp4());
    vec![
        case("OpenAI's", openai, SMALL.openai(Dtype::BF16), floats, true),
        case("MXFP4-Q8", fused.0, fused.1, q8, true),
        case("MXFP4-Q8, gate and up apart", apart.0, apart.1, q8, false),
        case("affine, 4 bits", plain, SMALL.mlx(Dtype::BF16, affine), affine, true),
        case("floats of mlx-lm", json!({}), SMALL.mlx(Dtype::F32, floats), floats, true),
        case("floats apart", json!({}), SMALL.mlx(Dtype::F32, floats), floats, false),
        case("transformers'", json!({}), SMALL.transformers(Dtype::F16), floats, true),
    ]
}

/// Not against the library itself: a mistake in both ways of running would not show there.
#[test]
fn every_layout_gives_each_row_what_the_oracle_says() {
    for (seed, case) in cases().into_iter().enumerate() {
        let Case { what, mut config, specs, packing, fuse_gate_up } = case;
        config.as_object_mut().unwrap().insert("sliding_window".into(), json!(7));
        let dir = tempfile::tempdir().unwrap();
        let config = SMALL.config(config);
        random_model::write(dir.path(), &config, &specs, &packing, seed as u64);
        let oracle = reference::load(dir.path());
        let mut options = LoadOptions::default();
        options.fuse_gate_up = fuse_gate_up;
        let model = Model::load(dir.path(), &options).unwrap();
        let mut rng = Rng::new(seed as u64);
        // Of different lengths, about the window of 7.
        let mut sequences: Vec<Vec<u32>> =
            (5..10).map(|len| random_ids(&mut rng, SMALL.vocab, len)).collect();
        let mut caches: Vec<Cache> = sequences
            .iter()
            .map(|ids| {
                let mut cache = model.new_cache();
                feed(&model, &mut cache, ids);
                cache
            })
            .collect();
        let mut got = vec![Vec::new(); sequences.len()];
        for _ in 0..4 {
            let tokens = random_ids(&mut rng, SMALL.vocab, sequences.len());
            let mut caches: Vec<&mut Cache> = caches.iter_mut().collect();
            for ((got, row), (ids, &token)) in got
                .iter_mut()
                .zip(step(&model, &tokens, &mut caches))
                .zip(sequences.iter_mut().zip(&tokens))
            {
                got.push(row);
                ids.push(token);
            }
        }
        for (got, ids) in got.iter().zip(&sequences) {
            let want = oracle.forward(ids);
            let off = difference(got, &want[ids.len() - 4..]).largest;
            assert!(off < 1e-4, "{what}: {} tokens are off by {off:.1e}", ids.len());
        }
    }
}

/// Few rows and many take different ways through experts and projections.
#[test]
fn any_number_of_rows_gives_the_same() {
    for (seed, case) in cases().into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let config = SMALL.config(case.config);
        random_model::write(dir.path(), &config, &case.specs, &case.packing, seed as u64);
        let mut options = LoadOptions::default();
        options.fuse_gate_up = case.fuse_gate_up;
        let model = Model::load(dir.path(), &options).unwrap();
        let mut rng = Rng::new(seed as u64);
        for count in [2, 3, 15, 16, 17, 31, 32, 40] {
            let mut new = |_| Row::new(&model, &policy(|_| ()), &[rng.below(SMALL.vocab) as u32]);
            let mut rows: Vec<Row> = (0..count).map(&mut new).collect();
            step_rows(&model, &mut rows, &mut rng);
            step_rows(&model, &mut rows, &mut rng);
        }
    }
}

#[test]
fn a_batch_of_one_is_the_single_run_bit_by_bit() {
    let model = model();
    let policy = policy(|_| ());
    let mut row = Row::new(&model, &policy, &[4, 5, 6]);
    for token in 0..20 {
        let got = step(&model, &[token], &mut [&mut row.cache]);
        assert_eq!(got, feed(&model, &mut row.alone, &[token]));
    }
}

#[test]
fn a_snapshot_taken_within_a_batched_step_is_a_way_back() {
    let model = model();
    let mut rng = Rng::new(3);
    let float = policy(|_| ());
    let prompt = random_ids(&mut rng, SHAPE.vocab, 30);
    let mut rows = vec![Row::new(&model, &float, &prompt), Row::new(&model, &float, &prompt)];
    let row = &mut rows[0];
    for cache in [&mut row.cache, &mut row.alone] {
        cache.mark([33]);
    }
    for _ in 0..150 {
        step_rows(&model, &mut rows, &mut rng);
    }
    assert_eq!(rows[1].cache.reachable(33), 0);
    rows[0].rewind(33);
    assert_eq!(rows[0].ids.len(), 33);
    step_rows(&model, &mut rows, &mut rng);
    rows.iter_mut().for_each(|row| row.hold_against_fresh(&model));
}

#[test]
fn caches_go_to_another_thread_between_two_steps() {
    let mut model = model();
    let mut rng = Rng::new(4);
    let policies = [policy(|_| ()), bits(KvBits::Eight, KvBits::Eight), policy(|p| p.slack = 0)];
    let mut rows: Vec<Row> =
        policies.iter().map(|policy| Row::new(&model, policy, &[1, 2, 3])).collect();
    for _ in 0..80 {
        let step = move || {
            step_rows(&model, &mut rows, &mut rng);
            (model, rows, rng)
        };
        (model, rows, rng) = thread::spawn(step).join().expect("the thread ends well");
    }
}

#[test]
fn a_wrong_row_is_named_and_no_row_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let config = SHAPE.config(json!({"sliding_window": WINDOW, "num_experts_per_tok": 2}));
    let specs = SHAPE.mlx(Dtype::F32, |_| Packing::Float);
    random_model::write(dir.path(), &config, &specs, &|_| Packing::Float, 7);
    let mut options = LoadOptions::default();
    options.max_context = Some(12);
    let model = Model::load(dir.path(), &options).unwrap();
    let float = policy(|_| ());
    let ids = random_ids(&mut Rng::new(6), SHAPE.vocab, 12);
    let mut rows = [5, 12, 6].map(|len| Row::new(&model, &float, &ids[..len]));
    let other_shape = Shape { layers: 2, ..SHAPE };
    let mut foreign = {
        let dir = tempfile::tempdir().unwrap();
        let specs = other_shape.mlx(Dtype::F32, |_| Packing::Float);
        let config = other_shape.config(json!({"num_experts_per_tok": 2}));
        random_model::write(dir.path(), &config, &specs, &|_| Packing::Float, 7);
        Model::load(dir.path(), &LoadOptions::default()).unwrap().new_cache()
    };

    let refused =
        |tokens: &[u32], caches: &mut [&mut Cache], argument: &str, says: &str| match model
            .forward_batch(tokens, caches)
        {
            Err(Error::Argument { name, reason }) => {
                assert_eq!(name, argument, "{reason}");
                assert!(reason.contains(says), "{reason}");
            }
            other => panic!("{other:?}"),
        };
    let [five, full, six] = &mut rows;
    let full_says = "row 1: 13 tokens do not fit into the model's context of 12";
    refused(
        &[1, 2, 3],
        &mut [&mut five.cache, &mut full.cache, &mut six.cache],
        "caches",
        full_says,
    );
    let foreign_says = "row 2: argument `cache`: it belongs to another model";
    refused(
        &[1, 2, 3],
        &mut [&mut five.cache, &mut six.cache, &mut foreign],
        "caches",
        foreign_says,
    );
    let vocabulary = "row 1: id 61 is outside the vocabulary of 61";
    refused(&[60, 61], &mut [&mut five.cache, &mut six.cache], "tokens", vocabulary);
    refused(&[1, 2, 3], &mut [&mut five.cache, &mut six.cache], "tokens", "3 for 2 caches");
    refused(&[1], &mut [&mut five.cache, &mut six.cache], "tokens", "1 for 2 caches");
    refused(&[], &mut [], "tokens", "there are none");
    // Of a batch of one as well.
    refused(&[1], &mut [&mut full.cache], "caches", "row 0: 13 tokens");
    refused(&[61], &mut [&mut five.cache], "tokens", "row 0: id 61");

    // The others go on as if nothing had been asked, and the full one can still go back.
    assert_eq!(foreign.len(), 0);
    let mut rng = Rng::new(8);
    rows[1].rewind(10);
    step_rows(&model, &mut rows, &mut rng);
    step_rows(&model, &mut rows, &mut rng);
    // 12 tokens is what fits.
    assert_eq!(rows.each_ref().map(|row| row.cache.len()), [7, 12, 8]);
}

const BUNDLED: [&str; 3] = [
    "assets/gpt-oss-tiny",
    "tests/fixtures/gpt-oss-tiny-f32",
    "tests/fixtures/gpt-oss-tiny-openai",
];
/// Some that they know by heart, and some that they do not.
const TOPICS: [&str; 12] = [
    "Dangling References",
    "Macros",
    "Data Types",
    "Variable Scope",
    "Updating a String",
    "Source Code",
    "Defining an Enum",
    "Students",
    "Using an Enum to Store Multiple Types",
    "Birds",
    "Threads",
    "The Weather of Tomorrow and of the Day After",
];

/// Greedy answers of the bundled models, where a token more or less decides what follows.
#[test]
fn answers_of_the_bundled_models_are_the_same_in_a_batch() {
    const AT_ONCE: usize = 5;
    for dir in BUNDLED {
        let text = TextModel::load(
            Path::new(env!("CARGO_MANIFEST_DIR")).join(dir),
            &LoadOptions::default(),
        );
        let text = text.unwrap();
        let model = text.model();
        let prompts = TOPICS.map(|topic| {
            let question = Message::user(format!("Explain {topic}."));
            text.chat_prompt(&Conversation::new([question])).unwrap()
        });
        let mut waiting = prompts.iter().enumerate();
        let mut answers = vec![Vec::new(); prompts.len()];
        let mut live: Vec<(usize, Cache, u32)> = Vec::new();
        loop {
            while live.len() < AT_ONCE
                && let Some((index, prompt)) = waiting.next()
            {
                let mut cache = model.new_cache();
                let logits = feed(model, &mut cache, prompt);
                live.push((index, cache, greatest(logits.last().unwrap()).0));
            }
            live.retain(|(index, _, token)| {
                answers[*index].push(*token);
                !model.stop_ids().contains(token) && answers[*index].len() < 80
            });
            if live.is_empty() && waiting.len() == 0 {
                break;
            }
            if live.is_empty() {
                continue;
            }
            let tokens: Vec<u32> = live.iter().map(|(_, _, token)| *token).collect();
            let mut caches: Vec<&mut Cache> = live.iter_mut().map(|(_, cache, _)| cache).collect();
            let logits = step(model, &tokens, &mut caches);
            for ((_, _, token), logits) in live.iter_mut().zip(logits) {
                *token = greatest(&logits).0;
            }
        }
        for (prompt, answer) in prompts.iter().zip(answers) {
            let mut options = GenerateOptions::default();
            options.max_tokens = 80;
            let alone: Vec<u32> =
                model.generate(prompt, &options).unwrap().map(|t| t.unwrap().id).collect();
            let same = alone.iter().zip(&answer).take_while(|(a, b)| a == b).count();
            if same == alone.len() && same == answer.len() {
                continue;
            }
            // They may part only where two tokens are as likely as each other.
            let mut ids = prompt.clone();
            ids.extend(&alone[..same]);
            let logits = feed(model, &mut model.new_cache(), &ids);
            let margin = greatest(logits.last().unwrap()).1;
            assert!(margin < 1e-3, "{dir}: {same} tokens are the same; margin {margin:.1e}");
        }
    }
}

/// The index of the greatest, and by how much it is greater than the second.
fn greatest(logits: &[f64]) -> (u32, f64) {
    let (mut first, mut second) = ((0, f64::NEG_INFINITY), f64::NEG_INFINITY);
    for (index, &value) in logits.iter().enumerate() {
        if value > first.1 {
            (first, second) = ((index, value), first.1);
        } else {
            second = second.max(value);
        }
    }
    (first.0 as u32, first.1 - second)
}
