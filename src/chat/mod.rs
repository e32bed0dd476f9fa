//! Conversations: messages, the model's chat template, and the channels of its answer.
//!
//! GPT-OSS speaks the Harmony format: every message has a header (`<|start|>`, a role, and for
//! the model's own messages a channel) and a body, marked off by control tokens. [`template`]
//! writes a conversation in that format, [`harmony`] takes the model's turn apart into [`events`].

pub mod events;
mod filters;
mod guard;
pub mod harmony;
mod header;
mod json;
mod limits;
mod protect;
pub mod template;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One message of a conversation, in the shape of OpenAI's chat API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Who speaks: `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said: a string, or what a tool returned. Null is left out when rendering, so that
    /// a template may ask whether the field is there.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub content: Value,
    /// Whatever else the template uses, such as `thinking`, `tool_calls` or `name`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of `role` with the text or value `content`.
    pub fn new(role: impl Into<String>, content: impl Into<Value>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// The same message with the field `name` set.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.extra.insert(name.into(), value.into());
        self
    }
}
