//! What the model is, as an SGLang worker tells it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::body::json;
use crate::state::App;

/// What the model is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelInfo {
    /// The served name: paths are nobody else's business.
    model_path: String,
    tokenizer_path: String,
    is_generation: bool,
    model_type: String,
    architectures: Vec<String>,
    max_context_length: usize,
    vocab_size: usize,
    /// Those of the model, which count where a request says nothing.
    preferred_sampling_params: PreferredParams,
}

/// Sampling parameters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PreferredParams {
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition_penalty: Option<f32>,
}

/// What the model is.
#[utoipa::path(get, path = "/model_info", tag = "sglang", responses((status = 200, body = ModelInfo)))]
pub(crate) async fn model_info(State(app): State<Arc<App>>) -> Response {
    let (config, defaults) = (&app.model.config, &app.model.defaults);
    json(&ModelInfo {
        model_path: app.config.served_model_name.clone(),
        tokenizer_path: app.config.served_model_name.clone(),
        is_generation: true,
        model_type: config.family.model_type.to_owned(),
        architectures: vec![config.family.architecture.to_owned()],
        max_context_length: config.max_positions,
        vocab_size: config.vocab_size,
        preferred_sampling_params: PreferredParams {
            temperature: defaults.temperature,
            top_k: defaults.top_k,
            top_p: defaults.top_p,
            min_p: defaults.min_p,
            repetition_penalty: defaults.repetition_penalty,
        },
    })
}
