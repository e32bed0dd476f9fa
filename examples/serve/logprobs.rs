//! Log-probabilities as the API gives them.

use gpt_oss_mlx::chat::events::Part;
use gpt_oss_mlx::engine::{Engine, TokenEvent};
use gpt_oss_mlx::{TokenLogprob, Tokenizer};
use serde::Serialize;

/// A token of the answer, its log-probability, and the likeliest tokens in its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprobs {
    #[serde(flatten)]
    pub token: OneLogprob,
    pub top_logprobs: Vec<OneLogprob>,
}

/// A token and its log-probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OneLogprob {
    /// Its text, as far as it is UTF-8 by itself.
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// Makes them of the engine's tokens.
#[derive(Debug, Clone)]
pub struct Spelling(Engine);

impl Spelling {
    pub fn new(engine: &Engine) -> Self {
        Self(engine.clone())
    }

    /// None for a token that is no part of what the user sees.
    pub fn visible(&self, TokenEvent { token, part, .. }: &TokenEvent) -> Option<TokenLogprobs> {
        let tokenizer = self.0.tokenizer();
        let visible = matches!(part, Part::Final | Part::Commentary);
        (visible && !tokenizer.is_special(token.id)).then(|| self.any(token))
    }

    /// Of any token.
    pub fn any(&self, token: &gpt_oss_mlx::Token) -> TokenLogprobs {
        let tokenizer = self.0.tokenizer();
        let top = token.logprobs.iter();
        TokenLogprobs {
            token: one(tokenizer, token.id, token.logprob.unwrap_or(0.0)),
            top_logprobs: top
                .map(|TokenLogprob { id, logprob, .. }| one(tokenizer, *id, *logprob))
                .collect(),
        }
    }
}

/// What the API writes for the logarithm of 0, which JSON does not know.
const IMPOSSIBLE: f32 = -9999.0;

fn one(tokenizer: &Tokenizer, id: u32, logprob: f32) -> OneLogprob {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default().to_vec();
    let token = String::from_utf8_lossy(&bytes).into_owned();
    OneLogprob { token, logprob: logprob.max(IMPOSSIBLE), bytes }
}
