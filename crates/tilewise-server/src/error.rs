//! What goes wrong, as the server's owner and as its clients see it.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use serde::Serialize;
use serde_json::{Value, json};
use tilewise_engine::Error;
use utoipa::ToSchema;

/// Why a server does not start or has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The configuration is unsafe or means nothing: correct it.
    #[error("{0}")]
    Config(String),
    /// The address cannot be listened on: choose another.
    #[error("{address}: {why}")]
    Listen {
        /// The address.
        address: String,
        /// What the system says.
        why: std::io::Error,
    },
    /// The model cannot be served.
    #[error(transparent)]
    Model(#[from] Error),
    /// The engine failed while it loaded or served.
    #[error("the engine failed: {0}")]
    Engine(String),
}

/// An error in the form of OpenAI's.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    pub(crate) error: ErrorObject,
}

/// What an error says.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorObject {
    /// One sentence for people.
    message: String,
    /// `invalid_request_error`, `authentication_error`, `not_found_error`, `rate_limit_error`, `server_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field that is wrong.
    param: Option<String>,
    /// A word for programs.
    code: Option<&'static str>,
}

/// An error in the form of Ollama's.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OllamaError {
    /// One sentence for people.
    error: String,
}

/// The protocol in whose form errors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// OpenAI's, and that of all endpoints without one.
    OpenAi,
    /// Anthropic's.
    Anthropic,
    /// Ollama's.
    Ollama,
}

impl Dialect {
    /// That of a path.
    pub(crate) fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") {
            Self::Anthropic
        } else if path.starts_with("/api/") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }

    /// Rewrites an answer that is an error.
    pub(crate) fn errors_of(self, response: Response) -> Response {
        let error = response.extensions().get::<Arc<ApiError>>().cloned();
        match error.filter(|_| self != Self::OpenAi) {
            None => response,
            Some(error) => {
                let (mut head, _) = response.into_parts();
                head.headers.remove(hyper::header::CONTENT_LENGTH);
                Response::from_parts(head, self.error(&error).to_string().into())
            }
        }
    }

    /// An error as an object.
    pub(crate) fn error(self, error: &ApiError) -> Value {
        match self {
            Self::OpenAi => json!(error.body()),
            Self::Anthropic => {
                let kind = match error.status {
                    StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
                    StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
                    status if status.is_server_error() => "api_error",
                    _ => error.kind(),
                };
                json!({ "type": "error", "error": { "type": kind, "message": error.message } })
            }
            Self::Ollama => json!(OllamaError { error: error.message.clone() }),
        }
    }
}

/// An answer that is an error.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    /// Seconds after which the client may try again.
    retry_after: Option<u32>,
    closes: bool,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, code: None, param: None, message: message.into(), retry_after: None, closes: false }
    }

    /// 400 for a field that is wrong.
    pub(crate) fn param(param: &str, message: impl Into<String>) -> Self {
        let param = Some(param.to_owned());
        Self { param, code: Some("invalid_value"), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// 400 for a field that is meaningful but has no meaning here.
    pub(crate) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_value"), ..Self::param(param, message) }
    }

    /// 400 for a prompt that does not fit. Clients know the first words by heart.
    pub(crate) fn too_long(most: usize, why: &str, field: &str) -> Self {
        let message = format!(
            "This model's maximum context length is {most} tokens. However, {why}. Please reduce the length of the {field}."
        );
        Self::param(field, message).code("context_length_exceeded")
    }

    /// 429: too much to do.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        let code = Some("rate_limit_exceeded");
        Self { code, retry_after: Some(1), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// 503: not now, or not here.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        let code = Some("service_unavailable");
        Self { code, retry_after: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// 500: the server's own fault.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self { code: Some("internal_error"), ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, message) }
    }

    pub(crate) fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Ends the connection with the answer: what the client has still to send is not read.
    pub(crate) fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// A grammar that is none, or that cannot be followed; `field` is where it came from.
    pub(crate) fn ungrammatical(field: &str, message: impl Into<String>) -> Self {
        Self::param(field, message).code("invalid_grammar")
    }

    /// The error of a request that cannot run; `prompt` is the field that its text, or its grammar, came in.
    pub(crate) fn refused(error: &Error, prompt: &str) -> Self {
        let message = error.to_string();
        match error {
            Error::Value { name, .. } => {
                Self::param(if *name == "token id" { prompt } else { name }, message)
            }
            Error::TooLong { needed, available, .. } => {
                Self::too_long(*available, &format!("your request needs {needed} tokens"), prompt)
            }
            Error::Tools(_) => Self::param("tools", message),
            Error::Grammar(_) => Self::ungrammatical(prompt, message),
            Error::Template(_) | Error::Tokenizer(_) => Self::param(prompt, message),
            Error::Unsupported { what, .. } => Self::unsupported(what, message),
            // These name files.
            _ => Self::internal("the server could not prepare the request"),
        }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    pub(crate) fn body(&self) -> ErrorBody {
        let (message, param) = (self.message.clone(), self.param.clone());
        ErrorBody { error: ErrorObject { message, kind: self.kind(), param, code: self.code } }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::to_string(&self.body()).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if self.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(hyper::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // Other protocols write it in their own way.
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}
