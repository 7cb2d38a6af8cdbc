//! Token ids to texts.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::generate::TokenIds;
use crate::body::{Json, json};
use crate::error::ApiError;
use crate::fields::OneOrMany;
use crate::state::App;

/// What is turned into text.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeRequest {
    model: Option<String>,
    /// Token ids, or several lists of them.
    tokens: TokenIds,
    /// They are always skipped.
    skip_special_tokens: Option<bool>,
}

/// The text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Detokenized {
    /// Of the list, or of each.
    text: OneOrMany<String>,
}

/// The text of token ids, without special tokens.
#[utoipa::path(
    post, path = "/detokenize", tag = "text", request_body = DetokenizeRequest,
    responses((status = 200, body = Detokenized))
)]
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    Json(request): Json<DetokenizeRequest>,
) -> Result<Response, ApiError> {
    app.check_model(request.model.as_deref())?;
    if request.skip_special_tokens == Some(false) {
        let message = "skip_special_tokens is supported as true alone";
        return Err(ApiError::unsupported("skip_special_tokens", message));
    }
    let worker = app.clone();
    worker
        .prepare_alone(move || {
            let vocab_size = app.model.config.vocab_size;
            let text = |ids: &Vec<u32>| match ids.iter().find(|&&id| id as usize >= vocab_size) {
                Some(id) => {
                    Err(ApiError::param("tokens", format!("token id must be below {vocab_size}, got {id}")))
                }
                None => app.model.tokenizer.decode(ids).map_err(|error| ApiError::refused(&error, "tokens")),
            };
            let text = match &request.tokens {
                TokenIds::One(ids) => OneOrMany::One(text(ids)?),
                TokenIds::Many(lists) => OneOrMany::Many(lists.iter().map(text).collect::<Result<_, _>>()?),
            };
            Ok(json(&Detokenized { text }))
        })
        .await
}
