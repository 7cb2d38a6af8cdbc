//! Traces for OpenTelemetry: a span per request and one per generation, by OTLP over HTTP in JSON.
//!
//! The form is a few fields, so it is written here: the usual crates bring an HTTP client, gRPC and Protocol Buffers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use url::Url;

use crate::ServerError;

/// Spans that wait to be sent; further ones are lost.
const WAITING: usize = 4096;

/// Spans of a message, and how long they are collected.
const TOGETHER: usize = 512;
const COLLECTING: Duration = Duration::from_secs(1);

/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a span belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TraceContext {
    /// 32 hexadecimal digits.
    pub(crate) trace: String,
    /// 16 of them: the span that is the parent of others.
    pub(crate) span: String,
}

impl TraceContext {
    /// That of a `traceparent` (W3C Trace Context), unless it says that nobody records; `Err` for one that means nothing.
    pub(crate) fn parse(header: &str) -> Result<Option<Self>, ()> {
        let mut parts = header.split('-');
        let (Some("00"), Some(trace), Some(span), Some(flags), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(());
        };
        let is_hex = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let is_zero = |text: &str| text.bytes().all(|b| b == b'0');
        if !(is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2)) || is_zero(trace) || is_zero(span) {
            return Err(());
        }
        let is_recorded = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
        Ok(is_recorded.then(|| Self { trace: trace.to_owned(), span: span.to_owned() }))
    }
}

/// Something that took time.
#[derive(Debug)]
pub(crate) struct Span {
    /// Its own name and its trace's.
    pub(crate) context: TraceContext,
    pub(crate) parent: Option<String>,
    pub(crate) name: String,
    pub(crate) kind: SpanKind,
    /// How long ago it began; it ends now.
    pub(crate) duration: Duration,
    pub(crate) attributes: Vec<(&'static str, Value)>,
    pub(crate) is_error: bool,
}

/// Whose work a span is, by the numbers of the protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SpanKind {
    Internal = 1,
    Server = 2,
}

/// What the generations of a request took together.
#[derive(Debug, Default)]
pub(crate) struct SpanUsage {
    prompt_tokens: AtomicUsize,
    completion_tokens: AtomicUsize,
    cached_tokens: AtomicUsize,
    has_failed: AtomicBool,
}

impl SpanUsage {
    /// Adds a generation that is over.
    pub(crate) fn add(&self, prompt: usize, completion: usize, cached: usize, has_failed: bool) {
        self.prompt_tokens.fetch_add(prompt, Ordering::Relaxed);
        self.completion_tokens.fetch_add(completion, Ordering::Relaxed);
        self.cached_tokens.fetch_add(cached, Ordering::Relaxed);
        self.has_failed.fetch_or(has_failed, Ordering::Relaxed);
    }
}

/// The span of a request, which ends and is sent when this is dropped.
pub(crate) struct RequestSpan {
    pub(crate) tracer: Tracer,
    /// All that is known with the head of the answer.
    pub(crate) span: Span,
    pub(crate) started: Instant,
    pub(crate) usage: Arc<SpanUsage>,
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        let span = &mut self.span;
        let of = |tokens: &AtomicUsize| tokens.load(Ordering::Relaxed);
        let SpanUsage { prompt_tokens, completion_tokens, cached_tokens, has_failed } = &*self.usage;
        if of(prompt_tokens) > 0 {
            span.attributes.extend([
                ("gen_ai.usage.input_tokens", of(prompt_tokens).into()),
                ("gen_ai.usage.output_tokens", of(completion_tokens).into()),
                ("tilewise.cached_tokens", of(cached_tokens).into()),
            ]);
        }
        span.is_error |= has_failed.load(Ordering::Relaxed);
        span.duration = self.started.elapsed();
        self.tracer.send(span);
    }
}

/// The body of an answer: its span ends with its last byte, or when nobody takes any more of it.
pub(crate) struct Spanned {
    /// Dropped first, and with it the generations that the span counts.
    pub(crate) body: Body,
    pub(crate) _span: RequestSpan,
}

impl HttpBody for Spanned {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

enum Message {
    Span(Box<Value>),
    Flush(oneshot::Sender<()>),
}

/// Sends spans to a collector.
#[derive(Debug, Clone)]
pub(crate) struct Tracer(mpsc::Sender<Message>);

impl Tracer {
    /// Starts to send to a collector.
    ///
    /// # Errors
    /// As [`endpoint`].
    pub(crate) fn start(address: &str, service: &str) -> Result<Self, ServerError> {
        let url = endpoint(address)?;
        let (sender, received) = mpsc::channel(WAITING);
        tokio::spawn(export(url, service.to_owned(), received));
        Ok(Self(sender))
    }

    /// Sends a span soon; it is lost when the collector is too slow.
    pub(crate) fn send(&self, span: &Span) {
        let _ = self.0.try_send(Message::Span(Box::new(span.to_json())));
    }

    /// Waits until all that was sent before is with the collector, or was refused.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.0.send(Message::Flush(done)).await.is_ok() {
            let _ = tokio::time::timeout(PATIENCE, flushed).await;
        }
    }
}

/// Where a collector takes traces.
///
/// # Errors
/// [`ServerError::Config`] for what is no address of one.
pub(crate) fn endpoint(address: &str) -> Result<Url, ServerError> {
    let refuse = || {
        ServerError::Config(format!(
            "{address:?} is no address of a collector, such as http://127.0.0.1:4318"
        ))
    };
    let mut url = Url::parse(address).map_err(|_| refuse())?;
    if url.scheme() != "http" || url.host_str().is_none() {
        return Err(refuse());
    }
    if url.path() == "/" {
        url.set_path("/v1/traces");
    }
    Ok(url)
}

impl Span {
    fn to_json(&self) -> Value {
        let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let attribute = |(key, value): &(&str, Value)| {
            // 64-bit integers are text.
            let value = match value {
                Value::String(text) => json!({ "stringValue": text }),
                Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
                other => json!({ "intValue": other.to_string() }),
            };
            json!({ "key": key, "value": value })
        };
        json!({
            "traceId": self.context.trace,
            "spanId": self.context.span,
            "parentSpanId": self.parent.as_deref().unwrap_or_default(),
            "name": self.name,
            "kind": self.kind as u8,
            "startTimeUnixNano": end.saturating_sub(self.duration).as_nanos().to_string(),
            "endTimeUnixNano": end.as_nanos().to_string(),
            "attributes": self.attributes.iter().map(attribute).collect::<Vec<_>>(),
            "status": if self.is_error { json!({ "code": 2 }) } else { json!({}) },
        })
    }
}

/// Sends what comes, some of it together.
async fn export(url: Url, service: String, mut received: mpsc::Receiver<Message>) {
    let mut is_lost = false;
    while let Some(first) = received.recv().await {
        let (mut spans, mut flushed) = (Vec::new(), Vec::new());
        let mut take = |message| match message {
            Message::Span(span) => spans.push(*span),
            Message::Flush(done) => flushed.push(done),
        };
        let is_flush = matches!(first, Message::Flush(_));
        take(first);
        let until = tokio::time::Instant::now() + if is_flush { Duration::ZERO } else { COLLECTING };
        for _ in 0..TOGETHER {
            match tokio::time::timeout_at(until, received.recv()).await {
                Ok(Some(message)) => {
                    let is_flush = matches!(message, Message::Flush(_));
                    take(message);
                    if is_flush {
                        break;
                    }
                }
                _ => break,
            }
        }
        if !spans.is_empty() {
            let sent = tokio::time::timeout(PATIENCE, post(&url, &traces(&service, &spans))).await;
            let is_sent = matches!(sent, Ok(Ok(true)));
            if !is_sent && !is_lost {
                tracing::warn!("the collector does not take traces");
            }
            is_lost = !is_sent;
        }
        // Whoever waited may have gone.
        for done in flushed {
            let _ = done.send(());
        }
    }
}

/// What a collector takes.
fn traces(service: &str, spans: &[Value]) -> impl Serialize {
    let name = json!({ "key": "service.name", "value": { "stringValue": service } });
    let scope = json!({ "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") });
    json!({
        "resourceSpans": [{
            "resource": { "attributes": [name] },
            "scopeSpans": [{ "scope": scope, "spans": spans }],
        }],
    })
}

/// Posts JSON; whether it was taken.
async fn post(url: &Url, body: &impl Serialize) -> std::io::Result<bool> {
    let body = serde_json::to_string(body)?;
    let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(80));
    let mut stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        url.path(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut status = [0; 12];
    stream.read_exact(&mut status).await?;
    Ok(status.starts_with(b"HTTP/1.1 2") || status.starts_with(b"HTTP/1.0 2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_whole_or_not_at_all() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let context = Some(TraceContext { trace: trace.to_owned(), span: span.to_owned() });
        assert_eq!(TraceContext::parse(&format!("00-{trace}-{span}-01")), Ok(context));
        assert_eq!(TraceContext::parse(&format!("00-{trace}-{span}-00")), Ok(None));
        for wrong in ["", "00", &format!("01-{trace}-{span}-01"), &format!("00-{trace}-{span}-01-x")] {
            assert_eq!(TraceContext::parse(wrong), Err(()), "{wrong}");
        }
        let zero = "0".repeat(32);
        for wrong in [format!("00-{zero}-{span}-01"), format!("00-{}-{span}-01", trace.to_uppercase())] {
            assert_eq!(TraceContext::parse(&wrong), Err(()), "{wrong}");
        }
    }

    #[test]
    fn a_collector_is_reached_by_http() {
        assert_eq!(endpoint("http://localhost:4318").unwrap().as_str(), "http://localhost:4318/v1/traces");
        assert_eq!(endpoint("http://[::1]:4318/x").unwrap().as_str(), "http://[::1]:4318/x");
        for wrong in ["localhost:4318", "https://localhost", "grpc://localhost", ""] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
