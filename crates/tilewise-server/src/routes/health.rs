//! Whether the server takes requests.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use hyper::StatusCode;
use tilewise_engine::GenerateRequest;

use crate::error::ApiError;
use crate::generation::Generation;
use crate::sampling::Ask;
use crate::state::App;

/// Takes requests: 200; loads, ends or has failed: 503.
#[utoipa::path(get, path = "/health", tag = "server", responses((status = 200)), security(()))]
pub(crate) async fn health(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    app.check_ready().map(|()| StatusCode::OK)
}

/// How long the engine may make no step while something waits for it.
const STALLED: Duration = Duration::from_secs(20);

/// Generates a token, beside the completions that are admitted: 200 if that works, or if the engine does much else
/// meanwhile; 503 if it makes no step.
#[utoipa::path(get, path = "/health_generate", tag = "server", responses((status = 200)))]
pub(crate) async fn health_generate(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    let room = app.admit(0)?;
    let ask = Ask { request: GenerateRequest::new(vec![0], 1), stop: Vec::new(), form: None };
    let mut generation = Generation::start(&app, ask, room, "health", "prompt").await?;
    loop {
        let steps = app.worker.snapshot().steps;
        match tokio::time::timeout(STALLED, std::future::poll_fn(|cx| generation.poll_next(cx))).await {
            Ok(Some(news)) => {
                news?;
            }
            Ok(None) => return Ok(StatusCode::OK),
            Err(_) if app.worker.snapshot().steps != steps => return Ok(StatusCode::OK),
            Err(_) => return Err(ApiError::unavailable("the engine makes no step")),
        }
    }
}
