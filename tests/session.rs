//! Sessions: what is reused, and that it changes nothing.

mod common;

use std::path::Path;
use std::thread;

use common::layouts::{Packing, Shape};
use common::random_model;
use common::rng::Rng;
use gpt_oss_mlx::chat::{AssistantMessage, Conversation, Message};
use gpt_oss_mlx::{
    CompletionOptions, Error, FinishReason, GenerateOptions, KvBits, KvPolicy, LoadOptions, Model,
    Session, TextModel, Visible,
};
use safetensors::Dtype;
use serde_json::json;

/// The bundled model, with a window of 64: its sliding layers forget after 159 tokens at the latest.
const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

const SHAPE: Shape = Shape {
    layers: 3,
    hidden: 32,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    width: 32,
    experts: 3,
    vocab: 61,
};
/// That of the random model, whose sliding layers forget after 103 tokens at the latest.
const WINDOW: usize = 8;

fn random_with(shape: Shape, window: usize) -> Model {
    let dir = tempfile::tempdir().unwrap();
    let config = shape.config(json!({"sliding_window": window, "num_experts_per_tok": 2}));
    let specs = shape.mlx(Dtype::F32, |_| Packing::Float);
    random_model::write(dir.path(), &config, &specs, &|_| Packing::Float, 11);
    Model::load(dir.path(), &LoadOptions::default()).unwrap()
}

fn random() -> Model {
    random_with(SHAPE, WINDOW)
}

fn bundled() -> TextModel {
    TextModel::load(Path::new(DIR), &LoadOptions::default()).unwrap()
}

/// `len` random tokens, other ones for each `seed`.
fn prompt(seed: u64, len: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.below(SHAPE.vocab) as u32).collect()
}

fn joined(parts: &[&[u32]]) -> Vec<u32> {
    parts.concat()
}

/// Floats, 8 and 4 bits, and a switch on the way.
fn policies() -> Vec<KvPolicy> {
    let mut later = KvPolicy::quantized(KvBits::Eight);
    later.quantize_from = 170;
    vec![KvPolicy::default(), KvPolicy::quantized(KvBits::Eight), later, {
        let mut mixed = KvPolicy::quantized(KvBits::Four);
        mixed.key_bits = KvBits::Eight;
        mixed
    }]
}

fn options(n: usize) -> GenerateOptions {
    let mut options = GenerateOptions::default();
    options.max_tokens = n;
    options.stop_ids = Some(vec![]);
    options.prefill_chunk = 50;
    options
}

/// Generates `n` tokens in the session; checks that they are those of a fresh one, and that session
/// and report say what was done. Returns the tokens and how many of the prompt were reused.
fn run(model: &Model, session: &mut Session, prompt: &[u32], n: usize) -> (Vec<u32>, usize) {
    let policy = *session.cache().policy();
    let expected = session.reusable(prompt);
    let got = generate(model, session, prompt, n);
    let mut fresh = Session::with_policy(model, &policy).unwrap();
    let (want, none) = generate(model, &mut fresh, prompt, n);
    assert_eq!(none, 0);
    assert_eq!(got.0, want, "{policy:?}");
    assert_eq!(got.1, expected);
    assert_eq!(session.ids(), joined(&[prompt, &got.0[..n - 1]]));
    assert_eq!(session.cache().len(), session.ids().len());
    got
}

fn generate(model: &Model, session: &mut Session, prompt: &[u32], n: usize) -> (Vec<u32>, usize) {
    let mut generation = model.generate_in(session, prompt, &options(n)).unwrap();
    generation.prefill(|done, all| assert!(done <= all && all == prompt.len())).unwrap();
    let ids: Vec<u32> = generation.by_ref().map(|token| token.unwrap().id).collect();
    assert_eq!(ids.len(), n);
    assert_eq!(generation.finish_reason(), Some(FinishReason::Length));
    let timings = generation.timings();
    assert_eq!((timings.prompt_tokens, timings.generated_tokens), (prompt.len(), n));
    assert!(timings.cached_prompt_tokens < prompt.len());
    (ids, timings.cached_prompt_tokens)
}

#[test]
fn a_prompt_again_costs_one_token() {
    let model = bundled();
    let prompt: Vec<u32> = (0..300).map(|i| i * 7 % 2000).collect();
    for bits in [KvBits::Float, KvBits::Eight, KvBits::Four] {
        let policy = KvPolicy::quantized(bits);
        let mut session = Session::with_policy(model.model(), &policy).unwrap();
        // The answer is longer than what sliding layers hold.
        let (_, cached) = run(model.model(), &mut session, &prompt, 170);
        assert_eq!(cached, 0);
        let (_, cached) = run(model.model(), &mut session, &prompt, 5);
        assert_eq!(cached, 299);
    }
}

#[test]
fn a_session_gives_what_a_generation_without_one_gives() {
    let model = random();
    let prompt = prompt(1, 150);
    let plain: Vec<u32> =
        model.generate(&prompt, &options(120)).unwrap().map(|token| token.unwrap().id).collect();
    let mut session = Session::new(&model);
    assert_eq!(run(&model, &mut session, &prompt, 120).0, plain);
    assert_eq!(run(&model, &mut session, &prompt, 120), (plain, 149));
}

#[test]
fn again_and_again_and_continued() {
    let model = random();
    for policy in policies() {
        let mut session = Session::with_policy(&model, &policy).unwrap();
        let mut text = prompt(1, 130);
        for turn in 0..3 {
            let (answer, cached) = run(&model, &mut session, &text, 110);
            // All but the last token of the answer, which was never fed, and the new message.
            assert_eq!(cached, if turn == 0 { 0 } else { text.len() - 13 });
            let again = if text.len() > policy.quantize_from { text.len() - 1 } else { 0 };
            assert_eq!(run(&model, &mut session, &text, 110), (answer.clone(), again));
            text = joined(&[&text, &answer, &prompt(turn, 12)]);
        }
    }
}

#[test]
fn the_last_message_edited() {
    let model = random();
    for policy in policies() {
        let history = prompt(1, 180);
        let mut session = Session::with_policy(&model, &policy).unwrap();
        for (n, edit) in [prompt(2, 30), prompt(3, 60), prompt(4, 1)].iter().enumerate() {
            // The end of the history is where a chunk ends, or the middle of one.
            session.set_branch_points([history.len()]);
            let (_, cached) = run(&model, &mut session, &joined(&[&history, edit]), 120);
            assert_eq!(cached, if n == 0 { 0 } else { history.len() });
        }
    }
}

#[test]
fn a_branch_point_is_kept_wherever_chunks_end() {
    let model = random();
    // In the middle of a chunk, at its end, in the chunk that gives the logits, twice in one chunk.
    for points in [[120, 120], [100, 150], [50, 200], [199, 201], [101, 102], [0, 209]] {
        let mut session = Session::new(&model);
        session.set_branch_points(points);
        run(&model, &mut session, &prompt(1, 210), 120);
        for point in points {
            let to_there = &prompt(1, 210)[..point];
            let branch = joined(&[to_there, &prompt(2, 20)]);
            assert_eq!(session.reusable(&branch), point, "{points:?}");
            run(&model, &mut session.clone(), &branch, 3);
        }
    }
}

#[test]
fn without_branch_points_the_nearest_snapshot_serves() {
    let model = random();
    let mut policy = KvPolicy::default();
    policy.snapshot_every = 64;
    let mut session = Session::with_policy(&model, &policy).unwrap();
    run(&model, &mut session, &prompt(1, 300), 120);
    // Snapshots at 64, 128, 192 and 256, whatever the chunks.
    let branch = |at: usize| joined(&[&prompt(1, 300)[..at], &prompt(2, 20)]);
    assert_eq!(run(&model, &mut session, &branch(260), 110).1, 256);
    assert_eq!(run(&model, &mut session, &branch(199), 3).1, 192);
    // Within the slack of the one at 128.
    assert_eq!(run(&model, &mut session, &branch(100), 3).1, 100);
    assert_eq!(run(&model, &mut session, &branch(31), 3).1, 0);
}

#[test]
fn two_branches_of_one_turn() {
    let model = random();
    for policy in policies() {
        let turn = prompt(1, 190);
        let [left, right] = [2, 3].map(|seed| joined(&[&turn, &prompt(seed, 20)]));
        let mut session = Session::with_policy(&model, &policy).unwrap();
        run(&model, &mut session, &turn, 10);

        // By clones, step by step.
        let (mut a, mut b) = (session.clone(), session.clone());
        assert_eq!(run(&model, &mut a, &left, 60).1, turn.len());
        assert_eq!(run(&model, &mut b, &right, 60).1, turn.len());
        assert_eq!(run(&model, &mut a, &left, 60).1, left.len() - 1);
        assert_eq!(session.ids().len(), 199);

        // Back and forth in one.
        for branch in [&left, &right, &left, &left, &right] {
            let cached = run(&model, &mut session, branch, 110).1;
            assert!([turn.len(), branch.len() - 1].contains(&cached), "{cached}");
        }
    }
}

#[test]
fn prompts_shorter_than_what_is_held() {
    let model = random();
    for policy in policies() {
        let long = prompt(1, 200);
        let mut session = Session::with_policy(&model, &policy).unwrap();
        run(&model, &mut session, &long, 120);
        for len in [199, 150, 9, 8, 7, 2, 1] {
            run(&model, &mut session, &long[..len], 4);
        }
        run(&model, &mut session, &long, 3);
        run(&model, &mut session, &prompt(2, 1), 3);
        run(&model, &mut session, &prompt(2, 1), 3);
        assert_eq!(run(&model, &mut session, &prompt(3, 90), 3).1, 0);
    }
}

#[test]
fn what_is_refused_costs_nothing() {
    let model = random();
    let held = prompt(1, 200);
    let mut session = Session::new(&model);
    run(&model, &mut session, &held, 120);
    let ids = session.ids().to_vec();
    let mut bad = options(5);
    bad.prefill_chunk = 0;
    for (prompt, options) in [
        (vec![], options(5)),
        (vec![61], options(5)),
        (joined(&[&held, &[u32::MAX]]), options(5)),
        (held.clone(), bad),
        (vec![1; 131_072], options(5)),
    ] {
        let error = model.generate_in(&mut session, &prompt, &options).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Argument { .. } | Error::ContextFull { .. }), "{error}");
        assert_eq!(session.ids(), ids);
        assert_eq!(session.reusable(&held), 199);
    }
    // Nothing to generate, or nothing taken: nothing happens.
    let mut generation = model.generate_in(&mut session, &[1, 2], &options(0)).unwrap();
    assert!(generation.next().is_none());
    drop(generation);
    drop(model.generate_in(&mut session, &[1, 2], &options(5)).unwrap());
    assert_eq!(session.ids(), ids);
    assert_eq!(run(&model, &mut session, &held, 20).1, 199);
    session.clear();
    assert!(session.ids().is_empty() && session.cache().is_empty());
    assert_eq!(run(&model, &mut session, &held, 20).1, 0);
}

#[test]
fn a_session_of_another_model_is_refused() {
    let model = random();
    let mut session = Session::new(&model);
    run(&model, &mut session, &prompt(1, 20), 3);
    for (shape, window) in [
        (Shape { layers: 4, ..SHAPE }, WINDOW),
        (Shape { kv_heads: 1, ..SHAPE }, WINDOW),
        (SHAPE, WINDOW - 1),
    ] {
        let other = random_with(shape, window);
        let error = other.generate_in(&mut session, &[1], &options(2)).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Argument { name: "session", .. }), "{error}");
    }
    assert_eq!(run(&model, &mut session, &prompt(1, 20), 3).1, 19);
}

#[test]
fn cancelled_while_the_prompt_is_read() {
    let model = random();
    for policy in policies() {
        let text = prompt(1, 260);
        for after in [1, 3] {
            let mut session = Session::with_policy(&model, &policy).unwrap();
            let options = options(5);
            let mut generation = model.generate_in(&mut session, &text, &options).unwrap();
            let mut chunks = 0;
            let progress = |_, _| {
                chunks += 1;
                if chunks == after {
                    options.cancel.cancel();
                }
            };
            generation.prefill(progress).unwrap();
            assert!(generation.next().is_none());
            assert_eq!(generation.finish_reason(), Some(FinishReason::Cancelled));
            drop(generation);
            assert_eq!(session.ids(), &text[..after * 50]);
            assert_eq!(session.cache().len(), after * 50);
            // What was read is not read again.
            assert_eq!(run(&model, &mut session, &text, 5).1, after * 50);
        }
    }
}

#[test]
fn cancelled_or_dropped_half_way() {
    let model = random();
    for policy in policies() {
        for (taken, cancels) in [(1, true), (1, false), (2, false), (40, true), (40, false)] {
            let text = prompt(1, 160);
            let mut session = Session::with_policy(&model, &policy).unwrap();
            let options = options(100);
            let mut generation = model.generate_in(&mut session, &text, &options).unwrap();
            let said: Vec<u32> = generation.by_ref().take(taken).map(|t| t.unwrap().id).collect();
            if cancels {
                options.cancel.cancel();
                assert!(generation.next().is_none());
                assert_eq!(generation.finish_reason(), Some(FinishReason::Cancelled));
            }
            drop(generation);
            // The step queued ahead has fed the last token that was given.
            assert_eq!(session.ids(), joined(&[&text, &said]));
            assert_eq!(session.cache().len(), session.ids().len());
            let next = joined(&[&text, &said, &prompt(2, 10)]);
            assert_eq!(run(&model, &mut session, &next, 110).1, next.len() - 10);
            // Floats that were packed since are gone.
            let again = if policy.quantize_from > 159 { 0 } else { 159 };
            assert_eq!(run(&model, &mut session, &text, 3).1, again);
        }
    }
}

#[test]
fn a_stop_token_is_taken_back_when_the_next_prompt_has_another() {
    let model = random();
    let text = prompt(1, 150);
    let (answer, _) = generate(&model, &mut Session::new(&model), &text, 40);
    // The first token that did not appear before, late enough for one.
    let end = (10..40).find(|&i| !answer[..i].contains(&answer[i])).unwrap_or(0);
    let mut options = options(100);
    options.stop_ids = Some(vec![answer[end]]);
    let mut session = Session::new(&model);
    let mut generation = model.generate_in(&mut session, &text, &options).unwrap();
    let said: Vec<u32> = generation.by_ref().map(|token| token.unwrap().id).collect();
    assert_eq!(generation.finish_reason(), Some(FinishReason::Stop));
    drop(generation);
    assert_eq!(said, answer[..=end]);
    assert_eq!(session.ids(), joined(&[&text, &said]));
    let other = (answer[end] + 1) % SHAPE.vocab as u32;
    let next = joined(&[&text, &said[..end], &[other], &prompt(3, 9)]);
    assert_eq!(run(&model, &mut session, &next, 20).1, text.len() + end);
}

#[test]
fn one_token_at_most() {
    let model = random();
    let mut session = Session::new(&model);
    for len in [1, 2, 103, 104, 103, 1] {
        run(&model, &mut session, &prompt(1, len), 1);
        assert_eq!(session.ids(), prompt(1, len));
    }
}

#[test]
fn random_prompts_of_one_tree() {
    let model = random();
    let mut rng = Rng::new(5);
    let mut reused = 0;
    for mut policy in policies() {
        policy.slack = [0, 5, 32][rng.below(3)];
        policy.snapshot_every = 30 + rng.below(60);
        policy.growth_step = [1, 64, 256][rng.below(3)];
        let mut sessions = vec![Session::with_policy(&model, &policy).unwrap()];
        for _ in 0..12 {
            let at = rng.below(sessions.len());
            let held = sessions[at].ids().to_vec();
            let common = rng.below(held.len() + 1);
            let more = 1 + rng.below(80);
            let seed = rng.bits();
            let text = joined(&[&held[..common], &prompt(seed, more)]);
            if rng.below(2) == 0 {
                sessions[at].set_branch_points([rng.below(text.len()), rng.below(text.len())]);
            }
            let n = 1 + rng.below(60);
            reused += run(&model, &mut sessions[at], &text, n).1;
            if sessions.len() < 3 && rng.below(3) == 0 {
                let branch = sessions[at].clone();
                sessions.push(branch);
            }
        }
    }
    assert!(reused > 1000, "{reused}");
}

#[test]
fn a_session_moves_to_another_thread_and_back() {
    fn assert_send<T: Send>() {}
    assert_send::<Model>();
    assert_send::<Session>();

    let mut model = random();
    for policy in policies() {
        let mut session = Session::with_policy(&model, &policy).unwrap();
        let mut text = prompt(1, 120);
        // Answers of all lengths, so that every state of a sliding layer is passed on.
        for n in [1, 2, 63, 64, 65, 100] {
            let step = move || {
                let (answer, _) = run(&model, &mut session, &text, n);
                (joined(&[&text, &answer, &[1, 2]]), model, session)
            };
            (text, model, session) = thread::spawn(step).join().expect("the thread ends well");
            run(&model, &mut session, &text, 2);
        }
        // Gone back here, continued there.
        let kept = session.reuse(&text[..200]).unwrap();
        assert_eq!(session.ids(), &text[..kept]);
        let there = move || {
            run(&model, &mut session, &text, 3);
            model
        };
        model = thread::spawn(there).join().expect("the thread ends well");
    }
}

/// A long instruction, so that what comes after it is out of every window.
fn instructions() -> Message {
    let rules = "Answer briefly. Never mention the weather. Speak of ownership and lifetimes. ";
    Message::system(rules.repeat(10))
}

/// Completes in the session, and checks that a fresh one says the same.
fn complete(model: &TextModel, session: &mut Session, prompt: &[u32], chunk: usize) -> usize {
    let mut options = CompletionOptions::default();
    options.visible = Visible::Everything;
    options.generate.max_tokens = 120;
    options.generate.stop_ids = Some(vec![]);
    options.generate.prefill_chunk = chunk;
    let mut completion = model.complete_in(session, prompt, &options).unwrap();
    let text: String = completion.by_ref().map(|piece| piece.unwrap().text).collect();
    let timings = completion.timings();
    assert_eq!(timings.prompt_tokens, prompt.len());
    let fresh = model.complete(prompt, &options).unwrap();
    assert_eq!(text, fresh.map(|piece| piece.unwrap().text).collect::<String>());
    timings.cached_prompt_tokens
}

/// Where the user's messages begin.
fn user_turns(model: &TextModel, prompt: &[u32]) -> Vec<usize> {
    let start = model.raw_prompt("<|start|>user").unwrap();
    (0..prompt.len()).filter(|&i| prompt[i..].starts_with(&start)).collect()
}

/// A question longer than the slack, so that the way back is not that from the end of the prompt.
fn question(what: &str) -> Message {
    Message::user(what.repeat(12))
}

#[test]
fn instructions_shared_by_many() {
    let model = bundled();
    let mut session = Session::new(model.model());
    let asked = |what: &str| {
        model.chat_prompt(&Conversation::new([instructions(), question(what)])).unwrap()
    };
    let shared = user_turns(&model, &asked("Explain Dangling References. "))[0];
    assert!(shared > 170, "{shared}");
    let questions = ["Explain Dangling References. ", "What is a trait? ", "Explain Slices. "];
    for (n, what) in questions.iter().enumerate() {
        // The instructions end with a chunk, in one, and in the same as the question.
        let chunk = [shared, 100, 4096][n];
        let cached = complete(&model, &mut session, &asked(what), chunk);
        assert_eq!(cached, if n == 0 { 0 } else { shared });
    }
}

#[test]
fn the_last_of_several_messages_edited() {
    let model = bundled();
    let mut session = Session::new(model.model());
    let talk = |last: &str| {
        let messages = [
            instructions(),
            question("Explain Dangling References. "),
            Message::assistant("They point to what is gone. ".repeat(25)),
            question(last),
        ];
        model.chat_prompt(&Conversation::new(messages)).unwrap()
    };
    let prompt = talk("And slices? ");
    let turns = user_turns(&model, &prompt);
    assert_eq!(turns.len(), 2);
    assert!(turns[1] - turns[0] > 170, "{turns:?}");
    assert_eq!(complete(&model, &mut session, &prompt, 512), 0);
    assert_eq!(complete(&model, &mut session, &talk("What is a trait? "), 512), turns[1]);
    // Another conversation under the same instructions.
    let other = model
        .chat_prompt(&Conversation::new([instructions(), question("Explain Slices. ")]))
        .unwrap();
    assert_eq!(complete(&model, &mut session, &other, 512), turns[0]);
}

/// Harmony drops the analysis of earlier turns: the history that comes back is not what was said.
#[test]
fn a_history_without_its_analysis() {
    let model = bundled();
    for policy in [KvPolicy::default(), KvPolicy::quantized(KvBits::Eight)] {
        let mut session = Session::with_policy(model.model(), &policy).unwrap();
        let question = Message::user("Explain Dangling References.");
        let first =
            model.chat_prompt(&Conversation::new([instructions(), question.clone()])).unwrap();
        let run = |session: &mut Session, prompt: &[u32], n| run(model.model(), session, prompt, n);
        run(&mut session, &first, 1);
        // What the model thinks and says, as if it had been generated.
        let thought = format!(
            "<|channel|>analysis<|message|>{}<|end|><|start|>assistant",
            "The user asks about references. ".repeat(30)
        );
        let thought = joined(&[&first, &model.raw_prompt(&thought).unwrap()]);
        assert_eq!(run(&mut session, &thought, 100).1, first.len());

        let messages = [
            instructions(),
            question,
            AssistantMessage::new("They point to what is gone.")
                .with_analysis("The user asks about references.")
                .into(),
            Message::user("And slices?"),
        ];
        let second = model.chat_prompt(&Conversation::new(messages)).unwrap();
        assert_eq!(second[..first.len()], first);
        // Up to the end of the first question, where the model began to think.
        assert_eq!(run(&mut session, &second, 100).1, first.len());
    }
}
