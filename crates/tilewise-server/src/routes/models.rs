//! The model that is served.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::body::json;
use crate::error::ApiError;
use crate::state::App;

/// The models.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// `list`.
    object: &'static str,
    /// The one there is.
    data: Vec<ModelCard>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelCard {
    /// What requests call it.
    id: String,
    /// `model`.
    object: &'static str,
    /// When it was made available, in seconds since 1970.
    created: u64,
    /// By this, routers know the protocol.
    owned_by: &'static str,
    /// The same as `id`.
    root: String,
    /// Tokens of a prompt and what follows it.
    max_model_len: usize,
}

/// The models.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, body = ModelList)))]
pub(crate) async fn models(State(app): State<Arc<App>>) -> Response {
    json(&ModelList { object: "list", data: vec![card(&app)] })
}

/// The model of a name.
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "openai", params(("model" = String, Path, description = "Its name")),
    responses((status = 200, body = ModelCard))
)]
pub(crate) async fn model(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<Response, ApiError> {
    app.check_model(Some(model.trim_end_matches('/')))?;
    Ok(json(&card(&app)))
}

fn card(app: &App) -> ModelCard {
    let id = app.config.served_model_name.clone();
    ModelCard {
        root: id.clone(),
        id,
        object: "model",
        created: app.created,
        owned_by: "sglang",
        max_model_len: app.max_tokens(),
    }
}
