//! What every request passes: its name, who may come in, and what is written of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use hyper::{Method, StatusCode, Version};

use crate::connection::Client;
use crate::error::{ApiError, Dialect};
use crate::keys::{self, Tenant};
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

/// The methods that are told apart.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

tokio::task_local! {
    static CURRENT: Current;
}

/// The request that is being answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Current {
    pub(crate) name: String,
    /// Who asks.
    pub(crate) tenant: Tenant,
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
    // Anything may be called a method, and everything is written down.
    let method_name = if METHODS.contains(&method) { method.as_str() } else { "OTHER" };
    let client = request.extensions().get::<Client>().map(|client| client.0.to_string()).unwrap_or_default();
    let (trace, parent) = trace(&app, request.headers());
    let usage = Arc::<SpanUsage>::default();
    let origin = sites::allowed_origin(&app.config, request.headers());
    let dialect = Dialect::of(request.uri().path());
    let mut response = match sites::preflight(&app.config, &method, request.headers()) {
        Some(response) => response,
        None => match admit(&app, &request) {
            Ok(tenant) => {
                let current =
                    Current { name: name.clone(), tenant, trace: trace.clone(), usage: usage.clone() };
                dialect.errors_of(CURRENT.scope(current, next.run(request)).await)
            }
            Err(error) => dialect.errors_of(error.into_response()),
        },
    };
    let status = response.status().as_u16();
    app.metrics.answer(&route, status);
    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
    if method == Method::GET && status < 400 && POLLED.contains(&route.as_str()) {
        tracing::debug!(
            request = name,
            client,
            method = method_name,
            route,
            status,
            milliseconds,
            "answered"
        );
    } else {
        tracing::info!(request = name, client, method = method_name, route, status, milliseconds, "answered");
    }
    if let (Some(tracer), Some(context)) = (app.tracer.clone(), trace) {
        let attributes = vec![
            ("http.request.method", method_name.into()),
            ("http.route", route.as_str().into()),
            ("http.response.status_code", status.into()),
            ("tilewise.request", name.as_str().into()),
        ];
        let span = Span {
            context,
            parent,
            name: format!("{method_name} {route}"),
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
fn admit(app: &App, request: &Request) -> Result<Tenant, ApiError> {
    check_form(request)?;
    sites::check(&app.config, request.headers())?;
    let tenant = check_key(app, request)?;
    if keys::is_administration(request.uri().path()) {
        check_administrator(app, &tenant)?;
    }
    Ok(tenant)
}

/// Refuses what shows the work of all, or ends it, to whoever has a key for his own alone.
///
/// # Errors
/// 403.
pub(crate) fn check_administrator(app: &App, tenant: &Tenant) -> Result<(), ApiError> {
    if tenant.may_administer(&app.config) {
        return Ok(());
    }
    let message = "this needs the administrator's API key (--admin-api-key)";
    Err(ApiError::new(StatusCode::FORBIDDEN, message).code("forbidden"))
}

/// Refuses what servers read differently: a request without a host, and a body in a code that nobody takes off.
///
/// # Errors
/// 400, 501.
fn check_form(request: &Request) -> Result<(), ApiError> {
    if request.version() == Version::HTTP_11 && !request.headers().contains_key(HOST) {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "the header host is missing").closing());
    }
    let codings = request.headers().get_all(TRANSFER_ENCODING);
    if codings.iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        let message = "transfer-encoding may be chunked alone";
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, message).closing());
    }
    Ok(())
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

fn check_key(app: &App, request: &Request) -> Result<Tenant, ApiError> {
    if !app.config.asks_for_keys() {
        return Ok(Tenant::default());
    }
    let path = request.uri().path();
    let is_open = OPEN.contains(&path) || page::PARTS.iter().any(|(part, _)| *part == path);
    if [Method::GET, Method::HEAD].contains(request.method()) && is_open {
        return Ok(Tenant::default());
    }
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    // A scheme has no case; Anthropic's clients have a header of their own.
    let bearer = header(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    let given: Vec<&str> = [bearer, header(API_KEY)].into_iter().flatten().collect();
    let wrong = "the API key is missing or wrong";
    let refuse = || ApiError::new(StatusCode::UNAUTHORIZED, wrong).code("invalid_api_key");
    app.config.tenant(&given).ok_or_else(refuse)
}
