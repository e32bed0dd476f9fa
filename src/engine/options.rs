//! What an engine is started with, and what it is asked.

use std::path::PathBuf;
use std::time::Duration;

use crate::chat::Conversation;
use crate::chat_completion::ChatOptions;
use crate::completion::CompletionOptions;
use crate::error::{Error, Result};
use crate::model::LoadOptions;

/// How an engine is started.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EngineOptions {
    /// The model's folder.
    pub dir: PathBuf,
    /// How it is loaded. `max_context` bounds each request.
    pub load: LoadOptions,
    /// Most requests that are computed at once: rows of a batch.
    pub max_running: usize,
    /// Most requests that wait for their turn. One more is refused at once.
    pub max_waiting: usize,
    /// Most bytes of all caches: of running requests, counted as long as they may become, and of
    /// kept prefixes. What does not fit now waits; what never fits is refused. None takes what the
    /// memory estimate leaves beside the weights, and no limit where there is none.
    pub cache_bytes: Option<u64>,
    /// Most bytes of caches kept after their requests, for prompts that begin alike.
    pub prefix_bytes: u64,
    /// Most prompt tokens that are computed at once, of one request or of several with short
    /// prompts, while the others wait for their next token.
    pub prefill_chunk: usize,
    /// Events that a reader may leave unread. Its request pauses then, and no other does: it keeps
    /// its cache, but leaves its place among `max_running` to another. As many as `max_waiting` may
    /// pause so.
    pub event_buffer: usize,
}

impl EngineOptions {
    /// An engine for the model in a folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            load: LoadOptions::default(),
            max_running: 8,
            max_waiting: 64,
            cache_bytes: None,
            prefix_bytes: 512 << 20,
            prefill_chunk: 512,
            event_buffer: 256,
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        let positive = [
            ("max_running", self.max_running),
            ("max_waiting", self.max_waiting),
            ("prefill_chunk", self.prefill_chunk),
            ("event_buffer", self.event_buffer),
        ];
        match positive.into_iter().find(|(_, n)| *n == 0) {
            Some((name, _)) => Err(Error::argument(name, "must be at least 1")),
            None => Ok(()),
        }
    }
}

/// A turn of the model that an engine is asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ChatRequest {
    /// What was said so far.
    pub conversation: Conversation,
    /// How the model takes its turn.
    pub options: ChatOptions,
    /// Most time from now to the end; what is not done then ends with
    /// [`Error::TimedOut`](crate::Error::TimedOut).
    pub timeout: Option<Duration>,
}

impl ChatRequest {
    /// A request without limits of its own.
    pub fn new(conversation: Conversation, options: ChatOptions) -> Self {
        Self { conversation, options, timeout: None }
    }
}

/// A text to go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Text, in which control tokens are control tokens.
    Text(String),
    /// Tokens.
    Ids(Vec<u32>),
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Self {
        Self::Ids(ids)
    }
}

/// A completion that an engine is asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CompletionRequest {
    /// What to go on with.
    pub prompt: Prompt,
    /// How.
    pub options: CompletionOptions,
    /// As in [`ChatRequest`].
    pub timeout: Option<Duration>,
}

impl CompletionRequest {
    /// A request without limits of its own.
    pub fn new(prompt: impl Into<Prompt>, options: CompletionOptions) -> Self {
        Self { prompt: prompt.into(), options, timeout: None }
    }
}

/// How an engine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Requests end as if they had been cancelled.
    Cancel,
    /// Requests that are known are finished; those that are not done within this time are
    /// cancelled.
    Finish {
        /// The time.
        within: Duration,
    },
}
