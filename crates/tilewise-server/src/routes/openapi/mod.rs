//! The description of all endpoints, generated from their types.

mod bounds;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::Value;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi as _};

use super::{
    abort_request, chat, completions, detokenize, embeddings, flush_cache, generate, health, loads, messages,
    metrics, model_info, models, ollama, responses, server_info, tokenize,
};
use crate::body::json;
use crate::error::{Dialect, ErrorBody, OllamaError};
use crate::state::App;

/// The description as it is derived.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Tilewise", description = "OpenAI's, Anthropic's and Ollama's protocols, and that of an SGLang worker."),
    paths(
        health::health, health::health_generate, models::models, models::model, chat::chat, completions::completions,
        responses::responses, messages::messages, messages::count_tokens, ollama::chat, ollama::generate,
        ollama::tags, ollama::ps, ollama::show, ollama::version, embeddings::embeddings, generate::generate, model_info::model_info,
        server_info::server_info, loads::loads, loads::get_load, flush_cache::flush_cache,
        abort_request::abort_request, tokenize::tokenize, detokenize::detokenize, metrics::metrics,
        openapi,
    ),
    components(schemas(ErrorBody, OllamaError, chat::ChatChunk)),
    modifiers(&Common),
    security(("key" = []))
)]
struct Description;

/// What all endpoints have in common.
struct Common;

/// Statuses of errors, and what they mean.
const ERRORS: [(&str, &str); 5] = [
    ("401", "The API key is missing or wrong"),
    ("403", "Sent by the page of another site"),
    ("405", "The endpoint has no such method"),
    ("431", "The head is too large"),
    ("503", "The model is loading or has failed, or the server ends; see Retry-After"),
];

/// More of them, where there is a body.
const BODY_ERRORS: [(&str, &str); 7] = [
    ("400", "A field is wrong; `param` names it"),
    ("404", "There is no such model"),
    ("408", "The body took too long, or the answer was not read"),
    ("413", "The body is too large"),
    ("415", "The body is no JSON"),
    ("429", "Too much to do; see Retry-After"),
    ("500", "The server's own fault"),
];

/// Endpoints that stream where they are asked to.
const STREAMS: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/generate"];

impl Modify for Common {
    fn modify(&self, description: &mut OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        let components = description.components.get_or_insert_default();
        components.security_schemes.insert("key".to_owned(), scheme.into());
        for (name, path) in &mut description.paths.paths {
            let schema = if Dialect::of(name) == Dialect::Ollama { "OllamaError" } else { "ErrorBody" };
            path.get.iter_mut().chain(&mut path.post).for_each(|operation| add_errors(operation, schema));
            if STREAMS.contains(&name.as_str()) {
                path.post.iter_mut().for_each(add_stream);
            }
        }
    }
}

fn add_errors(operation: &mut Operation, schema: &str) {
    let more: &[_] = if operation.request_body.is_some() { &BODY_ERRORS } else { &[] };
    for (status, meaning) in ERRORS.iter().chain(more) {
        let schema = RefOr::Ref(Ref::from_schema_name(schema));
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let response =
            ResponseBuilder::new().description(*meaning).content("application/json", content).build();
        operation.responses.responses.entry((*status).to_owned()).or_insert(response.into());
    }
}

fn add_stream(operation: &mut Operation) {
    if let Some(RefOr::T(response)) = operation.responses.responses.get_mut("200") {
        // Readers of the description do not agree on whether its type is that of the text or of an event.
        let content = ContentBuilder::new().build();
        response.content.insert("text/event-stream".to_owned(), content.into());
    }
}

/// Says that a value is of any of several types, not of exactly one: an empty list is a list of anything.
fn any_of(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(types) = fields.remove("oneOf") {
                fields.insert("anyOf".to_owned(), types);
            }
            fields.values_mut().for_each(any_of);
        }
        Value::Array(values) => values.iter_mut().for_each(any_of),
        _ => {}
    }
}

/// The description of all endpoints.
#[utoipa::path(get, path = "/openapi.json", tag = "server", responses((status = 200)), security(()))]
pub(crate) async fn openapi(State(app): State<Arc<App>>) -> Response {
    let mut description = serde_json::to_value(Description::openapi()).unwrap_or_default();
    any_of(&mut description);
    bounds::add(&mut description, &app);
    json(&description)
}
