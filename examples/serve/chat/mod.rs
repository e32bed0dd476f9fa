//! `POST /v1/chat/completions`.

mod deltas;
pub mod request;
pub mod response;
pub mod stream;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use gpt_oss_mlx::engine::ChatRequest;
use serde::Serialize;

use crate::errors::ApiError;
use crate::logprobs::Spelling;
use crate::running::Running;
use crate::state::Server;
use crate::{body, ids, sse};
use request::ChatCompletionRequest;
use response::Answer;
use stream::ChatStream;

/// What each response, and each chunk of one, begins with.
#[derive(Debug, Clone, Serialize)]
pub struct Named {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: &'static str,
}

/// What makes the answers of one server differ from those of another.
pub const FINGERPRINT: &str = concat!("gpt-oss-mlx-", env!("CARGO_PKG_VERSION"));

/// Answers a request.
pub async fn create(
    State(server): State<Arc<Server>>,
    request: Request,
) -> Result<Response, ApiError> {
    let settings = &server.settings;
    let body = body::json(request, settings).await?;
    let request = ChatCompletionRequest::read(&body, &settings.model, settings.max_tokens)?;
    let ChatCompletionRequest { conversation, options, streaming } = request;
    let named = Named {
        id: ids::id("chatcmpl-"),
        object: "chat.completion",
        created: ids::now(),
        model: settings.model.clone(),
        system_fingerprint: FINGERPRINT,
    };
    let spelling = options.generate.logprobs.map(|_| Spelling::new(&server.engine));
    let mut request = ChatRequest::new(conversation, options);
    request.timeout = Some(settings.timeout);
    let stream = server.engine.chat(request);
    let mut running =
        Running::begin(Arc::clone(&server), named.id.clone(), stream, str::to_owned).await?;
    if streaming.on {
        return Ok(sse::response(running, ChatStream::new(named, streaming, spelling)));
    }
    let mut answer = Answer::new(spelling);
    while let Some(event) = running.next().await {
        answer.push(event?);
    }
    let completion = answer.completion(&named).ok_or_else(ApiError::stopping)?;
    Ok(body::response(&completion))
}
