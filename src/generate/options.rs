//! What a generation is asked for, and what it gives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[cfg(feature = "constrain")]
use crate::constrain::Constraint;
use crate::sampler::Sampling;

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
    /// Log-probabilities to report for each token: its own and those of the N most likely, all of
    /// the model's own distribution, before any sampler. None reports none.
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
    /// When log-probabilities were asked for: the natural logarithm of its probability.
    pub logprob: Option<f32>,
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
