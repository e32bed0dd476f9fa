//! The chunks of `POST /v1/chat/completions` with `"stream": true`.

use gpt_oss_mlx::chat::events::{ChatEvent, EndReason};
use gpt_oss_mlx::engine::EngineEvent;
use serde::Serialize;

use super::Named;
use super::deltas::{Delta, Deltas};
use super::response::Logprobs;
use crate::errors::ApiError;
use crate::generate::Streaming;
use crate::logprobs::{Spelling, TokenLogprobs};
use crate::sse::{DONE, Encoder, Frame};
use crate::usage::Usage;

#[derive(Debug, Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    named: &'a Named,
    choices: &'a [ChunkChoice<'a>],
    /// Only where usage was asked for: null in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Debug, Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: ChunkDelta<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct ChunkDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta<'a>; 1]>,
}

#[derive(Debug, Serialize)]
struct CallDelta<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta<'a>,
}

#[derive(Debug, Serialize)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

/// Makes chunks of a turn's events.
#[derive(Debug)]
pub struct ChatStream {
    named: Named,
    include_usage: bool,
    deltas: Deltas,
    spelling: Option<Spelling>,
    /// Of tokens whose text has not come yet.
    logprobs: Vec<TokenLogprobs>,
    end: Option<EndReason>,
}

impl ChatStream {
    /// A stream, with log-probabilities if there is a spelling for them.
    pub fn new(named: Named, streaming: Streaming, spelling: Option<Spelling>) -> Self {
        Self {
            named: Named { object: "chat.completion.chunk", ..named },
            include_usage: streaming.include_usage,
            deltas: Deltas::default(),
            spelling,
            logprobs: Vec::new(),
            end: None,
        }
    }

    fn chunk(&self, delta: ChunkDelta<'_>, finish_reason: Option<&'static str>) -> Frame {
        let logprobs = (!self.logprobs.is_empty())
            .then_some(Logprobs { content: &self.logprobs, refusal: None });
        let choice = ChunkChoice { index: 0, delta, logprobs, finish_reason };
        let usage = self.include_usage.then_some(None);
        Frame::json(&Chunk { named: &self.named, choices: &[choice], usage })
    }

    fn delta(&mut self, delta: &Delta) -> Frame {
        let delta = match delta {
            Delta::Reasoning(text) => {
                return self.without_logprobs(ChunkDelta {
                    reasoning_content: Some(text),
                    ..ChunkDelta::default()
                });
            }
            Delta::Content(text) => {
                let delta = ChunkDelta { content: Some(text), ..ChunkDelta::default() };
                let frame = self.chunk(delta, None);
                self.logprobs.clear();
                return frame;
            }
            Delta::Call { index, id, name } => CallDelta {
                index: *index,
                id: Some(id),
                r#type: Some("function"),
                function: FunctionDelta { name: Some(name), arguments: "" },
            },
            Delta::Arguments { index, text } => CallDelta {
                index: *index,
                id: None,
                r#type: None,
                function: FunctionDelta { name: None, arguments: text },
            },
        };
        self.without_logprobs(ChunkDelta { tool_calls: Some([delta]), ..ChunkDelta::default() })
    }

    /// A chunk of what the log-probabilities are not about.
    fn without_logprobs(&mut self, delta: ChunkDelta<'_>) -> Frame {
        let waiting = std::mem::take(&mut self.logprobs);
        let frame = self.chunk(delta, None);
        self.logprobs = waiting;
        frame
    }
}

impl Encoder for ChatStream {
    fn start(&mut self) -> Vec<Frame> {
        let (role, content) = (Some("assistant"), Some(""));
        vec![self.chunk(ChunkDelta { role, content, ..ChunkDelta::default() }, None)]
    }

    fn push(&mut self, event: EngineEvent) -> Vec<Frame> {
        match event {
            EngineEvent::Chat(ChatEvent::TurnEnd { reason }) => {
                self.end = Some(reason);
                Vec::new()
            }
            EngineEvent::Chat(event) => {
                let delta = self.deltas.push(event);
                delta.map(|delta| self.delta(&delta)).into_iter().collect()
            }
            EngineEvent::Token(token) => {
                let token = self.spelling.as_ref().and_then(|spelling| spelling.visible(&token));
                self.logprobs.extend(token);
                Vec::new()
            }
            EngineEvent::Finished { usage, .. } => {
                let Some(end) = self.end.filter(|end| *end != EndReason::Cancelled) else {
                    return self.fail(&ApiError::stopping());
                };
                let mut frames = vec![self.chunk(ChunkDelta::default(), Some(end.as_str()))];
                if self.include_usage {
                    let usage = Some(Some((&usage).into()));
                    frames.push(Frame::json(&Chunk { named: &self.named, choices: &[], usage }));
                }
                frames.push(DONE.into());
                frames
            }
            _ => Vec::new(),
        }
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::json(&error.body())]
    }
}
