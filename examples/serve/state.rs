//! What the handlers of requests share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::HeaderValue;
use gpt_oss_mlx::engine::Engine;

use crate::ids;
use crate::metrics::Metrics;

/// The server's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The model's name in requests and responses.
    pub model: String,
    /// What a client has to show; None lets everybody in.
    pub api_key: Option<String>,
    /// Origins of web pages that may ask; `*` is any.
    pub cors_origins: Vec<HeaderValue>,
    /// Most bytes of a request.
    pub max_body: usize,
    /// Tokens of an answer when the request does not say how many.
    pub max_tokens: usize,
    /// Most time for a request.
    pub timeout: Duration,
    /// Most time for a client to send a request. One that takes longer holds up a connection for
    /// nothing.
    pub read_timeout: Duration,
    /// Host names by which the server may be called; empty for any.
    pub hosts: Vec<String>,
}

/// A server.
#[derive(Debug)]
pub struct Server {
    pub engine: Engine,
    pub settings: Settings,
    pub metrics: Metrics,
    /// Seconds since 1970 at the start.
    pub started: u64,
    stopping: AtomicBool,
}

impl Server {
    pub fn new(engine: Engine, settings: Settings) -> Self {
        let (metrics, started) = (Metrics::default(), ids::now());
        Self { engine, settings, metrics, started, stopping: AtomicBool::new(false) }
    }

    /// From now on requests are refused.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}
