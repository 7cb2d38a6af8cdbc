//! What the server is, as an SGLang worker tells it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use tilewise_engine::chat::SYNTAX;
use utoipa::ToSchema;

use crate::body::json;
use crate::state::App;

/// What the server is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ServerInfo {
    model_path: String,
    served_model_name: String,
    tp_size: u32,
    dp_size: u32,
    version: &'static str,
    context_length: usize,
    /// Tokens that the cache holds; 0 while the model is loading.
    max_total_num_tokens: usize,
    max_running_requests: usize,
    /// How tool calls and reasoning are told from text.
    tool_call_parser: Option<&'static str>,
    reasoning_parser: Option<String>,
}

/// What the server is.
#[utoipa::path(get, path = "/server_info", tag = "sglang", responses((status = 200, body = ServerInfo)))]
pub(crate) async fn server_info(State(app): State<Arc<App>>) -> Response {
    json(&ServerInfo {
        model_path: app.config.served_model_name.clone(),
        served_model_name: app.config.served_model_name.clone(),
        tp_size: 1,
        dp_size: 1,
        version: env!("CARGO_PKG_VERSION"),
        context_length: app.model.config.max_positions,
        max_total_num_tokens: app.worker.snapshot().stats.total_tokens,
        max_running_requests: app.config.max_running,
        tool_call_parser: app.model.format.reads_calls.then_some(SYNTAX),
        reasoning_parser: app.model.format.reasoning.map(|tags| tags.name.to_owned()),
    })
}
