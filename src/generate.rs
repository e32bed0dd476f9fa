//! The generation loop: chunked prefill, then one token after another, as an iterator.
//!
//! Decoding is pipelined: the step after a token is queued before that token is read, so that the
//! device never waits for the host. The token goes from step to step as an array.
//!
//! Under a constraint the step is queued likewise, but the token after it can only be chosen once
//! the host has read the one before: the device works on the step while the host works out which
//! tokens the grammar allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mlx_rs::{Array, transforms};

#[cfg(feature = "constrain")]
use crate::constrain::Constraint;
use crate::error::{Error, Result};
use crate::mlx::{self, Device};
use crate::sampler::{self, Sampled, Sampler, Sampling};

/// What the loop needs of a model and its cache: tokens in, logits out.
pub trait TokenSource {
    /// Number of logits.
    fn vocab_size(&self) -> usize;
    /// Most positions that a sequence can have.
    fn context_limit(&self) -> usize;
    /// Position of the next token: the number of tokens fed so far.
    fn position(&self) -> usize;
    /// Tokens that end an answer, unless the options name others.
    fn stop_ids(&self) -> &[u32];
    /// Where the work runs.
    fn device(&self) -> Device;
    /// Takes up a sequence that begins with `prompt`: returns how many of its tokens, fewer than
    /// all, are held already and need not be fed. The next token fed is the one behind them.
    ///
    /// # Errors
    /// Those of the model.
    fn begin(&mut self, _prompt: &[u32]) -> Result<usize> {
        Ok(self.position())
    }
    /// Feeds part of a prompt, at least one token, and waits until the cache holds it.
    ///
    /// # Errors
    /// Those of the model.
    fn prefill(&mut self, tokens: &[u32]) -> Result<()>;
    /// Feeds the end of a prompt, at least one token; returns the logits after the last one,
    /// `[vocabulary]`, lazily.
    ///
    /// # Errors
    /// Those of the model.
    fn logits(&mut self, tokens: &[u32]) -> Result<Array>;
    /// Feeds one token, u32 `[1]`, that the host may not have read yet; returns the logits after it,
    /// `[vocabulary]`, lazily.
    ///
    /// # Errors
    /// Those of the model.
    fn step(&mut self, token: &Array) -> Result<Array>;
}

/// A flag that ends a generation early, to be kept by another thread.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks the generation to end before its next step or prefill chunk.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True once [`CancelToken::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How to generate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// Most tokens to generate, the one that stops included. Also limited by the model's context.
    pub max_tokens: usize,
    /// Prompt tokens fed at once, at least 1. Larger chunks are faster on a GPU and need more
    /// memory.
    pub prefill_chunk: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Log-probabilities to report for each token: the N most likely of the model's own
    /// distribution, before any sampler. None reports none.
    pub logprobs: Option<usize>,
    /// Tokens that end the generation; None takes the model's. An empty list never stops.
    pub stop_ids: Option<Vec<u32>>,
    /// A grammar that the output keeps to; see [`crate::constrain`]. The prompt must end where it
    /// begins.
    #[cfg(feature = "constrain")]
    pub constraint: Option<Constraint>,
    /// Ends the generation from outside.
    pub cancel: CancelToken,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 1024,
            prefill_chunk: 512,
            sampling: Sampling::default(),
            logprobs: None,
            stop_ids: None,
            #[cfg(feature = "constrain")]
            constraint: None,
            cancel: CancelToken::default(),
        }
    }
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Token {
    /// The token.
    pub id: u32,
    /// When asked for: the most likely tokens of the model's own distribution, likeliest first.
    pub logprobs: Vec<TokenLogprob>,
}

/// A token and the natural logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model chose a stop token, a stop string appeared, or the constraint's grammar ended.
    Stop,
    /// The number of tokens asked for, or the end of the model's context, was reached. What a
    /// constraint promises of the output holds only for a whole turn, and this one is cut off.
    Length,
    /// The generation was cancelled.
    Cancelled,
}

impl FinishReason {
    /// The name that OpenAI's API uses, where it has one: "stop", "length", "cancelled".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How long the parts of a generation took, and how much memory they needed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that a cache held already.
    pub cached_prompt_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// From the start to the first token's logits.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// From the start until the first token was read.
    pub time_to_first_token: Duration,
    /// The most memory that MLX held at any time in this process, bytes.
    pub peak_memory: usize,
}

impl Timings {
    /// Prompt tokens computed per second.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prompt_tokens.saturating_sub(self.cached_prompt_tokens), self.prefill)
    }

    /// Generated tokens per second, without the first, which prefill gives.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 || time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// What allows only some tokens at each step.
pub(crate) trait TokenGuide: Send {
    /// For each of `vocab_size` tokens whether it may come next; at least one may.
    fn allowed(&mut self, vocab_size: usize) -> Result<Vec<bool>>;
    /// Takes an allowed token; true when the output ends with it.
    fn push(&mut self, id: u32) -> Result<bool>;
}

/// A token that is being computed, and what is read along with it.
struct Step {
    sampled: Sampled,
    /// Ids and log-probabilities of the most likely tokens.
    top: Option<(Array, Array)>,
}

/// A running generation: an iterator of tokens. The token that stops is the last one given.
///
/// After an error or the last token the iterator gives nothing more.
pub struct Generation<S: TokenSource> {
    source: S,
    sampler: Sampler,
    vocab_size: usize,
    prompt: Vec<u32>,
    stop_ids: Vec<u32>,
    max_tokens: usize,
    prefill_chunk: usize,
    logprobs: Option<usize>,
    cancel: CancelToken,
    started: Instant,
    first_token: Option<Instant>,
    pending: Option<Step>,
    guide: Option<Box<dyn TokenGuide>>,
    /// Logits that were queued when the output ended.
    unused: Option<Array>,
    prefilled: bool,
    finish: Option<FinishReason>,
    failed: bool,
    timings: Timings,
}

impl<S: TokenSource> std::fmt::Debug for Generation<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation")
            .field("timings", &self.timings)
            .field("finish", &self.finish)
            .finish_non_exhaustive()
    }
}

impl<S: TokenSource> Generation<S> {
    /// Prepares to generate after `prompt`, the whole sequence so far: what of it the source holds
    /// already is not fed again. Nothing is computed yet.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt, an id outside the vocabulary or an option out of
    /// range, [`Error::ContextFull`] when the prompt leaves no room for a token.
    pub fn new(source: S, prompt: &[u32], options: &GenerateOptions) -> Result<Self> {
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
        Ok(Self {
            sampler,
            vocab_size,
            prompt: prompt.to_vec(),
            stop_ids,
            max_tokens: options.max_tokens.min(room),
            prefill_chunk: options.prefill_chunk,
            logprobs: options.logprobs.filter(|&n| n > 0),
            cancel: options.cancel.clone(),
            started: Instant::now(),
            first_token: None,
            pending: None,
            #[cfg(feature = "constrain")]
            guide: options
                .constraint
                .as_ref()
                .map(|constraint| Box::new(constraint.begin()) as Box<dyn TokenGuide>),
            #[cfg(not(feature = "constrain"))]
            guide: None,
            unused: None,
            prefilled: false,
            finish: None,
            failed: false,
            timings: Timings { prompt_tokens: prompt.len(), ..Timings::default() },
            source,
        })
    }

    /// Feeds the prompt in chunks, calling `progress` with the tokens done and in all after each.
    /// Done by the first call of `next` when it was not called before.
    ///
    /// # Errors
    /// Those of the model and the sampler.
    pub fn prefill(&mut self, mut progress: impl FnMut(usize, usize)) -> Result<()> {
        if self.prefilled {
            return Ok(());
        }
        self.prefilled = true;
        self.started = Instant::now();
        let result = self.source.device().run(|| self.feed_prompt(&mut progress));
        self.failed |= result.is_err();
        result
    }

    fn feed_prompt(&mut self, progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
        if self.max_tokens == 0 {
            self.finish = Some(FinishReason::Length);
            return Ok(());
        }
        let prompt = std::mem::take(&mut self.prompt);
        let cached = self.source.begin(&prompt)?;
        let mut rest = prompt.get(cached..).filter(|rest| !rest.is_empty()).ok_or_else(|| {
            let reason = format!("{} tokens, of which the source holds {cached}", prompt.len());
            Error::argument("prompt", reason)
        })?;
        self.timings.cached_prompt_tokens = cached;
        while let Some((chunk, more)) = rest.split_at_checked(self.prefill_chunk)
            && !more.is_empty()
        {
            if self.ended_by_cancel() {
                return Ok(());
            }
            self.source.prefill(chunk)?;
            rest = more;
            progress(prompt.len() - rest.len(), prompt.len());
        }
        if self.ended_by_cancel() {
            return Ok(());
        }
        let logits = self.source.logits(rest)?;
        if self.guide.is_some() {
            transforms::async_eval([&logits])?;
        }
        let step = self.choose(&logits)?;
        step.sampled.token.eval()?;
        progress(prompt.len(), prompt.len());
        self.pending = Some(step);
        self.timings.prefill = self.started.elapsed();
        Ok(())
    }

    /// Picks the next token from logits [vocabulary], lazily, and queues the work.
    fn choose(&mut self, logits: &Array) -> Result<Step> {
        let vocab_size = self.vocab_size;
        let guide = self.guide.as_mut();
        let allowed = guide.map(|guide| guide.allowed(vocab_size)).transpose()?;
        let width = i32::try_from(self.vocab_size).unwrap_or(i32::MAX);
        let allowed = allowed.map(|allowed| Array::from_slice(&allowed, &[width]));
        let sampled = self.sampler.sample_allowed(logits, allowed.as_ref())?;
        let top = self.logprobs.map(|n| sampler::logprobs(logits, n)).transpose()?;
        let step = Step { sampled, top };
        let extra = step.top.iter().flat_map(|(ids, logprobs)| [ids, logprobs]);
        transforms::async_eval(
            [&step.sampled.token, &step.sampled.max_logit].into_iter().chain(extra),
        )?;
        Ok(step)
    }

    fn ended_by_cancel(&mut self) -> bool {
        if self.cancel.is_cancelled() {
            self.finish = Some(FinishReason::Cancelled);
        }
        self.finish.is_some()
    }

    fn advance(&mut self) -> Result<Option<Token>> {
        self.prefill(|_, _| ())?;
        if self.ended_by_cancel() {
            return Ok(None);
        }
        let Some(step) = self.pending.take() else { return Ok(None) };
        let position = self.source.position();
        let goes_on = self.timings.generated_tokens.saturating_add(1) < self.max_tokens;
        if goes_on {
            let logits = self.source.step(&step.sampled.token)?;
            if self.guide.is_none() {
                self.pending = Some(self.choose(&logits)?);
            } else {
                transforms::async_eval([&logits])?;
                self.unused = Some(logits);
            }
        }
        let token = read(&step, position)?;
        let stops = self.stop_ids.contains(&token.id);
        let over = match &mut self.guide {
            Some(guide) => guide.push(token.id)?,
            None => false,
        };
        if !stops
            && !over
            && let Some(logits) = self.unused.take()
        {
            self.pending = Some(self.choose(&logits)?);
        }
        let now = Instant::now();
        let first = *self.first_token.get_or_insert(now);
        self.timings.generated_tokens += 1;
        self.timings.time_to_first_token = first - self.started;
        self.timings.decode = now - first;
        if stops || over {
            self.finish = Some(FinishReason::Stop);
        } else if self.timings.generated_tokens >= self.max_tokens {
            self.finish = Some(FinishReason::Length);
        }
        Ok(Some(token))
    }

    /// Ends the generation as if the model had stopped; for stop strings, which the caller sees.
    pub fn stop(&mut self) {
        self.finish = Some(FinishReason::Stop);
    }

    /// Why the generation ended; None while it runs or after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish.filter(|_| !self.failed)
    }

    /// Timings so far.
    pub fn timings(&self) -> Timings {
        Timings { peak_memory: mlx::peak_memory().unwrap_or(0), ..self.timings }
    }
}

/// Waits for a step and reads it.
fn read(step: &Step, position: usize) -> Result<Token> {
    let id = step.sampled.read(position)?;
    let mut logprobs = Vec::new();
    if let Some((ids, values)) = &step.top {
        let read =
            |e: &dyn std::fmt::Display| Error::Mlx { op: "logprobs", message: e.to_string() };
        let ids = ids.try_as_slice::<u32>().map_err(|e| read(&e))?;
        let values = values.try_as_slice::<f32>().map_err(|e| read(&e))?;
        let pair = |(&id, &logprob)| TokenLogprob { id, logprob };
        logprobs = ids.iter().zip(values).map(pair).collect();
    }
    Ok(Token { id, logprobs })
}

impl<S: TokenSource> Iterator for Generation<S> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.finish.is_some() {
            return None;
        }
        let result = self.source.device().run(|| self.advance());
        self.failed |= result.is_err();
        result.transpose()
    }
}

impl<S: TokenSource> Drop for Generation<S> {
    fn drop(&mut self) {
        // Waits for the step that was queued ahead, so that no work outlives the sequence.
        if let Some(step) = self.pending.take() {
            let _ = step.sampled.token.eval();
        }
        if let Some(logits) = self.unused.take() {
            let _ = logits.eval();
        }
    }
}
