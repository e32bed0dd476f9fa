//! The grammar of a turn: one Lark grammar for the Harmony format, which refers to one grammar
//! each for the answer and for the arguments of every tool.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Write;

use serde_json::{Value, json};

use super::spec::{ConstraintSpec, Enforce, ResponseFormat, ToolChoice};
use crate::chat::{BuiltinTool, Tool};
use crate::error::{Error, Result};

/// The part that is none of the caller's.
pub(super) const FORMAT: &str = "the Harmony format";
const RESPONSE_FORMAT: &str = "response_format";

/// The grammar of a turn, not compiled.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    /// Lark source with references to the parts.
    pub(super) lark: String,
    pub(super) parts: Vec<Part<'a>>,
}

/// What the caller gave for one part of a turn.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// How the Lark source refers to it, without `@`.
    pub(super) name: String,
    /// How an error calls it.
    pub(super) title: String,
    pub(super) source: Source<'a>,
}

/// A grammar as the caller wrote it.
#[derive(Debug, Clone)]
pub(super) enum Source<'a> {
    JsonSchema(Cow<'a, Value>),
    Regex(&'a str),
    Lark(&'a str),
}

impl<'a> From<&'a ResponseFormat> for Source<'a> {
    fn from(format: &'a ResponseFormat) -> Self {
        match format {
            ResponseFormat::JsonSchema(schema) => Self::JsonSchema(Cow::Borrowed(schema)),
            ResponseFormat::Regex(regex) => Self::Regex(regex),
            ResponseFormat::Lark(lark) => Self::Lark(lark),
        }
    }
}

/// The messages before the last, in the channels that `{notes}` lists. A text ends at the first
/// control token, since no text can have one.
const MESSAGES: &str = r#"
note: <|channel|> ({notes}) <|message|> text <|end|> <|start|> "assistant"
text: /(?s:.*)/
json: " "? <|constrain|> "json"
"#;

impl<'a> Turn<'a> {
    pub(super) fn new(spec: &'a ConstraintSpec) -> Result<Self> {
        let tools = chosen(spec)?;
        let may_answer = matches!(spec.tool_choice, ToolChoice::Auto | ToolChoice::None);
        let notes = if tools.is_empty() { r#""analysis""# } else { r#""analysis" | "commentary""# };
        let mut lark = MESSAGES.replace("{notes}", notes);
        let mut parts = Vec::new();
        let mut last = Vec::new();
        if may_answer {
            last.push("answer".to_owned());
            let format = spec.response_format.as_ref();
            match format.filter(|_| spec.enforce == Enforce::Everything) {
                Some(format) => {
                    let json =
                        if matches!(format, ResponseFormat::JsonSchema(_)) { "json?" } else { "" };
                    let head = format!(r#"<|channel|> "final" {json} <|message|>"#);
                    line(&mut lark, format_args!("answer: {head} @format <|return|>"));
                    parts.push(Part {
                        name: "format".into(),
                        title: RESPONSE_FORMAT.into(),
                        source: format.into(),
                    });
                }
                None => {
                    let head = r#"<|channel|> "final" <|message|>"#;
                    line(&mut lark, format_args!("answer: {head} text <|return|>"));
                }
            }
        }
        for (i, tool) in tools.into_iter().enumerate() {
            let name = format!("tool_{i}");
            last.push(name.clone());
            tool.write(&name, &mut lark);
            if let Some(schema) = tool.arguments {
                parts.push(Part {
                    title: format!("tool `{}`", tool.name),
                    name,
                    source: Source::JsonSchema(schema),
                });
            }
        }
        line(&mut lark, format_args!("start: note* ({})", last.join(" | ")));
        Ok(Self { lark, parts })
    }
}

/// A tool as it is called.
#[derive(Debug)]
struct Callable<'a> {
    name: &'a str,
    /// Known to the format itself, and not in the namespace `functions`.
    builtin: bool,
    /// The JSON Schema of the arguments; None for any text, such as code.
    arguments: Option<Cow<'a, Value>>,
}

impl<'a> From<&'a Tool> for Callable<'a> {
    fn from(tool: &'a Tool) -> Self {
        let arguments = match &tool.parameters {
            None => Cow::Owned(json!({"type": "object", "additionalProperties": false})),
            // Arguments are an object, whether the schema says so or not.
            Some(Value::Object(fields)) if !fields.contains_key("type") => {
                let mut fields = fields.clone();
                fields.insert("type".into(), "object".into());
                Cow::Owned(Value::Object(fields))
            }
            Some(schema) => Cow::Borrowed(schema),
        };
        Self { name: &tool.name, builtin: false, arguments: Some(arguments) }
    }
}

impl Callable<'_> {
    /// The rule of a call.
    fn write(&self, name: &str, lark: &mut String) {
        let namespace = if self.builtin { "" } else { "functions." };
        let to = format!("to={namespace}{}", self.name);
        // Functions are called in `commentary`; built-in tools in `analysis`, too.
        let channels: &[&str] =
            if self.builtin { &["analysis", "commentary"] } else { &["commentary"] };
        let (kind, text) = match self.arguments {
            Some(_) => (r#"(json | " json")?"#, format!("@{name}")),
            None => (r#"" code"?"#, "text".into()),
        };
        let mut heads = Vec::new();
        for channel in channels {
            heads.push(format!(r#"<|channel|> "{channel} {to}""#));
            heads.push(format!(r#"" {to}" <|channel|> "{channel}""#));
        }
        let heads = heads.join(" | ");
        line(lark, format_args!("{name}: ({heads}) {kind} <|message|> {text} <|call|>"));
    }
}

fn line(lark: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(lark, "{text}");
}

/// The tools that may be called.
fn chosen(spec: &ConstraintSpec) -> Result<Vec<Callable<'_>>> {
    let fail = |part: String, message: &str| Error::Grammar { part, message: message.into() };
    let mut offered: Vec<_> = spec.tools.iter().map(Callable::from).collect();
    for tool in BuiltinTool::ALL.into_iter().filter(|tool| spec.builtin_tools.contains(tool)) {
        offered.extend(tool.functions().into_iter().map(|(name, arguments)| Callable {
            name,
            builtin: true,
            arguments: arguments.map(Cow::Owned),
        }));
    }
    let mut names = HashSet::new();
    for tool in &offered {
        let title = || format!("tool `{}`", tool.name);
        let part = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if tool.name.is_empty() || !tool.name.chars().all(part) {
            let message = "a name in a header consists of letters, digits, `_`, `-` and `.`";
            return Err(fail(title(), message));
        }
        if tool.name.len() > NAME_LIMIT {
            return Err(fail(title(), "the name is too long for a header"));
        }
        if !names.insert((tool.builtin, tool.name)) {
            return Err(fail(title(), "is offered twice"));
        }
    }
    let choice = || "tool_choice".to_owned();
    match &spec.tool_choice {
        ToolChoice::Auto => {}
        ToolChoice::None => offered.clear(),
        ToolChoice::Required if offered.is_empty() => {
            return Err(fail(choice(), "a call is required, and no tool is offered"));
        }
        ToolChoice::Required => {}
        ToolChoice::Function(name) => {
            offered.retain(|tool| tool.name == name);
            // An app's own function comes before the model's tool of that name.
            offered.truncate(1);
            if offered.is_empty() {
                return Err(fail(choice(), &format!("the tool `{name}` is not offered")));
            }
        }
    }
    Ok(offered)
}

/// Bytes of a tool's name at most, so that headers remain short.
const NAME_LIMIT: usize = 256;

/// A JSON Schema whose options for llguidance are this library's own.
pub(super) fn with_options(schema: &Value, options: Value) -> Value {
    let mut schema = match schema {
        // `true` is any JSON; `false`, none, is left to llguidance to refuse.
        Value::Bool(true) => Value::Object(serde_json::Map::new()),
        schema => schema.clone(),
    };
    if let Value::Object(fields) = &mut schema {
        fields.insert("x-guidance".into(), options);
    }
    schema
}
