//! Forgetting cached prefixes.

use std::sync::Arc;

use axum::extract::State;

use crate::error::ApiError;
use crate::state::App;

/// Forgets all cached prefixes that no request holds.
#[utoipa::path(post, path = "/flush_cache", tag = "sglang", responses((status = 200, body = String)))]
pub(crate) async fn flush_cache(State(app): State<Arc<App>>) -> Result<&'static str, ApiError> {
    app.check_ready()?;
    match app.worker.flush_cache().await {
        true => Ok("The cache is flushed.\n"),
        false => Err(ApiError::unavailable("the engine has failed")),
    }
}
