//! Many requests of all kinds that come and go at random: each gives what it gives alone.

use std::thread;
use std::time::Duration;

use gpt_oss_mlx::constrain::ResponseFormat;
use gpt_oss_mlx::engine::{ChatRequest, CompletionRequest, Engine, EngineEvent, Prompt};
use gpt_oss_mlx::{
    FinishReason, GenerateOptions, KvBits, KvPolicy, LoadOptions, Sampling, TextModel, Token,
    Visible,
};
use serde_json::json;

use super::limits::until;
use super::rng::Rng;
use super::turns::{TOPICS, alone as chat_alone, events};
use super::{Done, ask, chat, dir, endless, read, start};

#[derive(Clone)]
enum Request {
    Completion(Box<CompletionRequest>),
    /// With a constraint.
    Chat(Box<ChatRequest>),
}

/// How a reader goes away, after so many events.
#[derive(Debug, Clone, Copy)]
enum Leave {
    Drop(usize),
    Cancel(usize),
    Token(usize),
}

#[derive(Clone)]
struct Case {
    request: Request,
    leave: Option<Leave>,
    /// When it comes, in milliseconds.
    at: u64,
}

fn case(rng: &mut Rng, starts: &[Vec<u32>], at: u64) -> Case {
    let leave = (rng.below(4) == 0).then(|| {
        let events = rng.below(20);
        match rng.below(3) {
            0 => Leave::Drop(events),
            1 => Leave::Cancel(events),
            _ => Leave::Token(events),
        }
    });
    if rng.below(6) == 0 {
        let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"], "additionalProperties": false});
        let request = chat(&format!("Explain {}.", TOPICS[rng.below(TOPICS.len())]), |o| {
            o.response_format = Some(ResponseFormat::JsonSchema(schema));
            generate(rng, &mut o.generate);
        });
        return Case { request: Request::Chat(Box::new(request)), leave, at };
    }
    let mut prompt = starts[rng.below(starts.len())].clone();
    let kept = 1 + rng.below(prompt.len());
    prompt.truncate(kept);
    prompt.extend((0..rng.below(60)).map(|_| rng.below(2000) as u32));
    let mut request = endless(&prompt, 0);
    generate(rng, &mut request.options.generate);
    if rng.below(3) == 0 {
        request.options.stop = vec![" the".into(), "e r".into()];
    }
    if rng.below(3) == 0 {
        request.options.generate.stop_ids = None;
        request.options.visible = Visible::Final;
    }
    Case { request: Request::Completion(Box::new(request)), leave, at }
}

fn generate(rng: &mut Rng, options: &mut GenerateOptions) {
    options.max_tokens = [0, 1, 2, 10, 40, 80][rng.below(6)];
    options.logprobs = [None, Some(2)][rng.below(2)];
    let sampling = &mut options.sampling;
    if rng.below(2) == 0 {
        (sampling.temperature, sampling.seed) = (1.0, rng.bits());
        (sampling.top_p, sampling.min_p) = [(1.0, 0.0), (0.9, 0.0), (1.0, 0.05)][rng.below(3)];
    }
    if rng.below(3) == 0 {
        (sampling.repetition_penalty, sampling.presence_penalty) = (1.2, 0.3);
        sampling.penalty_context = 1 + rng.below(30);
    }
}

/// Whether only the likeliest token of the model's own distribution is ever taken.
fn is_greedy(sampling: &Sampling) -> bool {
    sampling.temperature == 0.0 && sampling.repetition_penalty == 1.0
}

fn ask_engine(engine: &Engine, case: &Case) -> Option<Done> {
    let mut stream = match &case.request {
        Request::Completion(request) => engine.complete((**request).clone()).unwrap(),
        Request::Chat(request) => engine.chat((**request).clone()).unwrap(),
    };
    let mut first = Vec::new();
    if let Some(Leave::Drop(n) | Leave::Cancel(n) | Leave::Token(n)) = case.leave {
        while first.len() < n {
            match stream.blocking_next().unwrap().unwrap() {
                EngineEvent::Finished { reason, usage } => {
                    return Some(Done { events: first, end: Ok((reason, usage)) });
                }
                event => first.push(event),
            }
        }
        match case.leave {
            Some(Leave::Drop(_)) => return None,
            Some(Leave::Cancel(_)) => stream.cancel(),
            _ => stream.cancel_token().cancel(),
        }
    }
    let mut done = read(stream);
    done.events.splice(0..0, first);
    Some(done)
}

/// What a completion gives alone.
fn alone(model: &TextModel, request: &CompletionRequest) -> (Vec<Token>, String, FinishReason) {
    let Prompt::Ids(prompt) = &request.prompt else { panic!("text") };
    let mut options = request.options.clone();
    options.generate.logprobs = Some(2);
    let mut completion = model.complete(prompt, &options).unwrap();
    let pieces: Vec<_> = completion.by_ref().map(|piece| piece.unwrap()).collect();
    let text = pieces.iter().map(|piece| piece.text.as_str()).collect();
    let tokens = pieces.into_iter().filter_map(|piece| piece.token).collect();
    (tokens, text, completion.finish_reason().unwrap())
}

/// True when it parted from what it gives alone where two tokens were as likely as each other but
/// for float error. False when it has not parted.
fn parts_at_a_tie(request: &CompletionRequest, done: &Done, tokens: &[Token], tie: f32) -> bool {
    let token = |event: &EngineEvent| match event {
        EngineEvent::Token(event) => Some(event.token.id),
        _ => None,
    };
    let got = done.events.iter().filter_map(token);
    let Some((_, wanted)) = got.zip(tokens).find(|(got, wanted)| *got != wanted.id) else {
        return false;
    };
    let margin = wanted.logprobs[0].logprob - wanted.logprobs[1].logprob;
    println!("parted at a margin of {margin}, {:?}", request.options.generate.sampling);
    is_greedy(&request.options.generate.sampling) && margin < tie
}

/// How many requests parted from what they give alone at a tie.
fn check(seed: u64, requests: usize, kv: KvPolicy, tie: f32) -> usize {
    let mut rng = Rng::new(seed);
    let mut options = LoadOptions::default();
    options.kv = kv;
    let model = TextModel::load(dir(), &options).unwrap();
    let starts: Vec<Vec<u32>> = (0..4)
        .map(|i| model.chat_prompt(&ask(&format!("Explain {}.", TOPICS[i]))).unwrap())
        .collect();
    let (max_running, prefill_chunk) = (2 + rng.below(12), 8 + rng.below(60));
    println!("seed {seed}: {max_running} at once, chunks of {prefill_chunk}");
    let engine = start(|o| {
        (o.max_running, o.prefill_chunk, o.event_buffer) =
            (max_running, prefill_chunk, 2 + rng.below(60));
        o.load.kv = kv;
    });
    let cases: Vec<_> =
        (0..requests as u64).map(|i| case(&mut rng, &starts, 40 * (i / 3))).collect();
    let threads: Vec<_> = cases
        .iter()
        .map(|case| {
            let (engine, case) = (engine.clone(), case.clone());
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(case.at));
                ask_engine(&engine, &case)
            })
        })
        .collect();
    let mut ties = 0;
    for (i, (case, thread)) in cases.iter().zip(threads).enumerate() {
        let Some(done) = thread.join().unwrap() else { continue };
        let cancelled = done.reason() == FinishReason::Cancelled;
        let what = format!("seed {seed}, request {i}, {:?}", case.leave);
        match &case.request {
            Request::Chat(request) => {
                let ChatRequest { conversation, options, .. } = &**request;
                if !cancelled {
                    assert_eq!(events(&done), chat_alone(&model, conversation, options), "{what}");
                }
            }
            Request::Completion(request) => {
                let (tokens, text, reason) = alone(&model, request);
                if parts_at_a_tie(request, &done, &tokens, tie) {
                    ties += 1;
                } else if cancelled {
                    assert!(text.starts_with(&done.text()), "{what}: {:?}", done.text());
                } else {
                    assert_eq!((done.text(), done.reason()), (text, reason), "{what}");
                    assert_eq!(done.usage().completion_tokens, tokens.len(), "{what}");
                }
            }
        }
    }
    let stats = until(&engine, |stats| stats.running == 0 && stats.waiting == 0);
    let ended = stats.stopped + stats.at_length + stats.cancelled;
    assert_eq!((ended, stats.failed), (requests as u64, 0), "{stats:?}");
    assert!(stats.prefixes.hits > 0 && stats.steps < stats.generated_tokens, "{stats:?}");
    ties
}

#[test]
fn whatever_joins_and_leaves_each_gives_what_it_gives_alone() {
    // None in floats: rows differ by rounding only.
    assert_eq!(check(1, 60, KvPolicy::default(), 1e-4), 0);
}

#[test]
fn so_it_is_with_quantized_caches() {
    // Whether a key rounds up or down may depend on the order of a sum.
    let ties = check(2, 30, KvPolicy::quantized(KvBits::Eight), 1e-2);
    assert!(ties <= 2, "{ties} of 30");
}
