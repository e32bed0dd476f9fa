//! The functions that a model may call.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::conversation::BuiltinTool;
use crate::error::{Error, Result};

/// Longest name of a tool; OpenAI's API has the same limit.
const NAME_LIMIT: usize = 64;
/// Nesting of a schema.
const DEPTH_LIMIT: usize = 64;

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Tool {
    /// Up to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model to read.
    pub description: Option<String>,
    /// A JSON Schema of type `object`; None for a function without arguments.
    pub parameters: Option<Value>,
    /// Whether the arguments have to follow the schema exactly. The prompt does not depend on it.
    pub strict: Option<bool>,
}

impl Tool {
    /// A function with arguments by a JSON Schema of type `object`.
    pub fn new(
        name: impl Into<String>,
        description: impl Into<String>,
        parameters: impl Into<Value>,
    ) -> Self {
        let (description, parameters) = (Some(description.into()), Some(parameters.into()));
        Self { name: name.into(), description, parameters, strict: None }
    }

    /// A function that takes no arguments.
    pub fn without_arguments(name: impl Into<String>, description: impl Into<String>) -> Self {
        Self { parameters: None, ..Self::new(name, description, Value::Null) }
    }

    /// The tool as templates take it. They put `//` before a description once, so that a second
    /// line needs its own, as OpenAI's renderer writes it; they do not ask whether there is one;
    /// and they add the default of an enumeration or union to a string.
    pub(super) fn for_template(&self) -> Value {
        let lines = self.description.as_deref().unwrap_or_default().lines();
        let description = lines.collect::<Vec<_>>().join("\n// ");
        let mut function = json!({"name": self.name, "description": description});
        if let (Some(fields), Some(parameters)) = (function.as_object_mut(), &self.parameters) {
            let mut parameters = parameters.clone();
            let properties = parameters.get_mut("properties").and_then(Value::as_object_mut);
            for property in properties.into_iter().flat_map(Map::values_mut) {
                spell_default(property);
            }
            fields.insert("parameters".into(), parameters);
        }
        json!({"type": "function", "function": function})
    }
}

impl BuiltinTool {
    /// What it can be called as, with the JSON Schema of the arguments as the Harmony format
    /// describes it to the model; None where these are text, which is code.
    pub(crate) fn functions(self) -> Vec<(&'static str, Option<Value>)> {
        let object = |properties: Value, required: &[&str]| {
            Some(json!({
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": false,
            }))
        };
        let (text, number) = (json!({"type": "string"}), json!({"type": "number"}));
        match self {
            Self::Browser => vec![
                (
                    "browser.search",
                    object(json!({"query": text, "topn": number, "source": text}), &["query"]),
                ),
                (
                    "browser.open",
                    object(
                        json!({
                            "id": {"type": ["number", "string"]},
                            "cursor": number,
                            "loc": number,
                            "num_lines": number,
                            "view_source": {"type": "boolean"},
                            "source": text,
                        }),
                        &[],
                    ),
                ),
                ("browser.find", object(json!({"pattern": text, "cursor": number}), &["pattern"])),
            ],
            Self::Python => vec![("python", None)],
        }
    }
}

fn spell_default(property: &mut Value) {
    let chosen = property.get("enum").is_some() || property.get("oneOf").is_some();
    let default = property.get_mut("default").filter(|default| chosen && !default.is_string());
    if let Some(default) = default {
        *default = default.to_string().into();
    }
}

/// Checks names and schemas.
pub(super) fn validate(tools: &[Tool]) -> Result<()> {
    let mut names = BTreeSet::new();
    for (i, tool) in tools.iter().enumerate() {
        let field = |name| format!("tools[{i}].function.{name}");
        check_name(&tool.name).map_err(|e| Error::conversation(field("name"), e))?;
        if !names.insert(&tool.name) {
            let reason = format!("`{}` is the name of another tool", tool.name);
            return Err(Error::conversation(field("name"), reason));
        }
        if let Some(parameters) = &tool.parameters {
            check_parameters(parameters, &field("parameters"))?;
        }
    }
    Ok(())
}

fn check_name(name: &str) -> std::result::Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() {
        Err("is empty".into())
    } else if name.len() > NAME_LIMIT || !name.chars().all(allowed) {
        Err(format!("{name:?} is not made of up to {NAME_LIMIT} ASCII letters, digits, `_`, `-`"))
    } else {
        Ok(())
    }
}

fn check_parameters(schema: &Value, field: &str) -> Result<()> {
    let is_object = |kind: &Value| kind == "object";
    if !schema.is_object() {
        return Err(Error::conversation(field, "is not a JSON Schema: it has to be an object"));
    }
    if !schema.get("type").is_none_or(is_object) {
        return Err(Error::conversation(format!("{field}.type"), "has to be `object`"));
    }
    check_schema(schema, field, DEPTH_LIMIT)
}

/// Checks the keywords that templates look at. What else is wrong with a schema is no matter of
/// the prompt.
fn check_schema(schema: &Value, field: &str, depth: usize) -> Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::conversation(field, format!("is nested more than {DEPTH_LIMIT} deep")));
    };
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Bool(_) => return Ok(()),
        _ => return Err(Error::conversation(field, "is neither an object nor true or false")),
    };
    let wrong = |name: &str, reason| Err(Error::conversation(format!("{field}.{name}"), reason));
    for (name, value) in fields {
        let inside = format!("{field}.{name}");
        match (name.as_str(), value) {
            ("type", Value::String(_)) | ("description", Value::String(_)) => {}
            ("type", Value::Array(kinds)) if kinds.iter().all(Value::is_string) => {}
            ("type", _) => return wrong(name, "is neither a string nor a list of strings"),
            ("description", _) => return wrong(name, "is not a string"),
            ("required", Value::Array(names)) if names.iter().all(Value::is_string) => {}
            ("required", _) => return wrong(name, "is not a list of strings"),
            ("enum", Value::Array(_)) => {}
            ("enum", _) => return wrong(name, "is not a list"),
            ("properties" | "$defs" | "definitions", Value::Object(properties)) => {
                for (name, property) in properties {
                    check_schema(property, &format!("{inside}.{name}"), depth)?;
                }
            }
            ("properties" | "$defs" | "definitions", _) => return wrong(name, "is not an object"),
            ("oneOf" | "anyOf" | "allOf", Value::Array(variants)) => {
                for (i, variant) in variants.iter().enumerate() {
                    check_schema(variant, &format!("{inside}[{i}]"), depth)?;
                }
            }
            ("oneOf" | "anyOf" | "allOf", _) => return wrong(name, "is not a list"),
            ("items", schema) if !schema.is_array() => check_schema(schema, &inside, depth)?,
            _ => {}
        }
    }
    Ok(())
}
