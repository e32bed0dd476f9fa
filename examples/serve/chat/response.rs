//! The response of `POST /v1/chat/completions`.

use gpt_oss_mlx::chat::events::{ChatEvent, EndReason};
use gpt_oss_mlx::engine::EngineEvent;
use serde::Serialize;

use super::Named;
use super::deltas::{Delta, Deltas};
use crate::logprobs::{Spelling, TokenLogprobs};
use crate::usage::Usage;

/// A whole answer.
#[derive(Debug, Serialize)]
pub struct ChatCompletion<'a> {
    #[serde(flatten)]
    named: &'a Named,
    choices: [Choice<'a>; 1],
    usage: Option<Usage>,
}

#[derive(Debug, Serialize)]
struct Choice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reasoning_content: &'a str,
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tool_calls: &'a [ToolCall],
}

/// Log-probabilities of what the user sees.
#[derive(Debug, Serialize)]
pub struct Logprobs<'a> {
    pub content: &'a [TokenLogprobs],
    pub refusal: Option<&'a [TokenLogprobs]>,
}

#[derive(Debug, Clone, Serialize)]
struct ToolCall {
    id: String,
    r#type: &'static str,
    function: Function,
}

#[derive(Debug, Clone, Serialize)]
struct Function {
    name: String,
    arguments: String,
}

/// Collects the events of a turn.
#[derive(Debug, Default)]
pub struct Answer {
    deltas: Deltas,
    reasoning: String,
    content: String,
    calls: Vec<ToolCall>,
    /// None when they were not asked for.
    logprobs: Option<(Spelling, Vec<TokenLogprobs>)>,
    end: Option<EndReason>,
    usage: Option<Usage>,
}

impl Answer {
    /// An answer, with log-probabilities if there is a spelling for them.
    pub fn new(logprobs: Option<Spelling>) -> Self {
        Self { logprobs: logprobs.map(|spelling| (spelling, Vec::new())), ..Self::default() }
    }

    pub fn push(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Chat(ChatEvent::TurnEnd { reason }) => self.end = Some(reason),
            EngineEvent::Chat(event) => match self.deltas.push(event) {
                Some(Delta::Reasoning(text)) => self.reasoning.push_str(&text),
                Some(Delta::Content(text)) => self.content.push_str(&text),
                Some(Delta::Call { id, name, .. }) => {
                    let function = Function { name, arguments: String::new() };
                    self.calls.push(ToolCall { id, r#type: "function", function });
                }
                Some(Delta::Arguments { index, text }) => {
                    if let Some(call) = self.calls.get_mut(index) {
                        call.function.arguments.push_str(&text);
                    }
                }
                None => {}
            },
            EngineEvent::Token(token) => {
                if let Some((spelling, tokens)) = &mut self.logprobs {
                    tokens.extend(spelling.visible(&token));
                }
            }
            EngineEvent::Finished { usage, .. } => self.usage = Some((&usage).into()),
            _ => {}
        }
    }

    /// The response; None when the turn did not come to an end of its own.
    pub fn completion<'a>(&'a self, named: &'a Named) -> Option<ChatCompletion<'a>> {
        let end = self.end.filter(|end| *end != EndReason::Cancelled)?;
        // A turn that was cut off has not called anything yet.
        let tool_calls =
            if end == EndReason::ToolCalls { self.calls.as_slice() } else { Default::default() };
        let content = (tool_calls.is_empty() || !self.content.is_empty()).then_some(&*self.content);
        let logprobs = self.logprobs.as_ref();
        let choice = Choice {
            index: 0,
            message: Message {
                role: "assistant",
                content,
                reasoning_content: &self.reasoning,
                refusal: None,
                tool_calls,
            },
            logprobs: logprobs.map(|(_, content)| Logprobs { content, refusal: None }),
            finish_reason: end.as_str(),
        };
        Some(ChatCompletion { named, choices: [choice], usage: self.usage })
    }
}
