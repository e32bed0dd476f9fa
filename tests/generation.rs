//! The generation loop over a scripted source: when it stops, what it queues, what it reports.

use std::cell::RefCell;
use std::rc::Rc;

use gpt_oss_mlx::{
    CancelToken, Device, Error, FinishReason, GenerateOptions, Generation, Result, TokenSource,
};
use mlx_rs::Array;

/// What was asked of a source, in order.
#[derive(Debug, Clone, PartialEq)]
enum Call {
    Prefill(Vec<u32>),
    Logits(Vec<u32>),
    Step,
}

/// A model whose next token is the last one plus 1, modulo the vocabulary.
struct Counting {
    vocab: usize,
    limit: usize,
    position: usize,
    stop: Vec<u32>,
    calls: Rc<RefCell<Vec<Call>>>,
    /// Cancels or fails at a call of this number.
    event: Option<(usize, Event)>,
}

enum Event {
    Cancel(CancelToken),
    Fail,
    NotANumber,
}

impl Counting {
    fn new() -> Self {
        let calls = Rc::default();
        Self { vocab: 10, limit: 1000, position: 0, stop: vec![9], calls, event: None }
    }

    fn note(&mut self, call: Call) -> Result<bool> {
        self.calls.borrow_mut().push(call);
        let number = self.calls.borrow().len();
        match &self.event {
            Some((at, event)) if *at == number => match event {
                Event::Cancel(token) => token.cancel(),
                Event::Fail => return Err(Error::ContextFull { tokens: 1, limit: 0 }),
                Event::NotANumber => return Ok(true),
            },
            _ => {}
        }
        Ok(false)
    }

    fn one_hot(&self, id: Array, spoiled: bool) -> Result<Array> {
        let ids: Vec<u32> = (0..self.vocab as u32).collect();
        let next = id.add(Array::from_slice(&[1u32], &[1]))?;
        let next = next.remainder(Array::from_slice(&[self.vocab as u32], &[1]))?;
        let hit = Array::from_slice(&ids, &[ids.len() as i32]).eq(&next)?;
        let logits = hit.as_type::<f32>()?.multiply(Array::from_f32(5.0))?;
        let spoil = if spoiled { f32::NAN } else { 0.0 };
        Ok(logits.add(Array::from_f32(spoil))?)
    }
}

impl TokenSource for Counting {
    fn vocab_size(&self) -> usize {
        self.vocab
    }
    fn context_limit(&self) -> usize {
        self.limit
    }
    fn position(&self) -> usize {
        self.position
    }
    fn stop_ids(&self) -> &[u32] {
        &self.stop
    }
    fn device(&self) -> Device {
        Device::Cpu
    }
    fn prefill(&mut self, tokens: &[u32]) -> Result<()> {
        self.position += tokens.len();
        self.note(Call::Prefill(tokens.to_vec()))?;
        Ok(())
    }
    fn logits(&mut self, tokens: &[u32]) -> Result<Array> {
        self.position += tokens.len();
        let spoiled = self.note(Call::Logits(tokens.to_vec()))?;
        self.one_hot(Array::from_slice(&tokens[tokens.len() - 1..], &[1]), spoiled)
    }
    fn step(&mut self, token: &Array) -> Result<Array> {
        self.position += 1;
        let spoiled = self.note(Call::Step)?;
        self.one_hot(token.clone(), spoiled)
    }
}

fn options(change: impl FnOnce(&mut GenerateOptions)) -> GenerateOptions {
    let mut options = GenerateOptions::default();
    change(&mut options);
    options
}

type Run = (Vec<u32>, Option<FinishReason>, Vec<Call>);

fn run(source: Counting, prompt: &[u32], options: &GenerateOptions) -> Run {
    let calls = Rc::clone(&source.calls);
    let mut generation = Generation::new(source, prompt, options).unwrap();
    let ids = generation.by_ref().map(|token| token.unwrap().id).collect();
    assert!(generation.next().is_none(), "an ended generation stays ended");
    let finish = generation.finish_reason();
    let calls = calls.borrow().clone();
    (ids, finish, calls)
}

#[test]
fn a_stop_token_ends_it_and_is_the_last_one() {
    let (ids, finish, _) = run(Counting::new(), &[5], &options(|_| ()));
    assert_eq!((ids, finish), (vec![6, 7, 8, 9], Some(FinishReason::Stop)));
}

#[test]
fn other_stop_tokens_may_be_named_or_none() {
    let (ids, ..) = run(Counting::new(), &[5], &options(|o| o.stop_ids = Some(vec![7])));
    assert_eq!(ids, [6, 7]);
    let none = options(|o| (o.stop_ids, o.max_tokens) = (Some(vec![]), 7));
    let (ids, finish, _) = run(Counting::new(), &[5], &none);
    assert_eq!((ids, finish), (vec![6, 7, 8, 9, 0, 1, 2], Some(FinishReason::Length)));
}

#[test]
fn the_step_after_a_token_is_queued_before_it_is_read_but_never_beyond_the_limit() {
    let (ids, _, calls) = run(Counting::new(), &[1], &options(|o| o.max_tokens = 3));
    assert_eq!(ids, [2, 3, 4]);
    assert_eq!(calls, [Call::Logits(vec![1]), Call::Step, Call::Step]);

    let source = Counting::new();
    let calls = Rc::clone(&source.calls);
    let mut generation = Generation::new(source, &[1], &options(|_| ())).unwrap();
    generation.prefill(|_, _| ()).unwrap();
    assert_eq!(calls.borrow().len(), 1);
    generation.next().unwrap().unwrap();
    assert_eq!(*calls.borrow(), [Call::Logits(vec![1]), Call::Step], "one step ahead");
}

#[test]
fn no_tokens_asked_for_means_no_work() {
    let (ids, finish, calls) = run(Counting::new(), &[1], &options(|o| o.max_tokens = 0));
    assert_eq!((ids, finish), (vec![], Some(FinishReason::Length)));
    assert!(calls.is_empty());
}

#[test]
fn prompts_are_fed_in_chunks_with_progress() {
    for (chunk, expected) in [
        (1, vec![Call::Prefill(vec![1]), Call::Prefill(vec![2]), Call::Logits(vec![3])]),
        (2, vec![Call::Prefill(vec![1, 2]), Call::Logits(vec![3])]),
        (3, vec![Call::Logits(vec![1, 2, 3])]),
        (64, vec![Call::Logits(vec![1, 2, 3])]),
    ] {
        let source = Counting::new();
        let calls = Rc::clone(&source.calls);
        let options = options(|o| (o.prefill_chunk, o.max_tokens) = (chunk, 1));
        let mut generation = Generation::new(source, &[1, 2, 3], &options).unwrap();
        let mut progress = Vec::new();
        generation.prefill(|done, total| progress.push((done, total))).unwrap();
        assert_eq!(*calls.borrow(), expected);
        assert_eq!(progress.len(), expected.len());
        assert_eq!(progress.last(), Some(&(3, 3)));
        assert_eq!(generation.next().unwrap().unwrap().id, 4);
    }
}

#[test]
fn cancelling_works_before_between_chunks_and_between_steps() {
    let cancelled = options(|o| o.cancel.cancel());
    let (ids, finish, calls) = run(Counting::new(), &[1, 2], &cancelled);
    assert_eq!((ids.len(), finish), (0, Some(FinishReason::Cancelled)));
    assert!(calls.is_empty());

    // During the second chunk of three; the third is not fed.
    let options_ = options(|o| o.prefill_chunk = 1);
    let mut source = Counting::new();
    source.event = Some((2, Event::Cancel(options_.cancel.clone())));
    let (ids, finish, calls) = run(source, &[1, 2, 3], &options_);
    assert_eq!((ids.len(), finish, calls.len()), (0, Some(FinishReason::Cancelled), 2));

    // During the second step: the token read meanwhile is given, none after it.
    let options_ = options(|_| ());
    let mut source = Counting::new();
    source.event = Some((3, Event::Cancel(options_.cancel.clone())));
    let (ids, finish, _) = run(source, &[1], &options_);
    assert_eq!((ids, finish), (vec![2, 3], Some(FinishReason::Cancelled)));
}

#[test]
fn an_error_ends_it_once() {
    for at in 1..4 {
        let mut source = Counting::new();
        source.event = Some((at, Event::Fail));
        let mut generation = Generation::new(source, &[1], &options(|_| ())).unwrap();
        let failed = generation.by_ref().find_map(|token| token.err());
        assert!(matches!(failed, Some(Error::ContextFull { .. })));
        assert!(generation.next().is_none());
        assert_eq!(generation.finish_reason(), None);
    }
}

#[test]
fn logits_that_are_not_numbers_are_an_error_with_their_position() {
    for (at, expected) in [(1, 3), (2, 4)] {
        let mut source = Counting::new();
        source.event = Some((at, Event::NotANumber));
        let mut generation = Generation::new(source, &[1, 2, 3], &options(|_| ())).unwrap();
        match generation.find_map(|token| token.err()) {
            Some(Error::NotFinite { position }) => assert_eq!(position, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn banning_everything_is_an_error() {
    let all = options(|o| {
        o.sampling.logit_bias = (0..10).map(|id| (id, f32::NEG_INFINITY)).collect();
    });
    match Generation::new(Counting::new(), &[1], &all) {
        Ok(mut generation) => {
            let error = generation.next().unwrap().unwrap_err();
            assert!(matches!(error, Error::AllBanned { position: 1 }), "{error}");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn logprobs_come_likeliest_first_and_add_up() {
    let all = options(|o| (o.logprobs, o.max_tokens) = (Some(10), 2));
    let generation = Generation::new(Counting::new(), &[1], &all).unwrap();
    for token in generation {
        let token = token.unwrap();
        assert_eq!(token.logprobs.len(), 10);
        assert_eq!(token.logprobs[0].id, token.id);
        assert_eq!(token.logprob, Some(token.logprobs[0].logprob));
        assert!(token.logprobs.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
        let total: f64 = token.logprobs.iter().map(|t| f64::from(t.logprob).exp()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
    }
}

#[test]
fn the_context_limits_the_tokens() {
    let mut source = Counting::new();
    source.limit = 5;
    let (ids, finish, _) = run(source, &[1, 2, 3], &options(|o| o.stop_ids = Some(vec![])));
    assert_eq!((ids, finish), (vec![4, 5], Some(FinishReason::Length)));

    let mut source = Counting::new();
    source.limit = 3;
    let full = Generation::new(source, &[1, 2, 3], &options(|_| ())).unwrap_err();
    assert!(matches!(full, Error::ContextFull { tokens: 4, limit: 3 }), "{full}");
}

#[test]
fn arguments_are_checked() {
    let refused = |prompt: &[u32], change: fn(&mut GenerateOptions)| match Generation::new(
        Counting::new(),
        prompt,
        &options(change),
    ) {
        Err(Error::Argument { name, .. }) => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&[], |_| ()), "prompt");
    assert_eq!(refused(&[1, 10], |_| ()), "prompt");
    assert_eq!(refused(&[1], |o| o.prefill_chunk = 0), "prefill_chunk");
    assert_eq!(refused(&[1], |o| o.logprobs = Some(11)), "logprobs");
    assert_eq!(refused(&[1], |o| o.sampling.temperature = -1.0), "temperature");
}

#[test]
fn timings_count_what_happened() {
    let mut generation =
        Generation::new(Counting::new(), &[1, 2], &options(|o| o.max_tokens = 3)).unwrap();
    assert_eq!(generation.by_ref().count(), 3);
    let timings = generation.timings();
    assert_eq!((timings.prompt_tokens, timings.generated_tokens), (2, 3));
    assert!(timings.time_to_first_token >= timings.prefill);
    assert!(timings.prefill_tokens_per_second() > 0.0);
    assert!(timings.decode_tokens_per_second() > 0.0);
    assert!(timings.peak_memory > 0);
}
