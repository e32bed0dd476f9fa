//! One request's part of the generation loop: everything but the model and its cache.
//!
//! [`Generation`](super::Generation) drives one of these, and the engine many side by side, with one
//! forward pass for all of them between [`Steps::input`] and [`Steps::give`].

use std::time::Instant;

use mlx_rs::{Array, transforms};

use super::options::{CancelToken, FinishReason, GenerateOptions, Timings, Token, TokenLogprob};
use super::{TokenGuide, TokenSource};
use crate::error::{Error, Result};
use crate::mlx;
use crate::sampler::{self, Sampled, Sampler};

/// A token that is being computed, and what is read along with it.
struct Step {
    sampled: Sampled,
    /// When asked for.
    logprobs: Option<Logprobs>,
}

struct Logprobs {
    /// f32 [1]: of the token itself.
    own: Array,
    /// Ids and log-probabilities of the most likely tokens.
    top: Option<(Array, Array)>,
}

impl Step {
    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let logprobs = self.logprobs.iter().flat_map(|logprobs| {
            let top = logprobs.top.iter().flat_map(|(ids, values)| [ids, values]);
            [&logprobs.own].into_iter().chain(top)
        });
        [&self.sampled.token, &self.sampled.max_logit].into_iter().chain(logprobs)
    }

    /// Waits for the step and reads it.
    fn read(&self, position: usize) -> Result<Token> {
        let id = self.sampled.read(position)?;
        let read =
            |e: &dyn std::fmt::Display| Error::Mlx { op: "logprobs", message: e.to_string() };
        let mut token = Token { id, logprob: None, logprobs: Vec::new() };
        if let Some(Logprobs { own, top }) = &self.logprobs {
            token.logprob = Some(own.try_item_exact().map_err(|e| read(&e))?);
            if let Some((ids, values)) = top {
                let ids = ids.try_as_slice::<u32>().map_err(|e| read(&e))?;
                let values = values.try_as_slice::<f32>().map_err(|e| read(&e))?;
                let pair = |(&id, &logprob)| TokenLogprob { id, logprob };
                token.logprobs = ids.iter().zip(values).map(pair).collect();
            }
        }
        Ok(token)
    }
}

/// What was queued behind the token that is read next.
enum Ahead {
    Chosen(Step),
    /// Under a constraint the host has to know the token before it can choose the one after it.
    Logits(Array),
}

/// The steps of one request.
pub(crate) struct Steps {
    sampler: Sampler,
    vocab_size: usize,
    prompt: Vec<u32>,
    /// Tokens of the prompt that the source holds.
    fed: usize,
    stop_ids: Vec<u32>,
    max_tokens: usize,
    prefill_chunk: usize,
    logprobs: Option<usize>,
    cancel: CancelToken,
    guide: Option<Box<dyn TokenGuide>>,
    begun: bool,
    /// The token to be read next.
    current: Option<Step>,
    ahead: Option<Ahead>,
    finish: Option<FinishReason>,
    started: Instant,
    first_token: Option<Instant>,
    timings: Timings,
}

impl Steps {
    /// See [`Generation::new`](super::Generation::new).
    pub(crate) fn new(
        source: &impl TokenSource,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Self> {
        let vocab_size = source.vocab_size();
        let outside = |id: &&u32| usize::try_from(**id).map_or(true, |id| id >= vocab_size);
        if prompt.is_empty() {
            return Err(Error::argument("prompt", "it has no tokens"));
        }
        if let Some(id) = prompt.iter().find(outside) {
            let reason = format!("id {id} is outside the vocabulary of {vocab_size}");
            return Err(Error::argument("prompt", reason));
        }
        if options.prefill_chunk == 0 {
            return Err(Error::argument("prefill_chunk", "must be at least 1"));
        }
        if options.logprobs.is_some_and(|n| n > vocab_size) {
            let reason = format!("more than the vocabulary of {vocab_size}");
            return Err(Error::argument("logprobs", reason));
        }
        let limit = source.context_limit();
        let room = limit.saturating_sub(prompt.len());
        if room == 0 {
            return Err(Error::ContextFull { tokens: prompt.len().saturating_add(1), limit });
        }
        let stop_ids = options.stop_ids.clone().unwrap_or_else(|| source.stop_ids().to_vec());
        let mut sampler = Sampler::new(&options.sampling, vocab_size, &stop_ids)?;
        source.device().run(|| sampler.observe_prompt(prompt))?;
        #[cfg(feature = "constrain")]
        let guide = options
            .constraint
            .as_ref()
            .map(|constraint| Box::new(constraint.begin()) as Box<dyn TokenGuide>);
        #[cfg(not(feature = "constrain"))]
        let guide = None;
        Ok(Self {
            sampler,
            vocab_size,
            prompt: prompt.to_vec(),
            fed: 0,
            stop_ids,
            max_tokens: options.max_tokens.min(room),
            prefill_chunk: options.prefill_chunk,
            logprobs: options.logprobs,
            cancel: options.cancel.clone(),
            guide,
            begun: false,
            current: None,
            ahead: None,
            finish: None,
            started: Instant::now(),
            first_token: None,
            timings: Timings { prompt_tokens: prompt.len(), ..Timings::default() },
        })
    }

    /// True once there is nothing more to [`feed`](Self::feed).
    pub(crate) fn is_fed(&self) -> bool {
        self.current.is_some() || self.finish.is_some()
    }

    /// Tokens of the prompt that are held, and all of them.
    pub(crate) fn progress(&self) -> (usize, usize) {
        (self.fed, self.timings.prompt_tokens)
    }

    /// Most tokens that the next [`feed`](Self::feed) computes.
    pub(crate) fn next_chunk(&self) -> usize {
        self.prompt.len().saturating_sub(self.fed).min(self.prefill_chunk)
    }

    /// Feeds the next chunk of the prompt. The last one gives the first token, which is then
    /// computed.
    pub(crate) fn feed(&mut self, source: &mut impl TokenSource) -> Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            self.started = Instant::now();
            if self.max_tokens == 0 {
                self.finish = Some(FinishReason::Length);
                return Ok(());
            }
            self.fed = source.begin(&self.prompt)?;
            self.timings.cached_prompt_tokens = self.fed;
        }
        if self.ended_by_cancel() {
            return Ok(());
        }
        let rest = self.prompt.get(self.fed..).filter(|rest| !rest.is_empty());
        let rest = rest.ok_or_else(|| {
            let (fed, all) = self.progress();
            Error::argument("prompt", format!("{all} tokens, of which the source holds {fed}"))
        })?;
        if let Some((chunk, more)) = rest.split_at_checked(self.prefill_chunk)
            && !more.is_empty()
        {
            source.prefill(chunk)?;
            self.fed = self.prompt.len().saturating_sub(more.len());
            return Ok(());
        }
        let logits = source.logits(rest)?;
        if self.guide.is_some() {
            transforms::async_eval([&logits])?;
        }
        let step = self.choose(&logits)?;
        transforms::async_eval(step.arrays())?;
        step.sampled.token.eval()?;
        self.current = Some(step);
        self.fed = self.prompt.len();
        self.prompt = Vec::new();
        self.timings.prefill = self.started.elapsed();
        Ok(())
    }

    /// Picks the next token from logits [vocabulary], lazily.
    fn choose(&mut self, logits: &Array) -> Result<Step> {
        let vocab_size = self.vocab_size;
        let guide = self.guide.as_mut();
        let allowed = guide.map(|guide| guide.allowed(vocab_size)).transpose()?;
        let width = i32::try_from(self.vocab_size).unwrap_or(i32::MAX);
        let allowed = allowed.map(|allowed| Array::from_slice(&allowed, &[width]));
        let sampled = self.sampler.sample_allowed(logits, allowed.as_ref())?;
        let logprobs = |n: usize| -> Result<Logprobs> {
            let own = sampler::logprob_of(logits, &sampled.token)?;
            let top = (n > 0).then(|| sampler::logprobs(logits, n)).transpose()?;
            Ok(Logprobs { own, top })
        };
        let logprobs = self.logprobs.map(logprobs).transpose()?;
        Ok(Step { sampled, logprobs })
    }

    /// Notes a cancellation. True when the output has ended.
    pub(crate) fn ended_by_cancel(&mut self) -> bool {
        if self.cancel.is_cancelled() {
            self.finish = Some(FinishReason::Cancelled);
        }
        self.finish.is_some()
    }

    /// The token to feed before the next [`read`](Self::read), u32 [1], which the host has not read
    /// yet. None when the one that is read next is the last.
    pub(crate) fn input(&self) -> Option<&Array> {
        let goes_on = self.timings.generated_tokens.saturating_add(1) < self.max_tokens;
        self.current.as_ref().filter(|_| goes_on).map(|step| &step.sampled.token)
    }

    /// Takes the logits after [`input`](Self::input), [vocabulary].
    pub(crate) fn give(&mut self, logits: Array) -> Result<()> {
        self.ahead = Some(match self.guide {
            None => Ahead::Chosen(self.choose(&logits)?),
            Some(_) => Ahead::Logits(logits),
        });
        Ok(())
    }

    /// What there is to compute after [`give`](Self::give).
    pub(crate) fn queued(&self) -> impl Iterator<Item = &Array> {
        let (step, logits) = match &self.ahead {
            Some(Ahead::Chosen(step)) => (Some(step), None),
            Some(Ahead::Logits(logits)) => (None, Some(logits)),
            None => (None, None),
        };
        step.into_iter().flat_map(Step::arrays).chain(logits)
    }

    /// Waits for the next token and reads it. `position` is where it stands in the sequence. None
    /// when there is none: the output has ended.
    pub(crate) fn read(&mut self, position: usize) -> Result<Option<Token>> {
        let Some(step) = self.current.take() else { return Ok(None) };
        let token = step.read(position)?;
        let stops = self.stop_ids.contains(&token.id);
        let over = match &mut self.guide {
            Some(guide) => guide.push(token.id)?,
            None => false,
        };
        if !stops && !over {
            self.current = match self.ahead.take() {
                Some(Ahead::Chosen(step)) => Some(step),
                Some(Ahead::Logits(logits)) => {
                    let step = self.choose(&logits)?;
                    transforms::async_eval(step.arrays())?;
                    Some(step)
                }
                None => None,
            };
        }
        let now = Instant::now();
        let first = *self.first_token.get_or_insert(now);
        self.timings.generated_tokens = self.timings.generated_tokens.saturating_add(1);
        self.timings.time_to_first_token = first - self.started;
        self.timings.decode = now - first;
        if stops || over {
            self.finish = Some(FinishReason::Stop);
        } else if self.timings.generated_tokens >= self.max_tokens {
            self.finish = Some(FinishReason::Length);
        }
        Ok(Some(token))
    }

    /// The prompt, until it is fed.
    pub(crate) fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// Most tokens that are generated.
    pub(crate) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Ends the output as if it had been cancelled.
    pub(crate) fn cancel(&mut self) {
        self.finish.get_or_insert(FinishReason::Cancelled);
    }

    /// Ends the output as if the model had stopped.
    pub(crate) fn stop(&mut self) {
        self.finish = Some(FinishReason::Stop);
    }

    /// Why the output ended; None while it goes on.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Timings so far.
    pub(crate) fn timings(&self) -> Timings {
        Timings { peak_memory: mlx::peak_memory().unwrap_or(0), ..self.timings }
    }

    /// Waits for what was queued ahead, so that no work outlives the sequence.
    pub(crate) fn wait(&mut self) {
        if let Some(step) = self.current.take() {
            let _ = step.sampled.token.eval();
        }
        match self.ahead.take() {
            Some(Ahead::Chosen(step)) => drop(step.sampled.token.eval()),
            Some(Ahead::Logits(logits)) => drop(logits.eval()),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::generate::Generation;
    use crate::mlx::Device;

    const VOCAB: usize = 4;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Event {
        /// The source was asked for logits.
        Fed,
        /// The guide was asked for a mask; whether the logits had been queued by then.
        Mask { queued: bool },
        /// The guide was told what the host read.
        Taken,
    }

    /// What happened, in order, and the logits asked for last.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<(Vec<Event>, Option<Array>)>>);

    impl Log {
        fn with<T>(&self, change: impl FnOnce(&mut (Vec<Event>, Option<Array>)) -> T) -> T {
            change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }

        fn add(&self, event: Event) {
            self.with(|(events, _)| events.push(event));
        }
    }

    struct Source(Log, usize);

    impl Source {
        fn lazy(&mut self) -> Result<Array> {
            self.1 += 1;
            let logits =
                Array::from_slice(&[0f32; VOCAB], &[VOCAB as i32]).add(Array::from(1f32))?;
            self.0.with(|(events, last)| {
                events.push(Event::Fed);
                *last = Some(logits.clone());
            });
            Ok(logits)
        }
    }

    impl TokenSource for Source {
        fn vocab_size(&self) -> usize {
            VOCAB
        }
        fn context_limit(&self) -> usize {
            100
        }
        fn position(&self) -> usize {
            self.1
        }
        fn stop_ids(&self) -> &[u32] {
            &[]
        }
        fn device(&self) -> Device {
            Device::Cpu
        }
        fn prefill(&mut self, _: &[u32]) -> Result<()> {
            Ok(())
        }
        fn logits(&mut self, _: &[u32]) -> Result<Array> {
            self.lazy()
        }
        fn step(&mut self, _: &Array) -> Result<Array> {
            self.lazy()
        }
    }

    struct Guide(Log);

    impl TokenGuide for Guide {
        fn allowed(&mut self, vocab_size: usize) -> Result<Vec<bool>> {
            let logits = self.0.with(|(_, last)| last.take()).unwrap();
            // Logits that were queued come by themselves, and others never.
            let mut waited = 0;
            while !mlx::is_available(&logits) && waited < 5000 {
                thread::sleep(Duration::from_millis(1));
                waited += 1;
            }
            self.0.add(Event::Mask { queued: mlx::is_available(&logits) });
            Ok(vec![true; vocab_size])
        }

        fn push(&mut self, _: u32) -> Result<bool> {
            self.0.add(Event::Taken);
            Ok(false)
        }
    }

    #[test]
    fn under_a_constraint_a_step_is_queued_before_the_mask_after_it_is_asked_for() {
        let log = Log::default();
        let options = GenerateOptions { max_tokens: 3, ..GenerateOptions::default() };
        let mut generation = Generation::new(Source(log.clone(), 0), &[1], &options).unwrap();
        generation.steps.guide = Some(Box::new(Guide(log.clone())));
        let tokens: Vec<Token> = generation.by_ref().map(|token| token.unwrap()).collect();
        assert_eq!(tokens.len(), 3);
        let mask = Event::Mask { queued: true };
        // The prompt; then each step before the host reads the token that it is fed.
        let prompt = [Event::Fed, mask];
        let step = [Event::Fed, Event::Taken, mask];
        let expected = [&prompt[..], &step, &step, &[Event::Taken]].concat();
        assert_eq!(log.with(|(events, _)| events.clone()), expected);
    }
}
