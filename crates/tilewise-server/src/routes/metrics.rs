//! Counts for Prometheus.

use std::fmt::Write;
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
    let mut text = app.metrics.write(&app.config.served_model_name, &app.worker.snapshot());
    if let Some(lost) = app.lost_lines.get() {
        _ = writeln!(
            text,
            "# HELP tilewise:log_lines_lost_total Lines of the log that could not be written.\n\
             # TYPE tilewise:log_lines_lost_total counter\ntilewise:log_lines_lost_total {}",
            lost()
        );
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
