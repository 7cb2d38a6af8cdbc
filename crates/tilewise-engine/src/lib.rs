//! Requests to tokens: models, a paged cache, a scheduler that batches continuously, and a sampler.
//!
//! The engine is synchronous and owns its device. Each [`Engine::step`] schedules a ragged batch, runs the
//! model over it once and samples. What a request gets depends on its own tokens and parameters only, in
//! every bit.
#![forbid(unsafe_code)]

pub mod cache;
pub mod chat;
mod config;
mod engine;
mod error;
pub mod grammar;
pub mod model;
pub mod policy;
pub mod request;
pub mod sampler;
pub mod scheduler;
mod speculate;
mod times;
pub mod tokenizer;
pub mod worker;

pub use config::{DraftLength, Drafter, EngineConfig, KvBudget, Preemption, Speculation};
pub use engine::{Engine, EngineStats};
pub use error::{Error, Result};
pub use grammar::{Call, CompiledGrammar, Grammar, GrammarCompiler};
pub use request::{
    CachedTokens, Event, FinishReason, GenerateRequest, MAX_COMPLETIONS, RequestId, SamplingParams,
};
pub use speculate::SpeculationStats;
pub use tilewise::{Logprobs, NotFinite};
