//! What a turn must keep to.

use serde_json::Value;

use crate::chat::{BuiltinTool, Conversation, Tool};

/// What the model's turn must keep to; see the [module](super).
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ConstraintSpec {
    /// The form of the answer in the final channel; None is any text.
    pub response_format: Option<ResponseFormat>,
    /// The functions that the prompt offers, called as `functions.` and their name. A function
    /// without parameters takes an empty object.
    pub tools: Vec<Tool>,
    /// The model's own tools that the prompt offers. Their arguments are what the Harmony format
    /// says; those of `python` are any text.
    pub builtin_tools: Vec<BuiltinTool>,
    /// Which of them may or must be called.
    pub tool_choice: ToolChoice,
    /// How much of this is enforced.
    pub enforce: Enforce,
}

impl ConstraintSpec {
    /// Calls of what a conversation offers, and any answer.
    pub fn for_conversation(conversation: &Conversation) -> Self {
        Self {
            tools: conversation.tools.clone(),
            builtin_tools: conversation.builtin_tools.clone(),
            ..Self::default()
        }
    }
}

/// How much of a [`ConstraintSpec`] is enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Enforce {
    /// Nothing: the model is free.
    Off,
    /// Headers and calls of tools; the answer in the final channel is any text.
    Tools,
    /// Everything.
    #[default]
    Everything,
}

/// Which tools may or must be called.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum ToolChoice {
    /// The model calls a tool or answers.
    #[default]
    Auto,
    /// The model answers.
    None,
    /// The model calls one of the tools.
    Required,
    /// The model calls the tool of this name: a function's, or `browser.search`, `browser.open`,
    /// `browser.find` or `python`.
    Function(String),
}

/// The form of an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ResponseFormat {
    /// JSON that is valid by a JSON Schema; `{}` allows any JSON.
    JsonSchema(Value),
    /// Text that a regular expression matches as a whole, in the syntax of the crate `regex`.
    Regex(String),
    /// Text by a Lark grammar, in [llguidance's
    /// dialect](https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md), without
    /// control tokens.
    Lark(String),
}
