//! Failures in the shape of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gpt_oss_mlx::Error;
use serde::Serialize;

/// Longest message in characters: some quote what the client sent.
const MESSAGE_LIMIT: usize = 400;

/// OpenAI's clients try again after 408, 429 and 5xx unless this header says not to.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// A failure with its status.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// The response's status.
    pub status: StatusCode,
    /// What went wrong, for people.
    pub message: String,
    /// The field that is wrong, such as `messages[0].content`.
    pub param: Option<String>,
    /// What went wrong, for programs.
    pub code: Option<&'static str>,
    /// When another try makes sense.
    retry_after: Option<Duration>,
}

/// The body of a failed request.
#[derive(Debug, Serialize)]
pub struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorFields<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl ApiError {
    /// A failure without a field, code or next try.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let message = match message.char_indices().nth(MESSAGE_LIMIT) {
            Some((end, _)) => format!("{}…", &message[..end]),
            None => message,
        };
        Self { status, message, param: None, code: None, retry_after: None }
    }

    /// A wrong field of the request.
    pub fn field(param: impl Into<String>, reason: impl AsRef<str>) -> Self {
        let param = param.into();
        let message = format!("`{param}` {}", reason.as_ref());
        Self::new(StatusCode::BAD_REQUEST, message).with_code("invalid_value").with_param(param)
    }

    /// A field that this server does not know, or knows and cannot honour.
    pub fn unsupported(param: impl Into<String>, reason: impl AsRef<str>) -> Self {
        Self::field(param, reason).with_code("unsupported_parameter")
    }

    /// The server takes no more requests.
    pub fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
            .with_code("shutting_down")
    }

    /// The same failure with a code.
    #[must_use]
    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The same failure with a field.
    #[must_use]
    pub fn with_param(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The JSON of the failure.
    pub fn body(&self) -> ErrorBody<'_> {
        let r#type = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::REQUEST_TIMEOUT => "timeout_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let (param, code) = (self.param.as_deref(), self.code);
        ErrorBody { error: ErrorFields { message: &self.message, r#type, param, code } }
    }

    /// What the engine reports. `field` says what the request calls the library's fields.
    pub fn from_library(error: &Error, field: fn(&str) -> String) -> Self {
        let message = format!("{error}; {}", error.hint());
        let wrong = |code| Self::new(StatusCode::BAD_REQUEST, message.clone()).with_code(code);
        match error {
            Error::Conversation { field: name, reason } => Self::field(field(name), reason),
            Error::Argument { name, .. } => wrong("invalid_value").with_param(field(name)),
            Error::Grammar { part, .. } if part.starts_with("tool `") => {
                wrong("invalid_value").with_param("tools")
            }
            Error::Grammar { part, .. } => wrong("invalid_value").with_param(field(part)),
            Error::ContextFull { .. } => {
                wrong("context_length_exceeded").with_param(field("messages"))
            }
            Error::AllBanned { .. } => wrong("invalid_value").with_param("logit_bias"),
            Error::QueueFull { limit } => {
                let message = format!("{limit} requests are waiting already; try again later");
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, message);
                let retry_after = Some(Duration::from_secs(1));
                Self { retry_after, ..error.with_code("rate_limit_exceeded") }
            }
            Error::TimedOut { .. } => {
                let message = "the request ran longer than this server allows";
                Self::new(StatusCode::REQUEST_TIMEOUT, message).with_code("timeout")
            }
            Error::EngineStopped { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("engine_stopped")
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).with_code("server_error"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::to_string(&self.body()).unwrap_or_default();
        let json = [(header::CONTENT_TYPE, "application/json")];
        let mut response = (self.status, json, body).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        // It would take as long again.
        if self.code == Some("timeout") {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // The rest of the body is not read, or the server is about to go.
            StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}
