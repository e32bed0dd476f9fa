//! What a request's stream gives.

use std::time::Duration;

use crate::chat::events::{ChatEvent, Part};
use crate::generate::{FinishReason, Token};

/// Something that happened to a request.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EngineEvent {
    /// The request is sound, and waits for its turn. The first event.
    Queued {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Requests that come before it.
        ahead: usize,
    },
    /// More of the prompt was computed.
    Prefill {
        /// Tokens held, those of a kept prefix among them.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// Of a request that asked for log-probabilities: a token, before the text that it makes.
    Token(TokenEvent),
    /// Of a chat: more of the model's turn.
    Chat(ChatEvent),
    /// Of a completion: more text; never empty.
    Text(String),
    /// The request is done. The last event.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
}

/// A token with its log-probabilities.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TokenEvent {
    /// The token, its log-probability, and the likeliest ones in its place.
    pub token: Token,
    /// Where in the turn it stands; a control token stands in a header.
    pub part: Part,
}

/// What a request took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that a kept prefix held already.
    pub cached_tokens: usize,
    /// Tokens generated, control tokens included.
    pub completion_tokens: usize,
    /// Those of them that are reasoning.
    pub reasoning_tokens: usize,
    /// From the request until its computation began.
    pub queued: Duration,
    /// From there to the first token's logits.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// From the request to the first token.
    pub time_to_first_token: Duration,
}
