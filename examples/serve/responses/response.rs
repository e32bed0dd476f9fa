//! The response of `POST /v1/responses`, and the items that it consists of.

use gpt_oss_mlx::engine;
use serde::Serialize;

use super::request::Echo;
use crate::errors::ApiError;
use crate::logprobs::TokenLogprobs;

/// A response, finished or not.
#[derive(Debug, Clone, Serialize)]
pub struct Response {
    pub id: String,
    object: &'static str,
    created_at: u64,
    pub completed_at: Option<u64>,
    pub status: Status,
    background: bool,
    pub error: Option<ResponseError>,
    pub incomplete_details: Option<IncompleteDetails>,
    model: String,
    pub output: Vec<Item>,
    previous_response_id: Option<String>,
    store: bool,
    truncation: &'static str,
    pub usage: Option<Usage>,
    #[serde(flatten)]
    echo: Echo,
}

impl Response {
    /// A response that has just begun.
    pub fn new(id: String, created_at: u64, model: String, echo: Echo) -> Self {
        Self {
            id,
            object: "response",
            created_at,
            completed_at: None,
            status: Status::InProgress,
            background: false,
            error: None,
            incomplete_details: None,
            model,
            output: Vec::new(),
            previous_response_id: None,
            store: false,
            truncation: "disabled",
            usage: None,
            echo,
        }
    }

    /// Whether reasoning is given as a summary.
    pub fn summarizes(&self) -> bool {
        self.echo.reasoning.summary.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

/// Why a response failed after it had begun.
#[derive(Debug, Clone, Serialize)]
pub struct ResponseError {
    code: &'static str,
    message: String,
}

impl From<&ApiError> for ResponseError {
    fn from(error: &ApiError) -> Self {
        // Of the codes that OpenAI lists here only this one fits.
        Self { code: "server_error", message: error.message.clone() }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct IncompleteDetails {
    pub reason: &'static str,
}

/// A part of the model's turn.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Item {
    Reasoning {
        id: String,
        summary: Vec<Part>,
        #[serde(skip_serializing_if = "Option::is_none")]
        content: Option<Vec<Part>>,
        status: Status,
    },
    Message {
        id: String,
        role: &'static str,
        content: Vec<Part>,
        status: Status,
    },
    FunctionCall {
        id: String,
        call_id: String,
        name: String,
        arguments: String,
        status: Status,
    },
}

/// Text of an item.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type")]
pub enum Part {
    #[serde(rename = "output_text")]
    Output { text: String, annotations: [(); 0], logprobs: Vec<TokenLogprobs> },
    #[serde(rename = "reasoning_text")]
    Reasoning { text: String },
    #[serde(rename = "summary_text")]
    Summary { text: String },
}

/// What a response took.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: OutputDetails,
    total_tokens: usize,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct InputDetails {
    cached_tokens: usize,
    /// Keeping a prefix costs nothing extra.
    cache_write_tokens: usize,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct OutputDetails {
    reasoning_tokens: usize,
}

impl From<&engine::Usage> for Usage {
    fn from(usage: &engine::Usage) -> Self {
        let engine::Usage { prompt_tokens, cached_tokens, .. } = *usage;
        Self {
            input_tokens: prompt_tokens,
            input_tokens_details: InputDetails { cached_tokens, cache_write_tokens: 0 },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: usage.reasoning_tokens },
            total_tokens: prompt_tokens + usage.completion_tokens,
        }
    }
}
