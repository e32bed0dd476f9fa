//! The request of `POST /v1/completions`.

use gpt_oss_mlx::engine::Prompt;
use gpt_oss_mlx::{CompletionOptions, Visible};
use serde_json::Value;

use crate::errors::ApiError;
use crate::fields::{Fields, wrong};
use crate::generate::{self, IGNORED, SAMPLING, Streaming};
use crate::models;

const READ: [&str; 12] = [
    "best_of",
    "echo",
    "logprobs",
    "max_tokens",
    "model",
    "n",
    "prompt",
    "stop",
    "store",
    "stream",
    "stream_options",
    "suffix",
];
/// OpenAI's own default for completions.
const MAX_TOKENS: usize = 16;

/// A request, ready for the engine.
#[derive(Debug, Clone)]
pub struct CompletionRequest {
    pub prompt: Prompt,
    pub options: CompletionOptions,
    pub streaming: Streaming,
}

impl CompletionRequest {
    /// Reads a body. `model` is the name of the model that there is.
    pub fn read(body: &Value, model: &str) -> Result<Self, ApiError> {
        let fields = Fields::of(body, "")?;
        fields.only(&[&READ, &SAMPLING, &IGNORED])?;
        models::check(&fields, model)?;
        generate::one_answer(&fields)?;
        generate::not_stored(&fields)?;
        if fields.bool("echo")? == Some(true) {
            return Err(ApiError::unsupported(
                "echo",
                "has to be false: only what is new is given",
            ));
        }
        if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "cannot be honoured by this model"));
        }
        let max_tokens = fields.count("max_tokens", 1..=i64::from(i32::MAX))?;
        let mut options = CompletionOptions::default();
        options.generate = generate::options(&fields, max_tokens.unwrap_or(MAX_TOKENS))?;
        options.generate.logprobs = fields.count("logprobs", 0..=5)?;
        options.stop = generate::stop(&fields)?;
        options.visible = Visible::Everything;
        let prompt = prompt(fields.required("prompt")?)?;
        Ok(Self { prompt, options, streaming: generate::streaming(&fields)? })
    }
}

/// Text or ids, or a list of one of them.
fn prompt(value: &Value) -> Result<Prompt, ApiError> {
    let ids = |values: &[Value]| {
        let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
        values.iter().map(id).collect::<Option<Vec<u32>>>()
    };
    let neither = || wrong("prompt", value, "a string or a list of the ids of tokens");
    match value {
        Value::String(text) => Ok(text.as_str().into()),
        Value::Array(items) => match items.as_slice() {
            [] => Err(ApiError::field("prompt", "is empty")),
            [Value::String(text)] => Ok(text.as_str().into()),
            [Value::Array(items)] => ids(items).map(Prompt::from).ok_or_else(neither),
            [Value::String(_) | Value::Array(_), ..] => {
                Err(ApiError::unsupported("prompt", "has more than one prompt"))
            }
            items => ids(items).map(Prompt::from).ok_or_else(neither),
        },
        _ => Err(neither()),
    }
}
