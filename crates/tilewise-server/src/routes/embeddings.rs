//! Embeddings, which no model that is served here makes.

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::body::Json;
use crate::error::ApiError;
use crate::state::App;

/// A text to embed.
#[derive(Debug, Deserialize, ToSchema)]
#[expect(dead_code, reason = "it is refused, whatever it says")]
pub(crate) struct EmbeddingRequest {
    model: Option<String>,
    #[schema(value_type = Object)]
    input: Option<Value>,
}

/// Refused: the model generates text and was not trained to embed it.
#[utoipa::path(post, path = "/v1/embeddings", tag = "openai", request_body = EmbeddingRequest, responses())]
pub(crate) async fn embeddings(
    State(app): State<Arc<App>>,
    Json(request): Json<EmbeddingRequest>,
) -> ApiError {
    match app.check_model(request.model.as_deref()) {
        Err(error) => error,
        Ok(()) => {
            let message = format!("{} generates text and makes no embeddings", app.config.served_model_name);
            ApiError::unsupported("model", message)
        }
    }
}
