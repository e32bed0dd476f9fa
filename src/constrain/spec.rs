//! What a turn must keep to.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What the model's turn must keep to; see the [module](super).
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ConstraintSpec {
    /// The form of the answer in the final channel; None is any text.
    pub response_format: Option<ResponseFormat>,
    /// The tools that the prompt offers.
    pub tools: Vec<Tool>,
    /// Which of them may or must be called.
    pub tool_choice: ToolChoice,
    /// How much of this is enforced.
    pub enforce: Enforce,
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
    /// The model calls the tool of this name.
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

/// A tool that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub(super) name: String,
    /// Known to the format itself, and not in the namespace `functions`.
    pub(super) builtin: bool,
    pub(super) arguments: Arguments,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Arguments {
    Json(Value),
    /// Any text, such as code.
    Text,
}

impl Tool {
    /// A function of the app, called as `functions.` and its name, with the JSON Schema of its
    /// arguments.
    pub fn function(name: impl Into<String>, parameters: Value) -> Self {
        Self { name: name.into(), builtin: false, arguments: Arguments::Json(parameters) }
    }

    /// A tool that the format itself knows, such as `browser.search` or `python`, with the JSON
    /// Schema of its arguments; None where these are any text.
    pub fn builtin(recipient: impl Into<String>, parameters: Option<Value>) -> Self {
        let arguments = parameters.map_or(Arguments::Text, Arguments::Json);
        Self { name: recipient.into(), builtin: true, arguments }
    }

    /// A function as OpenAI's API describes it: `{"type": "function", "function": {"name": …,
    /// "parameters": …}}`, or the inner object alone. A function without `parameters` takes an
    /// empty object.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no name.
    pub fn from_openai(tool: &Value) -> Result<Self> {
        let function = tool.get("function").unwrap_or(tool);
        let name = function.get("name").and_then(Value::as_str);
        let name = name.ok_or_else(|| Error::argument("tools", "a tool has no `name`"))?;
        let parameters = function.get("parameters").filter(|schema| !schema.is_null());
        Ok(Self::function(name, parameters.cloned().unwrap_or_else(no_parameters)))
    }
}

fn no_parameters() -> Value {
    let mut schema = Map::new();
    schema.insert("type".into(), "object".into());
    schema.insert("additionalProperties".into(), false.into());
    schema.into()
}
