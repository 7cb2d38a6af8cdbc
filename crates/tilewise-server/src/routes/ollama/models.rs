//! The model that is served, in Ollama's words.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::check_model;
use super::request::ShowRequest;
use crate::body::json as answer;
use crate::error::ApiError;
use crate::request::Body;
use crate::state::App;

/// Bytes of a weight where the model does not say it.
const WEIGHT: usize = 2;

/// The models there are.
#[utoipa::path(get, path = "/api/tags", tag = "ollama", responses((status = 200)))]
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Response {
    let made = UNIX_EPOCH + Duration::from_secs(app.created);
    let mut model = card(&app);
    model["modified_at"] = humantime::format_rfc3339_seconds(made).to_string().into();
    answer(&json!({ "models": [model] }))
}

/// The models that are loaded.
#[utoipa::path(get, path = "/api/ps", tag = "ollama", responses((status = 200)))]
pub(crate) async fn ps(State(app): State<Arc<App>>) -> Response {
    let mut model = card(&app);
    // It stays loaded for as long as the server runs.
    model["expires_at"] = "9999-12-31T23:59:59Z".into();
    model["size_vram"] = 0.into();
    model["context_length"] = app.max_tokens().into();
    answer(&json!({ "models": [model] }))
}

/// What a model is.
#[utoipa::path(
    post, path = "/api/show", tag = "ollama", request_body = ShowRequest, responses((status = 200))
)]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Body(request, ignored): Body<ShowRequest>,
) -> Result<Response, ApiError> {
    let fields = &request.fields;
    check_model(&app, fields.model.as_deref().or(fields.name.as_deref()))?;
    let config = &app.model.config;
    let template = app.model.tokenizer.chat_template().ok();
    let mut capabilities = vec!["completion"];
    if app.model.format.reads_calls {
        capabilities.push("tools");
    }
    if app.model.format.reasoning.is_some() {
        capabilities.push("thinking");
    }
    let family = config.family.model_type;
    let described = json!({
        "modelfile": "", "license": "",
        "parameters": parameters(&app),
        "template": template.map(|template| template.source()).unwrap_or_default(),
        "details": details(&app),
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": config.num_parameters(),
            format!("{family}.context_length"): config.max_positions,
            format!("{family}.embedding_length"): config.hidden_size,
            format!("{family}.block_count"): config.num_layers,
            format!("{family}.attention.head_count"): config.num_qo_heads,
            format!("{family}.attention.head_count_kv"): config.num_kv_heads,
        },
        "capabilities": capabilities,
    });
    Ok(ignored.name_in(answer(&described)))
}

/// The version of this program.
#[utoipa::path(get, path = "/api/version", tag = "ollama", responses((status = 200)))]
pub(crate) async fn version() -> Response {
    answer(&json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// Sampling parameters of the model, a line each.
fn parameters(app: &App) -> String {
    let defaults = &app.model.defaults;
    let line = |name: &str, value: Option<String>| value.map(|value| format!("{name} {value}"));
    let lines = [
        line("temperature", defaults.temperature.map(|value| value.to_string())),
        line("top_k", defaults.top_k.map(|value| value.to_string())),
        line("top_p", defaults.top_p.map(|value| value.to_string())),
        line("min_p", defaults.min_p.map(|value| value.to_string())),
        line("repeat_penalty", defaults.repetition_penalty.map(|value| value.to_string())),
    ];
    lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

fn card(app: &App) -> Value {
    let name = &app.config.served_model_name;
    let bytes =
        app.model.config.num_parameters() * app.model.config.dtype.map_or(WEIGHT, |dtype| dtype.size());
    // Clients only compare it.
    let part = |place: u64| {
        let mut hasher = DefaultHasher::new();
        (place, name, bytes).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    let digest: String = (0..4).map(part).collect();
    json!({ "name": name, "model": name, "size": bytes, "digest": digest, "details": details(app) })
}

fn details(app: &App) -> Value {
    let config = &app.model.config;
    let parameters = config.num_parameters() as f64;
    let size = match parameters {
        count if count >= 1e9 => format!("{:.1}B", count / 1e9),
        count => format!("{:.1}M", count / 1e6),
    };
    let family = config.family.model_type;
    let level = config.dtype.map_or_else(|| "BF16".to_owned(), |dtype| dtype.to_string().to_uppercase());
    json!({
        "parent_model": "", "format": "safetensors", "family": family, "families": [family],
        "parameter_size": size, "quantization_level": level,
    })
}
