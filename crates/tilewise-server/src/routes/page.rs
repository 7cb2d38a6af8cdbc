//! The page at `/`: a chat, and what the server is doing.

use axum::response::{IntoResponse, Response};
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use hyper::{StatusCode, Uri};

/// The page asks this server alone, and nothing in it comes from anywhere else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

pub(crate) async fn page() -> Response {
    file("text/html; charset=utf-8", include_str!("../static/page.html"))
}

/// What the page consists of besides, by path: all of it is open, since the page asks for the key.
pub(crate) const PARTS: [(&str, &str); 12] = [
    ("/page.css", include_str!("../static/page.css")),
    ("/text.css", include_str!("../static/text.css")),
    ("/page.js", include_str!("../static/page.js")),
    ("/answer.js", include_str!("../static/answer.js")),
    ("/api.js", include_str!("../static/api.js")),
    ("/chat.js", include_str!("../static/chat.js")),
    ("/follow.js", include_str!("../static/follow.js")),
    ("/inline.js", include_str!("../static/inline.js")),
    ("/load.js", include_str!("../static/load.js")),
    ("/markdown.js", include_str!("../static/markdown.js")),
    ("/store.js", include_str!("../static/store.js")),
    ("/turns.js", include_str!("../static/turns.js")),
];

/// A part of the page.
pub(crate) async fn part(uri: Uri) -> Response {
    let Some((path, text)) = PARTS.iter().find(|(path, _)| *path == uri.path()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let kind =
        if path.ends_with(".css") { "text/css; charset=utf-8" } else { "text/javascript; charset=utf-8" };
    file(kind, text)
}
