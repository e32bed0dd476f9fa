//! The field `input`: a text, or items that become messages.

use gpt_oss_mlx::chat::{AssistantMessage, Message, ToolCall};
use serde_json::Value;

use crate::errors::ApiError;
use crate::fields::{Fields, wrong};

/// Messages, and for each the item that it comes from, or the last one of several.
pub type Messages = (Vec<Message>, Vec<Option<usize>>);

/// Reads the field `input`.
pub fn messages(input: &Value) -> Result<Messages, ApiError> {
    let items = match input {
        Value::String(text) => return Ok((vec![Message::user(text)], vec![None])),
        Value::Array(items) => items,
        other => return Err(wrong("input", other, "a string or a list of items")),
    };
    let mut reader = Reader::default();
    for (i, item) in items.iter().enumerate() {
        reader.item(i, Fields::of(item, &format!("input[{i}]"))?)?;
    }
    reader.flush();
    Ok((reader.messages, reader.places))
}

/// The model's reasoning, remarks and calls are items of their own, and one message here.
#[derive(Default)]
struct Reader {
    messages: Vec<Message>,
    places: Vec<Option<usize>>,
    /// What the model said, as far as it is known.
    turn: AssistantMessage,
    turn_place: usize,
}

impl Reader {
    fn item(&mut self, i: usize, fields: Fields<'_>) -> Result<(), ApiError> {
        let kind = fields.string("type")?;
        match kind {
            Some("message") | None => self.message(i, &fields),
            Some("reasoning") => {
                if self.turn.content.is_some() || !self.turn.tool_calls.is_empty() {
                    self.flush();
                }
                let text = match content(&fields, "content")? {
                    text if text.is_empty() => content(&fields, "summary")?,
                    text => text,
                };
                // Of one whose text is encrypted nothing can be read.
                if !text.is_empty() {
                    join(&mut self.turn.analysis, text);
                    self.turn_place = i;
                }
                Ok(())
            }
            Some("function_call") => {
                let text = |name| {
                    fields.required(name)?;
                    fields.string(name).map(Option::unwrap_or_default)
                };
                let call = ToolCall::new(text("call_id")?, text("name")?, text("arguments")?);
                self.turn.tool_calls.push(call);
                self.turn_place = i;
                Ok(())
            }
            Some("function_call_output") => {
                fields.required("call_id")?;
                fields.required("output")?;
                let id = fields.string("call_id")?.unwrap_or_default();
                self.push(i, Message::tool_result(id, content(&fields, "output")?));
                Ok(())
            }
            Some(other) => {
                let reason = format!("is `{other}`, which cannot be read here");
                Err(ApiError::unsupported(fields.path("type"), reason))
            }
        }
    }

    fn message(&mut self, i: usize, fields: &Fields<'_>) -> Result<(), ApiError> {
        fields.required("role")?;
        let role = fields.one_of("role", &["system", "developer", "user", "assistant"])?;
        fields.required("content")?;
        let text = content(fields, "content")?;
        match role {
            Some("system") => self.push(i, Message::system(text)),
            Some("developer") => self.push(i, Message::developer(text)),
            Some("assistant") => {
                if !self.turn.tool_calls.is_empty() {
                    self.flush();
                }
                join(&mut self.turn.content, text);
                self.turn_place = i;
            }
            _ => self.push(i, Message::user(text)),
        }
        Ok(())
    }

    fn push(&mut self, i: usize, message: Message) {
        self.flush();
        self.messages.push(message);
        self.places.push(Some(i));
    }

    /// Nothing more belongs to the model's turn.
    fn flush(&mut self) {
        let turn = std::mem::take(&mut self.turn);
        if turn != AssistantMessage::default() {
            self.messages.push(turn.into());
            self.places.push(Some(self.turn_place));
        }
    }
}

fn join(field: &mut Option<String>, text: String) {
    match field {
        Some(before) => {
            before.push_str("\n\n");
            before.push_str(&text);
        }
        None => *field = Some(text),
    }
}

/// A field that is text or a list of parts that are text.
fn content(fields: &Fields<'_>, name: &str) -> Result<String, ApiError> {
    let at = fields.path(name);
    match fields.get(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for (i, value) in parts.iter().enumerate() {
                let at = format!("{at}[{i}]");
                let part = Fields::of(value, &at)?;
                let field = match part.string("type")? {
                    Some(
                        "input_text" | "output_text" | "reasoning_text" | "summary_text" | "text",
                    ) => "text",
                    Some("refusal") => "refusal",
                    other => {
                        let reason =
                            format!("is `{}`; only text can be read", other.unwrap_or("missing"));
                        return Err(ApiError::unsupported(part.path("type"), reason));
                    }
                };
                part.required(field)?;
                text.push_str(part.string(field)?.unwrap_or_default());
            }
            Ok(text)
        }
        Some(other) => Err(wrong(&at, other, "a string or a list of parts")),
    }
}
