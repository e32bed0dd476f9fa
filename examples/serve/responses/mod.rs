//! `POST /v1/responses`.

mod input;
pub mod request;
pub mod response;
pub mod stream;

use std::sync::Arc;

use axum::extract::{Request, State};
use gpt_oss_mlx::engine::ChatRequest;

use crate::errors::ApiError;
use crate::logprobs::Spelling;
use crate::running::Running;
use crate::sse::Encoder;
use crate::state::Server;
use crate::{body, ids, sse};
use request::ResponsesRequest;
use response::Response;
use stream::ResponseStream;

/// Answers a request.
pub async fn create(
    State(server): State<Arc<Server>>,
    request: Request,
) -> Result<axum::response::Response, ApiError> {
    let settings = &server.settings;
    let body = body::json(request, settings).await?;
    let request = ResponsesRequest::read(&body, &settings.model, settings.max_tokens)?;
    let ResponsesRequest { conversation, options, stream: streaming, echo } = request;
    let response = Response::new(ids::id("resp_"), ids::now(), settings.model.clone(), echo);
    let spelling = options.generate.logprobs.map(|_| Spelling::new(&server.engine));
    let mut request = ChatRequest::new(conversation, options);
    request.timeout = Some(settings.timeout);
    let stream = server.engine.chat(request);
    let mut running =
        Running::begin(Arc::clone(&server), response.id.clone(), stream, field).await?;
    let mut response = ResponseStream::new(response, spelling);
    if streaming {
        return Ok(sse::response(running, response));
    }
    while let Some(event) = running.next().await {
        response.push(event?);
    }
    Ok(body::response(&response.into_response().ok_or_else(ApiError::stopping)?))
}

/// What the request calls a field of the library.
fn field(name: &str) -> String {
    match name {
        "response_format" => "text.format".into(),
        "max_tokens" => "max_output_tokens".into(),
        name if name.starts_with("messages") => "input".into(),
        name => name.into(),
    }
}
