//! `GET /v1/models` and `GET /v1/models/{id}`: there is one.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::body;
use crate::errors::ApiError;
use crate::fields::Fields;
use crate::state::Server;

#[derive(Debug, Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Most tokens of a request and its answer together.
    context_length: usize,
}

#[derive(Debug, Serialize)]
struct List<'a> {
    object: &'static str,
    data: [Model<'a>; 1],
}

impl<'a> Model<'a> {
    fn of(server: &'a Server) -> Self {
        Self {
            id: &server.settings.model,
            object: "model",
            created: server.started,
            owned_by: "gpt-oss-mlx",
            context_length: server.engine.model().context_limit,
        }
    }
}

pub async fn list(State(server): State<Arc<Server>>) -> Response {
    body::response(&List { object: "list", data: [Model::of(&server)] })
}

/// The name may have slashes in it.
pub async fn one(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    known(&id, &server.settings.model)?;
    Ok(body::response(&Model::of(&server)))
}

/// Checks the field `model` of a request; without one it is the model that there is.
pub fn check(fields: &Fields<'_>, model: &str) -> Result<(), ApiError> {
    fields.string("model")?.map_or(Ok(()), |name| known(name, model))
}

fn known(name: &str, model: &str) -> Result<(), ApiError> {
    if name == model {
        return Ok(());
    }
    let message = format!("there is no model `{name}` here, only `{model}`");
    let error = ApiError::new(StatusCode::NOT_FOUND, message);
    Err(error.with_code("model_not_found").with_param("model"))
}
