//! JSON bodies: reading those of requests, writing those of responses.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde_json::Value;

use crate::errors::ApiError;
use crate::state::Settings;

/// The JSON object that is the body of a request.
pub async fn json(request: Request, settings: &Settings) -> Result<Value, ApiError> {
    let limit = settings.max_body;
    let (parts, body) = request.into_parts();
    check_headers(&parts.headers, limit)?;
    let bytes =
        tokio::time::timeout(settings.read_timeout, read(body, limit)).await.map_err(|_| {
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")
                .with_code("request_timeout")
        })??;
    match serde_json::from_slice(&bytes) {
        Ok(body @ Value::Object(_)) => Ok(body),
        Ok(_) => Err(ApiError::new(StatusCode::BAD_REQUEST, "the body is not a JSON object")
            .with_code("invalid_json")),
        Err(error) => {
            let message = format!("the body is not valid JSON: {error}");
            Err(ApiError::new(StatusCode::BAD_REQUEST, message).with_code("invalid_json"))
        }
    }
}

fn check_headers(headers: &HeaderMap, limit: usize) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let unsupported = |message: &str| {
        let error = ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message);
        Err(error.with_code("unsupported_media_type"))
    };
    // Also what keeps other sites' pages out: a browser asks before it sends JSON across origins.
    let media_type = text(header::CONTENT_TYPE).and_then(|value| value.split(';').next());
    if !media_type.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return unsupported("the header Content-Type has to be application/json");
    }
    if text(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return unsupported("a body with a Content-Encoding cannot be read");
    }
    let length = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    match length {
        Some(length) if limit < length => Err(too_large(limit)),
        _ => Ok(()),
    }
}

async fn read(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes().into()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        Err(_) => Err(ApiError::new(StatusCode::BAD_REQUEST, "the body broke off")),
    }
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body is longer than {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).with_code("request_too_large")
}

/// A response with a JSON body.
pub fn response(value: &impl Serialize) -> Response {
    let json = serde_json::to_string(value).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}
