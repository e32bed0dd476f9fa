//! The generation loop: chunked prefill, then one token after another, as an iterator.
//!
//! Decoding is pipelined: the step after a token is queued before that token is read, so that the
//! device never waits for the host. The token goes from step to step as an array.
//!
//! Under a constraint the step is queued likewise, but the token after it can only be chosen once
//! the host has read the one before: the device works on the step while the host works out which
//! tokens the grammar allows.

mod options;
mod steps;

use mlx_rs::{Array, transforms};

pub use options::{CancelToken, FinishReason, GenerateOptions, Timings, Token, TokenLogprob};
pub(crate) use steps::Steps;

use crate::error::Result;
use crate::mlx::Device;

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

/// What allows only some tokens at each step.
pub(crate) trait TokenGuide: Send {
    /// For each of `vocab_size` tokens whether it may come next; at least one may.
    fn allowed(&mut self, vocab_size: usize) -> Result<Vec<bool>>;
    /// Takes an allowed token; true when the output ends with it.
    fn push(&mut self, id: u32) -> Result<bool>;
}

/// A running generation: an iterator of tokens. The token that stops is the last one given.
///
/// After an error or the last token the iterator gives nothing more.
pub struct Generation<S: TokenSource> {
    source: S,
    steps: Steps,
    failed: bool,
}

impl<S: TokenSource> std::fmt::Debug for Generation<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation")
            .field("timings", &self.timings())
            .field("finish", &self.finish_reason())
            .finish_non_exhaustive()
    }
}

impl<S: TokenSource> Generation<S> {
    /// Prepares to generate after `prompt`, the whole sequence so far: what of it the source holds
    /// already is not fed again. Nothing is computed yet.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for an empty prompt, an id outside the vocabulary
    /// or an option out of range, [`Error::ContextFull`](crate::Error::ContextFull) when the prompt
    /// leaves no room for a token.
    pub fn new(source: S, prompt: &[u32], options: &GenerateOptions) -> Result<Self> {
        let steps = Steps::new(&source, prompt, options)?;
        Ok(Self { source, steps, failed: false })
    }

    /// Feeds the prompt in chunks, calling `progress` with the tokens done and in all after each.
    /// Done by the first call of `next` when it was not called before.
    ///
    /// # Errors
    /// Those of the model and the sampler.
    pub fn prefill(&mut self, mut progress: impl FnMut(usize, usize)) -> Result<()> {
        let Self { source, steps, failed } = self;
        while !*failed && !steps.is_fed() {
            let fed = source.device().run(|| steps.feed(source));
            *failed = fed.is_err();
            fed?;
            if steps.finish_reason().is_none() {
                let (done, all) = steps.progress();
                progress(done, all);
            }
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<Token>> {
        let Self { source, steps, .. } = self;
        if steps.ended_by_cancel() {
            return Ok(None);
        }
        let position = source.position();
        if let Some(token) = steps.input() {
            let logits = source.step(token)?;
            steps.give(logits)?;
            transforms::async_eval(steps.queued())?;
        }
        steps.read(position)
    }

    /// Ends the generation as if the model had stopped; for stop strings, which the caller sees.
    pub fn stop(&mut self) {
        self.steps.stop();
    }

    /// Why the generation ended; None while it runs or after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.steps.finish_reason().filter(|_| !self.failed)
    }

    /// Timings so far.
    pub fn timings(&self) -> Timings {
        self.steps.timings()
    }
}

impl<S: TokenSource> Iterator for Generation<S> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.steps.finish_reason().is_some() {
            return None;
        }
        if let Err(error) = self.prefill(|_, _| ()) {
            return Some(Err(error));
        }
        let device = self.source.device();
        let result = device.run(|| self.advance());
        self.failed |= result.is_err();
        result.transpose()
    }
}

impl<S: TokenSource> Drop for Generation<S> {
    fn drop(&mut self) {
        self.steps.wait();
    }
}
