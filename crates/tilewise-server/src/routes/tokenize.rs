//! Texts to token ids.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::body::{Json, json};
use crate::error::ApiError;
use crate::fields::OneOrMany;
use crate::prompt::encode;
use crate::state::App;

/// What is turned into tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeRequest {
    model: Option<String>,
    /// A text, or several.
    prompt: OneOrMany<String>,
    /// Whether the tokens that stand around every text are added; true unless given.
    add_special_tokens: Option<bool>,
}

/// The tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tokenized {
    /// Of a text, or of each.
    tokens: OneOrMany<OneOrMany<u32>>,
    count: OneOrMany<usize>,
    char_count: OneOrMany<usize>,
    /// Tokens of a prompt and what follows it.
    max_model_len: usize,
}

/// The token ids of a text.
#[utoipa::path(
    post, path = "/tokenize", tag = "text", request_body = TokenizeRequest,
    responses((status = 200, body = Tokenized))
)]
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    Json(request): Json<TokenizeRequest>,
) -> Result<Response, ApiError> {
    app.check_model(request.model.as_deref())?;
    let special = request.add_special_tokens.unwrap_or(true);
    let max_model_len = app.model.config.max_positions;
    let worker = app.clone();
    worker
        .prepare_alone(move || {
            let ids = |text: &String| encode(&app, text, special, "prompt");
            Ok(json(&match &request.prompt {
                OneOrMany::One(text) => {
                    let ids = ids(text)?;
                    let (count, char_count) =
                        (OneOrMany::One(ids.len()), OneOrMany::One(text.chars().count()));
                    Tokenized {
                        tokens: OneOrMany::One(OneOrMany::Many(ids)),
                        count,
                        char_count,
                        max_model_len,
                    }
                }
                OneOrMany::Many(texts) => {
                    let lists = texts.iter().map(ids).collect::<Result<Vec<_>, _>>()?;
                    Tokenized {
                        count: OneOrMany::Many(lists.iter().map(Vec::len).collect()),
                        char_count: OneOrMany::Many(texts.iter().map(|text| text.chars().count()).collect()),
                        tokens: OneOrMany::Many(lists.into_iter().map(OneOrMany::Many).collect()),
                        max_model_len,
                    }
                }
            }))
        })
        .await
}
