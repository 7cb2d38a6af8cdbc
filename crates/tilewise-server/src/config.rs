//! How a server is set up.

use std::net::SocketAddr;
use std::time::Duration;

use crate::sites::ANY;
use crate::{NamedKey, ServerError, trace};

/// What a server takes and how long it waits. Start from `Limits::default()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; further ones wait in the system's queue.
    pub connections: usize,
    /// Completions that are waiting or running at once; a request beyond them is answered with 429.
    pub completions: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// How long a body may take to arrive.
    pub body_time: Duration,
    /// How long the head of a request may take to arrive, and how long a connection may be idle before it.
    pub head_time: Duration,
    /// How long a client may read nothing of what it was sent.
    pub write_time: Duration,
    /// Silence of a stream after which a comment is sent, so that nobody on the way thinks it dead.
    pub keep_alive: Duration,
    /// How long running requests may take to end once the server was told to stop.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            completions: 1024,
            body_bytes: 4 << 20,
            body_time: Duration::from_secs(30),
            head_time: Duration::from_secs(60),
            write_time: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            drain_time: Duration::from_secs(60),
        }
    }
}

/// Where a server listens, whom it serves and what it calls its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where it listens; port 0 takes one that is free.
    pub address: SocketAddr,
    /// What clients have to present; without it, everybody on this machine is served.
    pub api_key: Option<String>,
    /// Keys with names, each with requests and cached prefixes of its own.
    pub api_keys: Vec<NamedKey>,
    /// What shows the work of all and ends it: metrics, loads, flushing, aborting all. Where there is none, a key without a
    /// name does.
    pub admin_api_key: Option<String>,
    /// Whether others than this machine are served without a key.
    pub insecure: bool,
    /// The model's name in requests and answers.
    pub served_model_name: String,
    /// The form of tool calls: `qwen`; `None` takes what the chat template suggests.
    pub tool_call_parser: Option<String>,
    /// The form of reasoning, by the name that the router has for it, likewise.
    pub reasoning_parser: Option<String>,
    /// Whether the sampling parameters of the model's `generation_config.json` are the defaults of requests; OpenAI's are
    /// otherwise.
    pub model_defaults: bool,
    /// Variables of the chat template, such as `enable_thinking`, that requests may set otherwise.
    pub chat_template_kwargs: serde_json::Map<String, serde_json::Value>,
    /// Whether a request is refused that asks for more tokens than fit behind its prompt; it ends by length otherwise.
    pub strict_max_tokens: bool,
    /// Origins of pages that may ask from a browser, such as `http://localhost:3000`, besides the server's own.
    pub allowed_origins: Vec<String>,
    /// Sequences that the engine runs together, as it is told to those who balance load.
    pub max_running: usize,
    /// The collector that traces are sent to, by OTLP over HTTP in JSON, such as `http://127.0.0.1:4318`.
    pub otlp_endpoint: Option<String>,
    /// What it takes and how long it waits.
    pub limits: Limits,
}

impl ServerConfig {
    /// On the loopback interface, without a key.
    pub fn new(address: SocketAddr, served_model_name: impl Into<String>) -> Self {
        Self {
            address,
            api_key: None,
            api_keys: Vec::new(),
            admin_api_key: None,
            insecure: false,
            served_model_name: served_model_name.into(),
            tool_call_parser: None,
            reasoning_parser: None,
            model_defaults: true,
            chat_template_kwargs: serde_json::Map::new(),
            strict_max_tokens: false,
            allowed_origins: Vec::new(),
            max_running: 64,
            otlp_endpoint: None,
            limits: Limits::default(),
        }
    }

    /// Checks that it is safe and means something.
    ///
    /// # Errors
    /// [`ServerError::Config`].
    pub fn validate(&self) -> Result<(), ServerError> {
        let refuse = |why: &str| Err(ServerError::Config(why.to_owned()));
        if !self.asks_for_keys() && !self.address.ip().is_loopback() && !self.insecure {
            return refuse("an address that others can reach needs an API key, or to be called insecure");
        }
        let is_key = |key: &String| !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic());
        if !self.api_key.iter().chain(&self.admin_api_key).all(is_key) {
            return refuse("an API key must be of visible ASCII characters, at least one");
        }
        let mut all: Vec<&String> = self.api_keys.iter().map(|named| &named.key).collect();
        all.extend(self.api_key.iter().chain(&self.admin_api_key));
        all.sort_unstable();
        if all.windows(2).any(|pair| pair[0] == pair[1]) {
            return refuse("two API keys are the same");
        }
        if self.served_model_name.is_empty() {
            return refuse("the served model's name must not be empty");
        }
        if let Some(origin) = self.allowed_origins.iter().find(|origin| !is_origin(origin)) {
            return refuse(&format!("an origin is written as http://HOST:PORT, got {origin:?}"));
        }
        if self.allowed_origins.iter().any(|origin| origin == ANY) && !self.asks_for_keys() {
            return refuse(
                "the pages of all sites may ask only where an API key is needed: name the origins, or set a key",
            );
        }
        let Limits { connections, completions, body_bytes, .. } = self.limits;
        if connections == 0 || completions == 0 || body_bytes == 0 {
            return refuse("a limit of connections, completions or bytes must be at least 1");
        }
        self.otlp_endpoint.as_deref().map(trace::endpoint).transpose()?;
        Ok(())
    }
}

/// Whether a browser could send this as the origin of a page.
fn is_origin(text: &str) -> bool {
    let is_plain = text.bytes().all(|b| b.is_ascii_graphic());
    is_plain
        && (text == ANY || text == "null" || text.split_once("://").is_some_and(|(_, host)| !host.is_empty()))
}
