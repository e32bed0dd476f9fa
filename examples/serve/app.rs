//! The routes, and what is done for every request.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tracing::{debug, info};

use crate::errors::ApiError;
use crate::state::Server;
use crate::{auth, chat, completions, ids, models, page, responses};

/// The name of a request, which clients show and logs have.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Routes that everybody may take: whether there is a server, and a page that asks for the key.
const OPEN: [&str; 2] = ["/", "/health"];

/// The server as a service.
pub fn app(server: Arc<Server>) -> Router {
    let cors = cors(&server.settings.cors_origins);
    let app = Router::new()
        .route("/", get(page::page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/responses", post(responses::create))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&server), gate))
        .layer(middleware::from_fn_with_state(Arc::clone(&server), record))
        .with_state(server);
    match cors {
        // Outside of everything else: a browser's question before a request has no key.
        Some(cors) => app.layer(cors),
        None => app,
    }
}

fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let origins = match origins {
        [] => return None,
        origins if origins.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        origins => AllowOrigin::list(origins.iter().cloned()),
    };
    let cors = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID]);
    Some(cors)
}

/// Lets in whom it may.
async fn gate(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let settings = &server.settings;
    let headers = request.headers();
    if let Err(error) = auth::check_host(headers, &settings.hosts) {
        return error.into_response();
    }
    if !OPEN.contains(&request.uri().path()) {
        if let Err(error) = auth::check_key(headers, settings.api_key.as_deref()) {
            return error.into_response();
        }
        if server.is_stopping() && request.method() == Method::POST {
            return ApiError::stopping().into_response();
        }
    }
    next.run(request).await
}

/// Names, counts and logs requests; neither questions nor answers are logged, nor paths that are
/// none of the routes.
async fn record(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let (started, id) = (Instant::now(), ids::id("req_"));
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = route.unwrap_or("unknown").to_owned();
    let method = request.method().clone();
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    server.metrics.responded(&route, status);
    let ms = started.elapsed().as_millis();
    match method {
        Method::POST => info!(id, %method, route, status, ms, "request"),
        _ => debug!(id, %method, route, status, ms, "request"),
    }
    response
}

async fn health(State(server): State<Arc<Server>>) -> Response {
    let (status, text) = match server.is_stopping() {
        true => (StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"stopping"}"#),
        false => (StatusCode::OK, r#"{"status":"ok"}"#),
    };
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let text = server.metrics.render(&server.engine.stats());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn unknown() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path").with_code("not_found")
}

async fn wrong_method() -> ApiError {
    let message = "this path does not take requests of this method";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).with_code("method_not_allowed")
}
