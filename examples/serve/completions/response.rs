//! The response of `POST /v1/completions`, whole and in chunks, which have the same shape.

use std::collections::BTreeMap;

use gpt_oss_mlx::FinishReason;
use gpt_oss_mlx::engine::{EngineEvent, TokenEvent};
use serde::Serialize;

use crate::chat::Named;
use crate::errors::ApiError;
use crate::generate::Streaming;
use crate::logprobs::Spelling;
use crate::sse::{DONE, Encoder, Frame};
use crate::usage::Usage;

/// An answer or a piece of one.
#[derive(Debug, Serialize)]
pub struct Completion<'a> {
    #[serde(flatten)]
    named: &'a Named,
    choices: &'a [Choice<'a>],
    /// Of a chunk: null where usage comes later, missing where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Debug, Serialize)]
struct Choice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<&'a Logprobs>,
    finish_reason: Option<&'static str>,
}

/// Lists with an entry for each token.
#[derive(Debug, Default, Serialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where the token's text begins in the answer, in characters.
    text_offset: Vec<usize>,
}

/// Collects text and tokens until they are given out.
#[derive(Debug)]
pub struct Answer {
    named: Named,
    spelling: Option<Spelling>,
    text: String,
    logprobs: Logprobs,
    /// Where the next token's text begins.
    offset: usize,
    end: Option<(FinishReason, Usage)>,
}

impl Answer {
    /// An answer, with log-probabilities if there is a spelling for them.
    pub fn new(named: Named, spelling: Option<Spelling>) -> Self {
        let (text, logprobs) = (String::new(), Logprobs::default());
        Self { named, spelling, text, logprobs, offset: 0, end: None }
    }

    pub fn push(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Text(text) => self.text.push_str(&text),
            EngineEvent::Token(token) => self.token(&token),
            EngineEvent::Finished { reason, usage } => self.end = Some((reason, (&usage).into())),
            _ => {}
        }
    }

    fn token(&mut self, event: &TokenEvent) {
        let Some(spelling) = &self.spelling else { return };
        let spelled = spelling.any(&event.token);
        let top = spelled.top_logprobs.into_iter().map(|top| (top.token, top.logprob));
        self.logprobs.text_offset.push(self.offset);
        self.offset += spelled.token.token.chars().count();
        self.logprobs.token_logprobs.push(spelled.token.logprob);
        self.logprobs.top_logprobs.push(top.collect());
        self.logprobs.tokens.push(spelled.token.token);
    }

    /// The JSON of the response; None when it did not come to an end of its own.
    pub fn completion(&self) -> Option<String> {
        let (reason, usage) = self.end.as_ref()?;
        let reason = finish_reason(*reason)?;
        Some(self.piece(Some(reason), Some(Some(*usage))).data)
    }

    fn piece(&self, finish_reason: Option<&'static str>, usage: Option<Option<Usage>>) -> Frame {
        let logprobs = self.spelling.is_some().then_some(&self.logprobs);
        let choice = Choice { index: 0, text: &self.text, logprobs, finish_reason };
        Frame::json(&Completion { named: &self.named, choices: &[choice], usage })
    }
}

/// None for an end that the API has no name for.
fn finish_reason(reason: FinishReason) -> Option<&'static str> {
    match reason {
        FinishReason::Stop => Some("stop"),
        FinishReason::Length => Some("length"),
        _ => None,
    }
}

/// Gives out what an answer collects, piece by piece.
#[derive(Debug)]
pub struct CompletionStream {
    answer: Answer,
    include_usage: bool,
}

impl CompletionStream {
    pub fn new(answer: Answer, streaming: Streaming) -> Self {
        Self { answer, include_usage: streaming.include_usage }
    }
}

impl Encoder for CompletionStream {
    fn start(&mut self) -> Vec<Frame> {
        Vec::new()
    }

    fn push(&mut self, event: EngineEvent) -> Vec<Frame> {
        let text = matches!(event, EngineEvent::Text(_));
        self.answer.push(event);
        let unknown = self.include_usage.then_some(None);
        let Some((reason, usage)) = self.answer.end else {
            if !text {
                return Vec::new();
            }
            let frame = self.answer.piece(None, unknown);
            self.answer.text.clear();
            self.answer.logprobs = Logprobs::default();
            return vec![frame];
        };
        let Some(reason) = finish_reason(reason) else { return self.fail(&ApiError::stopping()) };
        let mut frames = vec![self.answer.piece(Some(reason), unknown)];
        if self.include_usage {
            let (named, usage) = (&self.answer.named, Some(Some(usage)));
            frames.push(Frame::json(&Completion { named, choices: &[], usage }));
        }
        frames.push(DONE.into());
        frames
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::json(&error.body())]
    }
}
