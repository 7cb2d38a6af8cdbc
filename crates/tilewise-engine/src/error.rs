//! The crate's one error type.

/// What went wrong, sorted by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is missing, unreadable or not what its name says: give another folder or fetch the file again.
    #[error("{file}: {why}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A policy file that was written for another program or device: measure this one.
    #[error("{file}: {why}; run tilewise tune on this device")]
    Policy {
        /// The file.
        file: String,
        /// What it is for instead.
        why: String,
    },
    /// A model of the Hugging Face hub cannot be had: do what it says.
    #[error("{model}: {why}")]
    Hub {
        /// The model, as it was named.
        model: String,
        /// What stood in the way.
        why: String,
    },
    /// A tensor is missing, has another shape or type, or lies outside its file: fetch the file again.
    #[error("{file}: tensor {tensor}: {why}")]
    Tensor {
        /// The weights file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        why: String,
    },
    /// The model or request is meaningful but this engine cannot honour it: choose another.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// The feature.
        what: String,
        /// What there is instead.
        why: String,
    },
    /// A parameter is outside the range in which it means something: correct it.
    #[error("{name} must be {expected}, got {got}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// What it must be.
        expected: String,
        /// What it was.
        got: String,
    },
    /// The request can never run here: shorten it or give the engine more cache.
    #[error("the request needs {needed} tokens but {limit} holds {available}; shorten it")]
    TooLong {
        /// Prompt and new tokens.
        needed: usize,
        /// What sets the limit: the model's context or the cache.
        limit: &'static str,
        /// How many fit.
        available: usize,
    },
    /// Loading was broken off by whoever watched it.
    #[error("loading was broken off")]
    Cancelled,
    /// Text could not be turned into tokens or back.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The model folder's chat template failed, or there is none.
    #[error("chat template: {0}")]
    Template(String),
    /// A grammar that cannot be compiled: correct it.
    #[error("grammar: {0}")]
    Grammar(String),
    /// A function that cannot be offered to the model: correct its name or its schema.
    #[error("tools: {0}")]
    Tools(String),
    /// The device refused or failed.
    #[error(transparent)]
    Device(#[from] tilewise::Error),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn file(file: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::File { file: file.into(), why: why.to_string() }
    }

    pub(crate) fn hub(model: &impl std::fmt::Display, why: impl Into<String>) -> Self {
        Self::Hub { model: model.to_string(), why: why.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), why: why.into() }
    }

    pub(crate) fn value(
        name: &'static str,
        expected: impl Into<String>,
        got: impl std::fmt::Display,
    ) -> Self {
        Self::Value { name, expected: expected.into(), got: got.to_string() }
    }
}
