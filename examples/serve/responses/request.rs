//! The request of `POST /v1/responses`.

use gpt_oss_mlx::chat::{Conversation, Message, Tool};
use gpt_oss_mlx::{ChatOptions, Error};
use serde::Serialize;
use serde_json::{Value, json};

use super::input;
use crate::errors::ApiError;
use crate::fields::Fields;
use crate::generate::{self, IGNORED, SAMPLING, TEMPERATURE};
use crate::{models, tools};

const READ: [&str; 16] = [
    "background",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "model",
    "parallel_tool_calls",
    "reasoning",
    "store",
    "stream",
    "stream_options",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
];
/// Read for its one value that changes nothing.
const TRUNCATION: &str = "truncation";
const REFUSED: [(&str, &str); 8] = [
    ("access_programs", "is not known to this model"),
    ("background_options", "cannot be honoured: there are no requests in the background"),
    ("context_management", "cannot be honoured: the whole input is read"),
    ("conversation", "cannot be honoured: nothing is stored; give the whole `input`"),
    ("image", "cannot be honoured: only text is read"),
    ("moderation", "is not done here"),
    ("previous_response_id", "cannot be honoured: nothing is stored; give the whole `input`"),
    ("prompt", "cannot be honoured: no templates are stored"),
];
/// What can be asked for beside the answer.
const INCLUDE_LOGPROBS: &str = "message.output_text.logprobs";
/// What clients ask for that keep a conversation themselves. Reasoning is plain text here.
const INCLUDE_ENCRYPTED: &str = "reasoning.encrypted_content";

/// A request, ready for the engine.
#[derive(Debug, Clone)]
pub struct ResponsesRequest {
    pub conversation: Conversation,
    pub options: ChatOptions,
    pub stream: bool,
    pub echo: Echo,
}

/// What the response says about the request.
#[derive(Debug, Clone, Serialize)]
pub struct Echo {
    instructions: Option<String>,
    max_output_tokens: Option<usize>,
    metadata: Value,
    parallel_tool_calls: bool,
    pub reasoning: Reasoning,
    temperature: f32,
    text: Value,
    tool_choice: Value,
    tools: Value,
    top_logprobs: usize,
    top_p: f32,
}

/// How much to reason, and how the reasoning is given.
#[derive(Debug, Clone, Serialize)]
pub struct Reasoning {
    effort: Option<&'static str>,
    /// Given as a summary if there is one, else as the text that it is.
    pub summary: Option<&'static str>,
}

impl ResponsesRequest {
    /// Reads a body. `model` is the name of the model that there is; an answer has `max_tokens`
    /// unless the request says otherwise.
    pub fn read(body: &Value, model: &str, max_tokens: usize) -> Result<Self, ApiError> {
        let fields = Fields::of(body, "")?;
        fields.refuse(&REFUSED)?;
        fields.only(&[&READ, &[TRUNCATION], &SAMPLING, &IGNORED])?;
        models::check(&fields, model)?;
        generate::not_stored(&fields)?;
        if fields.bool("background")? == Some(true) {
            return Err(ApiError::unsupported("background", "has to be false"));
        }
        if fields.one_of(TRUNCATION, &["auto", "disabled"])? == Some("auto") {
            let reason = "has to be `disabled`: nothing is left out of an input";
            return Err(ApiError::unsupported(TRUNCATION, reason));
        }
        let parallel_tool_calls = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        fields.count("max_tool_calls", 1..=i64::from(i32::MAX))?;
        let max_output_tokens = fields.count("max_output_tokens", 1..=i64::from(i32::MAX))?;
        let stream = generate::streaming(&fields)?.on;
        let instructions = fields.string("instructions")?.map(str::to_owned);

        let mut conversation = conversation(&fields, instructions.as_deref())?;
        let reasoning = reasoning(&fields, &mut conversation)?;
        let mut options = ChatOptions::default();
        options.generate = generate::options(&fields, max_output_tokens.unwrap_or(max_tokens))?;
        let top_logprobs = fields.count("top_logprobs", 0..=20)?;
        let logprobs = includes_logprobs(&fields)? || top_logprobs.is_some_and(|top| top > 0);
        options.generate.logprobs = logprobs.then_some(top_logprobs.unwrap_or(0));
        options.tool_choice = tools::choice(&fields, &conversation, |choice| {
            choice.required("name")?;
            Ok(choice.string("name")?.unwrap_or_default().to_owned())
        })?;
        let format = format(&fields)?;
        options.response_format =
            tools::response_format(format, "text.format", None, &mut conversation)?;
        tools::enforce(&conversation, &mut options);

        let sampling = &options.generate.sampling;
        let given = |name, or: Value| fields.get(name).cloned().unwrap_or(or);
        let echo = Echo {
            instructions,
            max_output_tokens,
            metadata: given("metadata", json!({})),
            parallel_tool_calls,
            reasoning,
            temperature: fields.get("temperature").map_or(TEMPERATURE, |_| sampling.temperature),
            text: json!({"format": format.cloned().unwrap_or(json!({"type": "text"}))}),
            tool_choice: given("tool_choice", "auto".into()),
            tools: given("tools", json!([])),
            top_logprobs: top_logprobs.unwrap_or(0),
            top_p: sampling.top_p,
        };
        Ok(Self { conversation, options, stream, echo })
    }
}

fn conversation(fields: &Fields<'_>, instructions: Option<&str>) -> Result<Conversation, ApiError> {
    let (messages, mut places) = input::messages(fields.required("input")?)?;
    let instructions = instructions.map(Message::system);
    if instructions.is_some() {
        places.insert(0, None);
    }
    let mut conversation = Conversation::new(instructions.into_iter().chain(messages));
    let tools = fields.list("tools")?.unwrap_or_default();
    conversation.tools = tools
        .iter()
        .enumerate()
        .map(|(i, value)| tool(value, &format!("tools[{i}]")))
        .collect::<Result<_, _>>()?;
    match conversation.validate() {
        Ok(()) => Ok(conversation),
        Err(Error::Conversation { field, reason }) => {
            Err(ApiError::field(in_request(&field, &places), reason))
        }
        Err(other) => Err(ApiError::from_library(&other, super::field)),
    }
}

/// What the request calls a field of the conversation, whose messages come from these items.
fn in_request(field: &str, places: &[Option<usize>]) -> String {
    if let Some((index, rest)) =
        field.strip_prefix("messages[").and_then(|rest| rest.split_once(']'))
    {
        let place = index.parse::<usize>().ok().and_then(|i| places.get(i).copied().flatten());
        return match place {
            Some(item) => format!("input[{item}]{}", rest.replace(".tool_call_id", ".call_id")),
            None => "input".into(),
        };
    }
    match field {
        "messages" => "input".into(),
        field => field.replace("].function.", "]."),
    }
}

fn tool(value: &Value, at: &str) -> Result<Tool, ApiError> {
    let fields = Fields::of(value, at)?;
    fields.required("type")?;
    if fields.string("type")? != Some("function") {
        let reason = "is none that is known here; only functions can be called";
        return Err(ApiError::unsupported(fields.path("type"), reason));
    }
    fields.required("name")?;
    let mut tool = Tool::without_arguments(fields.string("name")?.unwrap_or_default(), "");
    tool.description = fields.string("description")?.map(str::to_owned);
    tool.parameters = fields.map("parameters")?.cloned().map(Value::Object);
    tool.strict = fields.bool("strict")?;
    Ok(tool)
}

fn reasoning(fields: &Fields<'_>, conversation: &mut Conversation) -> Result<Reasoning, ApiError> {
    let Some(value) = fields.get("reasoning") else {
        return Ok(Reasoning { effort: None, summary: None });
    };
    let fields = Fields::of(value, "reasoning")?;
    fields.only(&[&["effort", "generate_summary", "summary"]])?;
    let effort = fields.one_of("effort", &["low", "medium", "high"])?;
    conversation.reasoning_effort = effort.and_then(|effort| effort.parse().ok());
    let kinds = ["auto", "concise", "detailed"];
    let old = fields.one_of("generate_summary", &kinds)?;
    Ok(Reasoning { effort, summary: fields.one_of("summary", &kinds)?.or(old) })
}

fn includes_logprobs(fields: &Fields<'_>) -> Result<bool, ApiError> {
    let mut logprobs = false;
    for (i, name) in fields.list("include")?.unwrap_or_default().iter().enumerate() {
        match name.as_str() {
            Some(INCLUDE_LOGPROBS) => logprobs = true,
            Some(INCLUDE_ENCRYPTED) => {}
            _ => {
                let reason = format!("is none of {INCLUDE_LOGPROBS}, {INCLUDE_ENCRYPTED}");
                return Err(ApiError::unsupported(format!("include[{i}]"), reason));
            }
        }
    }
    Ok(logprobs)
}

/// The form of the answer.
fn format<'a>(fields: &Fields<'a>) -> Result<Option<&'a Value>, ApiError> {
    let Some(text) = fields.get("text") else { return Ok(None) };
    let text = Fields::of(text, "text")?;
    text.refuse(&[("verbosity", "is not known to this model; say it in the instructions")])?;
    text.only(&[&["format"]])?;
    Ok(text.get("format"))
}
