//! Conversations as JSON, in the shape of OpenAI's chat completions API. Reading goes through
//! [`Value`], so that an error can say in which message and field it is.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::conversation::{
    AssistantMessage, BuiltinTool, Conversation, Message, ReasoningEffort, Role, ToolCall,
    ToolMessage,
};
use super::tools::Tool;
use crate::error::{Error, Result};

/// Names under which reasoning is found; the first is the one that is written.
const ANALYSIS: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

impl Conversation {
    /// Reads a conversation from the JSON of a chat completions request and validates it. Beside
    /// OpenAI's fields `messages`, `tools` and `reasoning_effort` it takes `builtin_tools` (a list
    /// of `browser` and `python`), `date` and `model_identity`; other fields of the body are left
    /// alone.
    ///
    /// Content may be a string, a list of text parts, or null. Reasoning is read from
    /// `reasoning_content`, `reasoning` or `thinking`. Arguments of a call may be an object, a
    /// tool's result any JSON; both are then kept as JSON text.
    ///
    /// # Errors
    /// [`Error::Conversation`] naming the first field that is wrong.
    pub fn from_json(value: &Value) -> Result<Self> {
        let body = object(value, "conversation")?;
        let list = |name: &str| match body.get(name) {
            None | Some(Value::Null) => Ok([].as_slice()),
            Some(Value::Array(items)) => Ok(items.as_slice()),
            Some(other) => {
                Err(Error::conversation(name, format!("is {}, not a list", kind(other))))
            }
        };
        let messages = indexed(list("messages")?, "messages", message)?;
        let tools = indexed(list("tools")?, "tools", tool)?;
        let builtin_tools = indexed(list("builtin_tools")?, "builtin_tools", |value, at| {
            named(value, at, &BuiltinTool::ALL, BuiltinTool::as_str)
        })?;
        let effort = field(body, "reasoning_effort");
        let reasoning_effort = effort
            .map(|v| named(v, "reasoning_effort", &ReasoningEffort::ALL, ReasoningEffort::as_str))
            .transpose()?;
        let date = optional_string(body, "date", "")?;
        let model_identity = optional_string(body, "model_identity", "")?;
        let conversation =
            Self { messages, tools, builtin_tools, reasoning_effort, date, model_identity };
        conversation.validate()?;
        Ok(conversation)
    }

    /// The conversation in the shape that [`Conversation::from_json`] reads.
    pub fn to_json(&self) -> Value {
        let mut body = Map::new();
        body.insert("messages".into(), self.messages.iter().map(message_json).collect());
        if !self.tools.is_empty() {
            body.insert("tools".into(), self.tools.iter().map(tool_json).collect());
        }
        if !self.builtin_tools.is_empty() {
            let names = self.builtin_tools.iter().map(|tool| Value::from(tool.as_str()));
            body.insert("builtin_tools".into(), names.collect());
        }
        let effort = self.reasoning_effort.map(ReasoningEffort::as_str);
        for (name, text) in [
            ("reasoning_effort", effort),
            ("date", self.date.as_deref()),
            ("model_identity", self.model_identity.as_deref()),
        ] {
            body.extend(text.map(|text| (name.to_owned(), text.into())));
        }
        body.into()
    }
}

/// `read` for every item of a list, with its place.
fn indexed<T>(
    items: &[Value],
    name: &str,
    read: impl Fn(&Value, &str) -> Result<T>,
) -> Result<Vec<T>> {
    items.iter().enumerate().map(|(i, item)| read(item, &format!("{name}[{i}]"))).collect()
}

fn message(value: &Value, at: &str) -> Result<Message> {
    let fields = object(value, at)?;
    let role = required(fields, "role", at)?;
    let content = || text(fields, at).map(Option::unwrap_or_default);
    Ok(match named(role, &join(at, "role"), &Role::ALL, Role::as_str)? {
        Role::System => Message::System(content()?),
        Role::Developer => Message::Developer(content()?),
        Role::User => Message::User(content()?),
        Role::Assistant => Message::Assistant(assistant(fields, at)?),
        Role::Tool => Message::Tool(ToolMessage {
            tool_call_id: optional_string(fields, "tool_call_id", at)?.unwrap_or_default(),
            name: optional_string(fields, "name", at)?,
            content: result(fields, at)?,
        }),
    })
}

fn assistant(fields: &Map<String, Value>, at: &str) -> Result<AssistantMessage> {
    if field(fields, "function_call").is_some() {
        let reason = "is the old form of `tool_calls`, which is not read";
        return Err(Error::conversation(join(at, "function_call"), reason));
    }
    let mut analysis = None;
    for name in ANALYSIS {
        analysis = analysis.or(optional_string(fields, name, at)?);
    }
    let calls = match field(fields, "tool_calls") {
        None => &[],
        Some(Value::Array(calls)) => calls.as_slice(),
        Some(other) => {
            let reason = format!("is {}, not a list", kind(other));
            return Err(Error::conversation(join(at, "tool_calls"), reason));
        }
    };
    let content = text(fields, at)?;
    // What the model said instead of an answer is what it said.
    let refusal = optional_string(fields, "refusal", at)?;
    Ok(AssistantMessage {
        analysis,
        content: content.or(refusal),
        tool_calls: indexed(calls, &join(at, "tool_calls"), call)?,
    })
}

fn call(value: &Value, at: &str) -> Result<ToolCall> {
    let fields = object(value, at)?;
    check_type(fields, at)?;
    let id = optional_string(fields, "id", at)?.unwrap_or_default();
    let function = required(fields, "function", at)?;
    let at = join(at, "function");
    let fields = object(function, &at)?;
    let name = string(required(fields, "name", &at)?, &join(&at, "name"))?;
    let arguments = match field(fields, "arguments") {
        None => "{}".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Object(map)) => json!(map).to_string(),
        Some(other) => {
            let reason = format!("is {}, neither a string nor an object", kind(other));
            return Err(Error::conversation(join(&at, "arguments"), reason));
        }
    };
    Ok(ToolCall { id, name, arguments })
}

fn tool(value: &Value, at: &str) -> Result<Tool> {
    let fields = object(value, at)?;
    check_type(fields, at)?;
    let function = required(fields, "function", at)?;
    let at = join(at, "function");
    let fields = object(function, &at)?;
    let strict = match field(fields, "strict") {
        None => None,
        Some(Value::Bool(strict)) => Some(*strict),
        Some(other) => {
            let reason = format!("is {}, not true or false", kind(other));
            return Err(Error::conversation(join(&at, "strict"), reason));
        }
    };
    Ok(Tool {
        name: string(required(fields, "name", &at)?, &join(&at, "name"))?,
        description: optional_string(fields, "description", &at)?,
        parameters: field(fields, "parameters").cloned(),
        strict,
    })
}

/// `type` is `function` wherever it is given.
fn check_type(fields: &Map<String, Value>, at: &str) -> Result<()> {
    match field(fields, "type") {
        Some(kind) if kind != "function" => {
            Err(Error::conversation(join(at, "type"), format!("is {kind}, not \"function\"")))
        }
        _ => Ok(()),
    }
}

/// The field `content` of a message; the parts of a list follow each other.
fn text(fields: &Map<String, Value>, at: &str) -> Result<Option<String>> {
    let at = join(at, "content");
    match field(fields, "content") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) => Ok(Some(indexed(parts, &at, part)?.concat())),
        Some(other) => {
            let reason = format!("is {}, neither a string nor a list of parts", kind(other));
            Err(Error::conversation(at, reason))
        }
    }
}

fn part(value: &Value, at: &str) -> Result<String> {
    let fields = object(value, at)?;
    let name = match field(fields, "type").and_then(Value::as_str) {
        Some("text" | "input_text" | "output_text") => "text",
        Some("refusal") => "refusal",
        other => {
            let reason = format!("is `{}`; only text can be read", other.unwrap_or("missing"));
            return Err(Error::conversation(join(at, "type"), reason));
        }
    };
    string(required(fields, name, at)?, &join(at, name))
}

/// A tool's result: text, or any JSON.
fn result(fields: &Map<String, Value>, at: &str) -> Result<String> {
    let is_part = |item: &Value| item.get("type").is_some_and(Value::is_string);
    match field(fields, "content") {
        Some(Value::Array(items)) if items.is_empty() || !items.iter().all(is_part) => {
            Ok(json!(items).to_string())
        }
        None | Some(Value::String(_) | Value::Array(_)) => {
            text(fields, at).map(Option::unwrap_or_default)
        }
        Some(other) => Ok(other.to_string()),
    }
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

/// A field that is there and not null.
fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

fn required<'a>(fields: &'a Map<String, Value>, name: &str, at: &str) -> Result<&'a Value> {
    field(fields, name).ok_or_else(|| Error::conversation(join(at, name), "is missing"))
}

fn object<'a>(value: &'a Value, at: &str) -> Result<&'a Map<String, Value>> {
    value
        .as_object()
        .ok_or_else(|| Error::conversation(at, format!("is {}, not an object", kind(value))))
}

fn string(value: &Value, at: &str) -> Result<String> {
    let wrong = || Error::conversation(at, format!("is {}, not a string", kind(value)));
    value.as_str().map(str::to_owned).ok_or_else(wrong)
}

fn optional_string(fields: &Map<String, Value>, name: &str, at: &str) -> Result<Option<String>> {
    field(fields, name).map(|value| string(value, &join(at, name))).transpose()
}

/// The one of `all` with that name.
fn named<T: Copy>(value: &Value, at: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T> {
    let text = string(value, at)?;
    all.iter().copied().find(|&one| name(one) == text).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|&one| name(one)).collect();
        Error::conversation(at, format!("is `{text}`, not one of {}", names.join(", ")))
    })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn message_json(message: &Message) -> Value {
    let mut fields = Map::new();
    fields.insert("role".into(), message.role().as_str().into());
    match message {
        Message::System(text) | Message::Developer(text) | Message::User(text) => {
            fields.insert("content".into(), text.as_str().into());
        }
        Message::Assistant(AssistantMessage { analysis, content, tool_calls }) => {
            let [name, ..] = ANALYSIS;
            fields.extend(analysis.as_ref().map(|text| (name.to_owned(), text.as_str().into())));
            fields.insert("content".into(), content.as_deref().into());
            if !tool_calls.is_empty() {
                fields.insert("tool_calls".into(), tool_calls.iter().map(call_json).collect());
            }
        }
        Message::Tool(ToolMessage { tool_call_id, name, content }) => {
            if !tool_call_id.is_empty() {
                fields.insert("tool_call_id".into(), tool_call_id.as_str().into());
            }
            fields.extend(name.as_ref().map(|name| ("name".to_owned(), name.as_str().into())));
            fields.insert("content".into(), content.as_str().into());
        }
    }
    fields.into()
}

fn call_json(call: &ToolCall) -> Value {
    let function = json!({"name": call.name, "arguments": call.arguments});
    if call.id.is_empty() {
        json!({"type": "function", "function": function})
    } else {
        json!({"id": call.id, "type": "function", "function": function})
    }
}

fn tool_json(tool: &Tool) -> Value {
    let mut function = Map::new();
    function.insert("name".into(), tool.name.as_str().into());
    let description = tool.description.as_ref().map(|text| Value::from(text.as_str()));
    for (name, value) in [
        ("description", description),
        ("parameters", tool.parameters.clone()),
        ("strict", tool.strict.map(Value::from)),
    ] {
        function.extend(value.map(|value| (name.to_owned(), value)));
    }
    json!({"type": "function", "function": function})
}

impl Serialize for Conversation {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_json().serialize(to)
    }
}

impl<'de> Deserialize<'de> for Conversation {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        Self::from_json(&Value::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Reading and writing through [`Value`] for one type.
macro_rules! through_value {
    ($type:ty, $name:literal, $read:ident, $write:ident) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
                $write(self).serialize(to)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
                $read(&Value::deserialize(from)?, $name).map_err(D::Error::custom)
            }
        }
    };
}

through_value!(Message, "message", message, message_json);
through_value!(ToolCall, "tool_call", call, call_json);
through_value!(Tool, "tool", tool, tool_json);
