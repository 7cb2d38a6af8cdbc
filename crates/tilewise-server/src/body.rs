//! Bodies: of bounded size, in bounded time, of JSON that is what the endpoint takes.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{ApiError, Dialect};
use crate::preparing::Held;
use crate::state::App;

/// A request's JSON of few fields. What is null counts as left out, whatever its name.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let mut value = value(request, app).await?;
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        serde_path_to_error::deserialize(value).map(Self).map_err(|error| {
            let path = error.path().to_string();
            let path = if path == "." || path == "?" { String::new() } else { path };
            field_error("", &path, &error.inner().to_string())
        })
    }
}

/// The value that is a request's body.
///
/// # Errors
/// 400, 408, 413 or 415 for a body that is no JSON or takes too much room or time.
pub(crate) async fn value(request: Request, app: &App) -> Result<Value, ApiError> {
    require_json(&request)?;
    let (bytes, _held) = read(request, app).await?;
    // Deeper nesting than 128 is an error of the reader.
    serde_json::from_slice(&bytes).map_err(|error| no_json(&error.to_string()))
}

/// A browser sends other types across sites without asking whether it may. Ollama's users send none, by `curl -d`, which
/// says neither where it comes from nor what kind of site that is.
fn require_json(request: &Request) -> Result<(), ApiError> {
    let is_browser =
        ["origin", "sec-fetch-site", "referer"].iter().any(|name| request.headers().contains_key(*name));
    if !is_browser && Dialect::of(request.uri().path()) == Dialect::Ollama {
        return Ok(());
    }
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let media = kind.split(';').next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "the body must be JSON: send the header content-type: application/json";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).closing())
}

async fn read(request: Request, app: &App) -> Result<(Bytes, Held), ApiError> {
    let limits = &app.config.limits;
    let too_large = || {
        let message = format!("the body has more than {} bytes", limits.body_bytes);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).closing()
    };
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > limits.body_bytes as u64) {
        return Err(too_large());
    }
    let mut body = Limited::new(request.into_body(), limits.body_bytes);
    let whole = async {
        let (mut whole, mut held) = (BytesMut::new(), Held::default());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                true => too_large(),
                false => ApiError::new(StatusCode::BAD_REQUEST, "the body ended early").closing(),
            })?;
            // Trailers are no part of it.
            if let Ok(data) = frame.into_data() {
                app.preparing.hold(&mut held, data.len())?;
                whole.extend_from_slice(&data);
            }
        }
        Ok((whole.freeze(), held))
    };
    let late = || ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive").closing();
    tokio::time::timeout(limits.body_time, whole).await.unwrap_or_else(|_| Err(late()))
}

fn no_json(message: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, format!("the body is no JSON: {message}")).code("invalid_json")
}

/// An error of the reader at `path` below `prefix`, without the place in the text and without the list of all fields.
pub(crate) fn field_error(prefix: &str, path: &str, message: &str) -> ApiError {
    let message = message.split(" at line ").next().unwrap_or_default();
    let full = format!("{prefix}{path}");
    if let Some(rest) = message.strip_prefix("unknown field `") {
        let name = rest.split('`').next().unwrap_or_default();
        let full = if path.is_empty() { format!("{prefix}{name}") } else { full };
        return ApiError::param(&full, format!("there is no field {name:?}")).code("unknown_field");
    }
    if let Some(name) = message.strip_prefix("missing field `").map(|rest| rest.trim_end_matches('`')) {
        let full = if path.is_empty() { format!("{prefix}{name}") } else { format!("{full}.{name}") };
        return ApiError::param(&full, format!("{full} is missing")).code("missing_field");
    }
    ApiError::param(&full, format!("{full}: {message}"))
}

/// An answer as JSON.
pub(crate) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let mut response = Response::new(body.into());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(_) => ApiError::internal("the answer could not be written").into_response(),
    }
}
