//! Ending requests from outside.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::body::{Json, json};
use crate::error::ApiError;
use crate::gate::{Current, check_administrator};
use crate::state::App;

/// Which requests end.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AbortRequest {
    /// Those of this name: the `rid` that they were sent with, or the `id` of their answer.
    rid: Option<String>,
    /// All.
    abort_all: Option<bool>,
}

/// What was done.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Aborted {
    /// Requests that ended.
    aborted: usize,
}

/// Ends requests; their answers say `abort`.
#[utoipa::path(
    post, path = "/abort_request", tag = "sglang", request_body = AbortRequest,
    responses((status = 200, body = Aborted))
)]
pub(crate) async fn abort_request(
    State(app): State<Arc<App>>,
    Json(request): Json<AbortRequest>,
) -> Result<Response, ApiError> {
    let tenant = Current::get().tenant;
    let name = match (&request.rid, request.abort_all.unwrap_or(false)) {
        (Some(rid), false) if !rid.is_empty() => Some(tenant.own(rid)),
        (None, true) => {
            check_administrator(&app, &tenant)?;
            None
        }
        _ => return Err(ApiError::param("rid", "either rid or abort_all must be given")),
    };
    Ok(json(&Aborted { aborted: app.abort(name.as_deref()) }))
}
