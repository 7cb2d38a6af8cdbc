//! Answers as streams of server-sent events.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde::Serialize;

use crate::error::ApiError;
use crate::state::App;

/// What ends a stream of OpenAI's or SGLang's protocol.
pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// Events are put together up to this size when several are there.
const TOGETHER: usize = 16 << 10;

/// An event without a name.
pub(crate) fn data(value: &impl Serialize) -> String {
    format!("data: {}\n\n", serde_json::to_string(value).unwrap_or_default())
}

/// An event with a name.
pub(crate) fn event(name: &str, value: &impl Serialize) -> String {
    format!("event: {name}\n{}", data(value))
}

/// The event of an error after the first byte.
pub(crate) fn error(error: &ApiError) -> String {
    data(&error.body())
}

/// Makes the events of an answer.
pub(crate) trait Events: Send + 'static {
    /// The next ones, as they are sent; `None` after the last.
    fn next(&mut self) -> impl Future<Output = Option<String>> + Send;
}

/// An answer of these events, with comments where there would be silence for too long.
pub(crate) fn respond(app: &Arc<App>, events: impl Events) -> Response {
    let silence = app.config.limits.keep_alive;
    let bytes = futures_util::stream::unfold(Box::pin(stream(events).fuse()), move |mut events| async move {
        let bytes = next_bytes(&mut events, silence).await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), events))
    });
    streamed(Body::from_stream(bytes), "text/event-stream")
}

/// An answer of lines, each an object; they have no comments.
pub(crate) fn respond_lines(events: impl Events) -> Response {
    let bytes = stream(events).map(|line| Ok::<_, std::convert::Infallible>(Bytes::from(line)));
    streamed(Body::from_stream(bytes), "application/x-ndjson")
}

fn stream(events: impl Events) -> impl Stream<Item = String> + Send {
    futures_util::stream::unfold(events, async |mut events| {
        let event = events.next().await?;
        Some((event, events))
    })
}

fn streamed(body: Body, kind: &'static str) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies would collect a stream before they pass it on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn next_bytes(events: &mut (impl Stream<Item = String> + Unpin), silence: Duration) -> Option<Bytes> {
    let Ok(first) = tokio::time::timeout(silence, events.next()).await else {
        return Some(Bytes::from_static(b": keep-alive\n\n"));
    };
    let mut text = first?;
    while text.len() < TOGETHER
        && let Some(Some(more)) = events.next().now_or_never()
    {
        text.push_str(&more);
    }
    Some(text.into())
}
