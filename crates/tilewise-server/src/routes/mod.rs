//! One file per endpoint.

mod abort_request;
mod chat;
mod completions;
mod detokenize;
mod embeddings;
mod flush_cache;
mod generate;
mod health;
mod loads;
mod messages;
mod metrics;
mod model_info;
mod models;
mod ollama;
mod openapi;
pub(crate) mod page;
pub(crate) mod responses;
mod server_info;
mod tokenize;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use hyper::StatusCode;

use crate::error::ApiError;
use crate::gate::gate;
use crate::state::App;

/// All endpoints.
pub(crate) fn router(app: Arc<App>) -> Router {
    let parts =
        page::PARTS.iter().fold(Router::new(), |router, (path, _)| router.route(path, get(page::part)));
    parts
        .route("/", get(page::page))
        .route("/health", get(health::health))
        .route("/health_generate", get(health::health_generate))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::openapi))
        .route("/v1/models", get(models::models))
        .route("/v1/models/", get(models::models))
        .route("/v1/models/{*model}", get(models::model))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/responses", post(responses::responses))
        .route("/v1/messages", post(messages::messages))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::ps))
        .route("/api/show", post(ollama::show))
        .route("/api/version", get(ollama::version))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/generate", post(generate::generate))
        .route("/model_info", get(model_info::model_info))
        .route("/get_model_info", get(model_info::model_info))
        .route("/server_info", get(server_info::server_info))
        .route("/get_server_info", get(server_info::server_info))
        .route("/v1/loads", get(loads::loads))
        .route("/get_load", get(loads::get_load))
        .route("/flush_cache", post(flush_cache::flush_cache))
        .route("/abort_request", post(abort_request::abort_request))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(detokenize::detokenize))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "there is no such endpoint"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "the endpoint has no such method")
        })
        .layer(from_fn_with_state(app.clone(), gate))
        .with_state(app)
}
