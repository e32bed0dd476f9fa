//! Answers as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use gpt_oss_mlx::engine::EngineEvent;
use serde::Serialize;

use crate::errors::ApiError;
use crate::running::Running;

/// How often a line says that there is still somebody, so that nobody in between hangs up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One event as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type, for endpoints that name it.
    pub event: Option<&'static str>,
    /// Its content, of one line.
    pub data: String,
}

/// The end of a stream whose events have no types.
pub const DONE: &str = "[DONE]";

impl From<&str> for Frame {
    fn from(data: &str) -> Self {
        Self { event: None, data: data.into() }
    }
}

impl Frame {
    /// An event without a type.
    pub fn json(value: &impl Serialize) -> Self {
        Self { event: None, data: serde_json::to_string(value).unwrap_or_default() }
    }
}

/// What an endpoint makes of the engine's events.
pub trait Encoder: Send + 'static {
    /// What is sent first.
    fn start(&mut self) -> Vec<Frame>;
    /// What an event makes known.
    fn push(&mut self, event: EngineEvent) -> Vec<Frame>;
    /// What is sent last, when the request fails.
    fn fail(&mut self, error: &ApiError) -> Vec<Frame>;
}

/// The response to a request that streams.
pub fn response(running: Running, mut encoder: impl Encoder) -> Response {
    struct Stream<E> {
        running: Running,
        encoder: E,
        frames: VecDeque<Frame>,
    }
    let frames = encoder.start().into();
    let stream = stream::unfold(Stream { running, encoder, frames }, |mut stream| async move {
        loop {
            if let Some(Frame { event, data }) = stream.frames.pop_front() {
                let named = event.map_or_else(Event::default, |name| Event::default().event(name));
                return Some((Ok::<_, Infallible>(named.data(data)), stream));
            }
            let frames = match stream.running.next().await? {
                Ok(event) => stream.encoder.push(event),
                Err(error) => stream.encoder.fail(&error),
            };
            stream.frames.extend(frames);
        }
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}
