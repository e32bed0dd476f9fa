//! A request that the engine works on, as its handler sees it.

use std::sync::Arc;
use std::time::Instant;

use gpt_oss_mlx::Error;
use gpt_oss_mlx::engine::{EngineEvent, EngineStream, Usage};
use tracing::info;

use crate::errors::ApiError;
use crate::state::Server;

/// A request that was found to be sound. Dropping it cancels it.
pub struct Running {
    stream: EngineStream,
    server: Arc<Server>,
    id: String,
    field: fn(&str) -> String,
    started: Instant,
    ended: bool,
}

impl Running {
    /// Waits until the engine has found the request to be sound. `field` says what the request
    /// calls the library's fields.
    pub async fn begin(
        server: Arc<Server>,
        id: String,
        stream: Result<EngineStream, Error>,
        field: fn(&str) -> String,
    ) -> Result<Self, ApiError> {
        let stream = stream.map_err(|error| ApiError::from_library(&error, field))?;
        let started = Instant::now();
        let mut running = Self { stream, server, id, field, started, ended: false };
        match running.next().await {
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Ok(running),
        }
    }

    /// What happens next; None after the last event.
    pub async fn next(&mut self) -> Option<Result<EngineEvent, ApiError>> {
        let item = self.stream.next().await?;
        let item = item.map_err(|error| ApiError::from_library(&error, self.field));
        match &item {
            Ok(EngineEvent::Finished { reason, usage }) => {
                self.ended = true;
                self.server.metrics.finished(usage);
                log_usage(&self.id, &format!("{reason:?}"), usage);
            }
            Ok(_) => {}
            Err(error) => {
                self.ended = true;
                // Of failures that are the request's own the message may quote it.
                let message = error.status.is_server_error().then_some(&error.message);
                let (id, status) = (&self.id, error.status.as_u16());
                info!(id, status, code = error.code, message, "failed");
            }
        }
        Some(item)
    }
}

fn log_usage(id: &str, reason: &str, usage: &Usage) {
    info!(
        id,
        reason,
        prompt_tokens = usage.prompt_tokens,
        cached_tokens = usage.cached_tokens,
        completion_tokens = usage.completion_tokens,
        queued_ms = usage.queued.as_millis(),
        prefill_ms = usage.prefill.as_millis(),
        decode_ms = usage.decode.as_millis(),
        "finished"
    );
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.server.metrics.abandoned();
            let ms = self.started.elapsed().as_millis();
            info!(id = self.id, ms, "the client went away");
        }
    }
}
