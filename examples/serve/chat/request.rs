//! The request of `POST /v1/chat/completions`.

use gpt_oss_mlx::ChatOptions;
use gpt_oss_mlx::chat::Conversation;
use serde_json::Value;

use crate::errors::ApiError;
use crate::fields::Fields;
use crate::generate::{self, IGNORED, SAMPLING, Streaming};
use crate::{models, tools};

/// Fields that are read here or by [`Conversation::from_json`].
const READ: [&str; 20] = [
    "builtin_tools",
    "date",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "modalities",
    "model",
    "model_identity",
    "n",
    "parallel_tool_calls",
    "reasoning_effort",
    "response_format",
    "stop",
    "store",
    "stream",
    "stream_options",
    "tool_choice",
    "tools",
    "top_logprobs",
];
/// Fields that cannot be honoured, and why.
const REFUSED: [(&str, &str); 6] = [
    ("audio", "cannot be made: answers are text"),
    ("function_call", "is the old form of `tool_choice`, which is not read"),
    ("functions", "is the old form of `tools`, which is not read"),
    ("moderation", "is not done here"),
    ("verbosity", "is not known to this model; say it in the instructions"),
    ("web_search_options", "asks for a search, which there is none of here"),
];

/// A request, ready for the engine.
#[derive(Debug, Clone)]
pub struct ChatCompletionRequest {
    pub conversation: Conversation,
    pub options: ChatOptions,
    pub streaming: Streaming,
}

impl ChatCompletionRequest {
    /// Reads a body. `model` is the name of the model that there is; an answer has `max_tokens`
    /// unless the request says otherwise.
    pub fn read(body: &Value, model: &str, max_tokens: usize) -> Result<Self, ApiError> {
        let fields = Fields::of(body, "")?;
        fields.refuse(&REFUSED)?;
        fields.only(&[&READ, &SAMPLING, &IGNORED])?;
        models::check(&fields, model)?;
        generate::one_answer(&fields)?;
        generate::not_stored(&fields)?;
        fields.bool("parallel_tool_calls")?;
        if fields.list("modalities")?.is_some_and(|kinds| kinds.iter().any(|kind| kind != "text")) {
            return Err(ApiError::unsupported("modalities", "can only have `text`"));
        }
        let streaming = generate::streaming(&fields)?;
        let mut conversation = Conversation::from_json(body)
            .map_err(|error| ApiError::from_library(&error, str::to_owned))?;
        let mut options = ChatOptions::default();
        options.generate =
            generate::options(&fields, answer_limit(&fields)?.unwrap_or(max_tokens))?;
        options.generate.logprobs = logprobs(&fields)?;
        options.stop = generate::stop(&fields)?;
        options.tool_choice = tools::choice(&fields, &conversation, |choice| {
            let function = Fields::of(choice.required("function")?, "tool_choice.function")?;
            function.required("name")?;
            Ok(function.string("name")?.unwrap_or_default().to_owned())
        })?;
        options.response_format = tools::response_format(
            fields.get("response_format"),
            "response_format",
            Some("json_schema"),
            &mut conversation,
        )?;
        tools::enforce(&conversation, &mut options);
        Ok(Self { conversation, options, streaming })
    }
}

/// `max_completion_tokens`, or `max_tokens`, its older name.
fn answer_limit(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let range = 1..=i64::from(i32::MAX);
    let new = fields.count("max_completion_tokens", range.clone())?;
    let old = fields.count("max_tokens", range)?;
    match (new, old) {
        (Some(new), Some(old)) if new != old => {
            Err(ApiError::field("max_tokens", "differs from `max_completion_tokens`, its new name"))
        }
        _ => Ok(new.or(old)),
    }
}

/// How many of the likeliest tokens to report in each place; None for no log-probabilities.
fn logprobs(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let on = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=20)?;
    match (on, top) {
        (false, Some(1..)) => {
            Err(ApiError::field("top_logprobs", "is only allowed with `logprobs`: true"))
        }
        (on, top) => Ok(on.then_some(top.unwrap_or(0))),
    }
}
