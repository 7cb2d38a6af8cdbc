//! Counts for Prometheus.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;

use crate::state::App;

/// Counts in the text format of Prometheus, under the names of SGLang and of vLLM.
#[utoipa::path(
    get, path = "/metrics", tag = "server",
    responses((status = 200, body = String, content_type = "text/plain; version=0.0.4"))
)]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.write(&app.config.served_model_name, &app.worker.snapshot());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
