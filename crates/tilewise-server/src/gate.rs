//! What every request passes: its name, who may come in, and what is written of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use hyper::{Method, StatusCode};
use subtle::ConstantTimeEq;

use crate::error::ApiError;
use crate::routes::page;
use crate::state::App;
use crate::trace::{RequestSpan, Span, SpanKind, SpanUsage, Spanned, TraceContext};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Characters of a request's name that a client may choose.
const NAME_LENGTH: usize = 128;

/// What shows nothing of the model and makes it do nothing.
const OPEN: [&str; 4] = ["/", "/health", "/openapi.json", "/favicon.ico"];

tokio::task_local! {
    static CURRENT: Current;
}

/// The request that is being answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Current {
    pub(crate) name: String,
    /// Its span, where it is recorded.
    pub(crate) trace: Option<TraceContext>,
    /// What its generations took, once they are over.
    pub(crate) usage: Arc<SpanUsage>,
}

impl Current {
    /// That of this task.
    pub(crate) fn get() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_default()
    }
}

/// Names a request, lets it in or not, and writes a line and a count of its answer.
pub(crate) async fn gate(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let name = chosen_name(request.headers()).unwrap_or_else(|| app.new_name("req-"));
    // Paths that nobody serves are counted as one.
    let route = request.extensions().get::<MatchedPath>().map_or("other", |path| path.as_str()).to_owned();
    let method = request.method().clone();
    let (trace, parent) = trace(&app, request.headers());
    let usage = Arc::<SpanUsage>::default();
    let current = Current { name: name.clone(), trace: trace.clone(), usage: usage.clone() };
    let admitted = check_site(&app, request.headers()).and_then(|()| check_key(&app, &request));
    let mut response = match admitted {
        Ok(()) => CURRENT.scope(current, next.run(request)).await,
        Err(error) => error.into_response(),
    };
    let status = response.status().as_u16();
    app.metrics.answer(&route, status);
    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
    tracing::info!(request = name, %method, route, status, milliseconds, "answered");
    if let (Some(tracer), Some(context)) = (app.tracer.clone(), trace) {
        let attributes = vec![
            ("http.request.method", method.as_str().into()),
            ("http.route", route.as_str().into()),
            ("http.response.status_code", status.into()),
            ("tilewise.request", name.as_str().into()),
        ];
        let span = Span {
            context,
            parent,
            name: format!("{method} {route}"),
            kind: SpanKind::Server,
            duration: Duration::ZERO,
            attributes,
            is_error: status >= 500,
        };
        let span = RequestSpan { tracer, span, started, usage };
        response = response.map(|body| Body::new(Spanned { body, _span: span }));
    }
    if let Ok(name) = HeaderValue::from_str(&name) {
        response.headers_mut().insert(REQUEST_ID, name);
    }
    response
}

/// The span of a request, where it is recorded, and its parent's.
fn trace(app: &App, headers: &HeaderMap) -> (Option<TraceContext>, Option<String>) {
    if app.tracer.is_none() {
        return (None, None);
    }
    let header = headers.get("traceparent").and_then(|header| header.to_str().ok());
    let span = app.new_span();
    match header.map(TraceContext::parse) {
        Some(Ok(None)) => (None, None),
        Some(Ok(Some(parent))) => (Some(TraceContext { trace: parent.trace, span }), Some(parent.span)),
        Some(Err(())) | None => (Some(TraceContext { trace: app.new_name(""), span }), None),
    }
}

/// The name that a client gave, if it can be written into a log and a header.
fn chosen_name(headers: &HeaderMap) -> Option<String> {
    let name = headers.get(REQUEST_ID)?.to_str().ok()?;
    let is_plain =
        !name.is_empty() && name.len() <= NAME_LENGTH && name.bytes().all(|b| b.is_ascii_graphic());
    is_plain.then(|| name.to_owned())
}

/// Refuses what a page of another site has a browser send. Without a key, that includes names that such a site has made
/// point here.
fn check_site(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let forbidden = |why: &str| Err(ApiError::new(StatusCode::FORBIDDEN, why).code("forbidden"));
    if let Some(origin) = headers.get(ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let site = origin.split_once("://").map_or(origin, |(_, site)| site);
        if !site.eq_ignore_ascii_case(host) {
            return forbidden("requests from the pages of other sites are not served");
        }
    }
    let is_guarded = app.config.api_key.is_some() || app.config.insecure;
    if is_guarded || host.is_empty() || is_this_machine(host) {
        return Ok(());
    }
    forbidden("without an API key, this machine is served by its address or as localhost alone")
}

fn is_this_machine(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let name = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}

fn check_key(app: &App, request: &Request) -> Result<(), ApiError> {
    let Some(key) = &app.config.api_key else { return Ok(()) };
    let path = request.uri().path();
    let is_open = OPEN.contains(&path) || page::PARTS.iter().any(|(part, _)| *part == path);
    if [Method::GET, Method::HEAD].contains(request.method()) && is_open {
        return Ok(());
    }
    let given =
        request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = given.strip_prefix("Bearer ").unwrap_or_default();
    // The time that this takes depends on the length of the key alone.
    if bool::from(key.as_bytes().ct_eq(given.as_bytes())) {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "the API key is missing or wrong").code("invalid_api_key"))
}
