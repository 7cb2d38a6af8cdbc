//! What every request passes: its name, who may come in, and what is written of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use subtle::ConstantTimeEq;

use crate::error::{ApiError, Dialect};
use crate::routes::page;
use crate::sites;
use crate::state::App;
use crate::trace::{RequestSpan, Span, SpanKind, SpanUsage, Spanned, TraceContext};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Characters of a request's name that a client may choose.
const NAME_LENGTH: usize = 128;

/// What shows nothing of the model and makes it do nothing.
const OPEN: [&str; 4] = ["/", "/health", "/openapi.json", "/favicon.ico"];

/// What is asked every second or so: by routers, by collectors of metrics and by the page.
const POLLED: [&str; 3] = ["/health", "/metrics", "/v1/loads"];

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
    let origin = sites::allowed_origin(&app.config, request.headers());
    let dialect = Dialect::of(request.uri().path());
    let mut response = match sites::preflight(&app.config, &method, request.headers()) {
        Some(response) => response,
        None => match admit(&app, &request) {
            Ok(()) => dialect.errors_of(CURRENT.scope(current, next.run(request)).await),
            Err(error) => dialect.errors_of(error.into_response()),
        },
    };
    let status = response.status().as_u16();
    app.metrics.answer(&route, status);
    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
    if method == Method::GET && status < 400 && POLLED.contains(&route.as_str()) {
        tracing::debug!(request = name, %method, route, status, milliseconds, "answered");
    } else {
        tracing::info!(request = name, %method, route, status, milliseconds, "answered");
    }
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
    if let Some(origin) = origin {
        sites::allow(origin, &mut response);
    }
    response
}

/// Whether a request comes in.
fn admit(app: &App, request: &Request) -> Result<(), ApiError> {
    sites::check(&app.config, request.headers()).and_then(|()| check_key(app, request))
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

fn check_key(app: &App, request: &Request) -> Result<(), ApiError> {
    let Some(key) = &app.config.api_key else { return Ok(()) };
    let path = request.uri().path();
    let is_open = OPEN.contains(&path) || page::PARTS.iter().any(|(part, _)| *part == path);
    if [Method::GET, Method::HEAD].contains(request.method()) && is_open {
        return Ok(());
    }
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    // A scheme has no case; Anthropic's clients have a header of their own.
    let bearer = header(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    // The time that this takes depends on the length of the key alone.
    let is_right = |given: &str| bool::from(key.as_bytes().ct_eq(given.as_bytes()));
    if [bearer, header(API_KEY)].into_iter().flatten().any(is_right) {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "the API key is missing or wrong").code("invalid_api_key"))
}
