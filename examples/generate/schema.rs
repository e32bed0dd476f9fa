//! `--schema` and `--tool-choice`: what the answer is held to.

use std::fs;
use std::path::Path;

use gpt_oss_mlx::chat::Message;
use gpt_oss_mlx::constrain::{ConstraintSpec, ResponseFormat, ToolChoice, Vocabulary};
use gpt_oss_mlx::{CompletionOptions, Error, Tokenizer};
use serde_json::Value;

use crate::args::{Args, Prompt};
use crate::failure::Failure;

/// Tells the model what is asked for, and makes it certain. Before the model is loaded: the
/// tokenizer is enough to see what cannot be.
pub fn apply(
    args: &Args,
    schema: Option<Schema>,
    folder: &Path,
    prompt: &mut Prompt,
    options: &mut CompletionOptions,
) -> Result<(), Failure> {
    let Prompt::Chat(conversation) = prompt else { return Ok(()) };
    if schema.is_none() && args.tool_choice.is_none() {
        return Ok(());
    }
    let mut spec = ConstraintSpec::for_conversation(conversation);
    spec.tool_choice = match args.tool_choice.as_deref() {
        None | Some("auto") => ToolChoice::Auto,
        Some("none") => ToolChoice::None,
        Some("required") => ToolChoice::Required,
        Some(name) => ToolChoice::Function(name.into()),
    };
    if let Some(Schema { name, description, schema }) = schema {
        let told = Message::response_format(name, description.as_deref(), &schema);
        conversation.messages.push(told);
        spec.response_format = Some(ResponseFormat::JsonSchema(schema));
    }
    let vocabulary = Vocabulary::new(&Tokenizer::from_dir(folder)?)?;
    options.generate.constraint = vocabulary.compile(&spec).map_err(|error| named(error, args))?;
    Ok(())
}

/// The error with the file that it is about.
fn named(error: Error, args: &Args) -> Failure {
    let Error::Grammar { part, .. } = &error else { return error.into() };
    let file = match part.as_str() {
        "response_format" => args.schema.as_ref(),
        "tool_choice" => None,
        _ => args.tools.as_ref(),
    };
    match file {
        Some(path) => format!("cannot hold the model to {}: {error}", path.display()).into(),
        None => error.into(),
    }
}

/// A schema as a file holds it.
pub struct Schema {
    name: String,
    description: Option<String>,
    schema: Value,
}

/// A JSON Schema alone, or as OpenAI's API takes it.
pub fn read(path: &Path) -> Result<Schema, Failure> {
    let failed = |e: &dyn std::fmt::Display| {
        Failure::from(format!("cannot read the schema from {}: {e}", path.display()))
    };
    let text = fs::read_to_string(path).map_err(|e| failed(&e))?;
    let mut value: Value = serde_json::from_str(&text).map_err(|e| failed(&e))?;
    // No JSON Schema has this type.
    if value["type"] != "json_schema" {
        return Ok(Schema { name: "answer".into(), description: None, schema: value });
    }
    let format = &mut value["json_schema"];
    let schema = format.get_mut("schema").map(Value::take);
    let schema = schema.ok_or_else(|| failed(&"`json_schema.schema` is missing"))?;
    let text = |key: &str| format[key].as_str().map(str::to_owned);
    Ok(Schema {
        name: text("name").unwrap_or("answer".into()),
        description: text("description"),
        schema,
    })
}
