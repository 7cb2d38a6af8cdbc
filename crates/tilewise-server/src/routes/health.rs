//! Whether the server takes requests.

use std::sync::Arc;

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

/// Generates a token: 200 if that works.
#[utoipa::path(get, path = "/health_generate", tag = "server", responses((status = 200)))]
pub(crate) async fn health_generate(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    let room = app.admit(1)?;
    let ask = Ask { request: GenerateRequest::new(vec![0], 1), stop: Vec::new(), form: None };
    let mut generation = Generation::start(&app, ask, room, "health", "prompt").await?;
    while let Some(news) = std::future::poll_fn(|cx| generation.poll_next(cx)).await {
        news?;
    }
    Ok(StatusCode::OK)
}
