//! `POST /v1/completions`.

pub mod request;
pub mod response;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use gpt_oss_mlx::engine;

use crate::chat::{FINGERPRINT, Named};
use crate::errors::ApiError;
use crate::logprobs::Spelling;
use crate::running::Running;
use crate::state::Server;
use crate::{body, ids, sse};
use request::CompletionRequest;
use response::{Answer, CompletionStream};

/// Answers a request.
pub async fn create(
    State(server): State<Arc<Server>>,
    request: Request,
) -> Result<Response, ApiError> {
    let settings = &server.settings;
    let body = body::json(request, settings).await?;
    let request = CompletionRequest::read(&body, &settings.model)?;
    let CompletionRequest { prompt, options, streaming } = request;
    let id = ids::id("cmpl-");
    let named = Named {
        id: id.clone(),
        object: "text_completion",
        created: ids::now(),
        model: settings.model.clone(),
        system_fingerprint: FINGERPRINT,
    };
    let spelling = options.generate.logprobs.map(|_| Spelling::new(&server.engine));
    let mut request = engine::CompletionRequest::new(prompt, options);
    request.timeout = Some(settings.timeout);
    let stream = server.engine.complete(request);
    let mut running = Running::begin(Arc::clone(&server), id, stream, field).await?;
    let mut answer = Answer::new(named, spelling);
    if streaming.on {
        return Ok(sse::response(running, CompletionStream::new(answer, streaming)));
    }
    while let Some(event) = running.next().await {
        answer.push(event?);
    }
    let json = answer.completion().ok_or_else(ApiError::stopping)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

fn field(name: &str) -> String {
    if name == "messages" { "prompt".into() } else { name.into() }
}
