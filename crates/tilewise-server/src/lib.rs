//! HTTP over the engine: OpenAI's, Anthropic's and Ollama's protocols, and that of an SGLang worker.
//!
//! ```no_run
//! use tilewise_engine::model::ModelSource;
//! use tilewise_engine::worker::Worker;
//! use tilewise_engine::{Engine, EngineConfig};
//! use tilewise_server::{Server, ServerConfig};
//!
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! let source = ModelSource::Folder("models/demo".into());
//! let loaded = source.clone();
//! let load = move || Engine::new(tilewise::open("cpu", None)?, &loaded, &EngineConfig::default(), &mut tilewise_engine::model::unwatched);
//! let worker = Worker::start(load, None)?;
//! let config = ServerConfig::new("127.0.0.1:8000".parse()?, "demo");
//! let server = Server::bind(config, &source, worker).await?;
//! server.serve(std::future::pending()).await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod body;
mod chats;
mod config;
mod connection;
mod error;
mod fields;
mod gate;
mod generation;
mod grammars;
mod keys;
mod messages;
mod metrics;
mod preparing;
mod prompt;
mod request;
mod routes;
mod sampling;
mod server;
mod sites;
mod sse;
mod state;
mod tools;
mod trace;

pub use config::{Limits, ServerConfig};
pub use error::ServerError;
pub use keys::NamedKey;
pub use server::Server;
