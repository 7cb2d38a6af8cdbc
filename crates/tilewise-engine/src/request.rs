//! What is asked of the engine and what it answers.

use crate::{Error, Result};

/// Names a request for as long as the engine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How the next token is drawn from the logits.
///
/// The temperature applies first, then `top_k`, then `top_p` to what `top_k` left, as in Hugging Face
/// transformers. Temperature 0 takes the largest logit, the lowest id among equals.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps this many of the most probable tokens; `None` keeps all.
    pub top_k: Option<usize>,
    /// Keeps the fewest most probable tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Selects the random stream. The same seed gives the same text in any batch.
    pub seed: u64,
    /// Whether each token comes with its logprob, which costs a pass over the vocabulary.
    pub logprobs: bool,
}

impl Default for SamplingParams {
    /// Greedy, without logprobs.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: 1.0, seed: 0, logprobs: false }
    }
}

impl SamplingParams {
    /// Checks that every value means something.
    ///
    /// # Errors
    /// [`Error::Value`] that names the first that does not.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::value("temperature", "finite and at least 0", self.temperature));
        }
        if self.top_k == Some(0) {
            return Err(Error::value("top_k", "at least 1", 0));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::value("top_p", "above 0 and at most 1", self.top_p));
        }
        Ok(())
    }
}

/// Completions that a request may ask for.
pub const MAX_COMPLETIONS: usize = 128;

/// A prompt and how to continue it.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// The prompt's token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Tokens to generate at most.
    pub max_new_tokens: usize,
    /// How many times the prompt is continued, from 1 to [`MAX_COMPLETIONS`]; it is computed once. Completion `i` has a
    /// random stream of its own, selected by the seed and `i`; that of completion 0 is the one of `n` = 1.
    pub n: usize,
    /// Tokens that end the text, besides the model's own.
    pub stop_ids: Vec<u32>,
    /// Whether to go on after the model's own end-of-text tokens, as benchmarks do.
    pub ignore_eos: bool,
    /// Whose cached prefixes it may share: those of requests with the same salt, and no others.
    pub cache_salt: Option<String>,
}

impl GenerateRequest {
    /// A greedy request without stop ids of its own.
    pub fn new(prompt: Vec<u32>, max_new_tokens: usize) -> Self {
        Self {
            prompt,
            sampling: SamplingParams::default(),
            max_new_tokens,
            n: 1,
            stop_ids: Vec::new(),
            ignore_eos: false,
            cache_salt: None,
        }
    }

    /// Checks that every value means something to a model of `vocab_size` tokens.
    ///
    /// # Errors
    /// [`Error::Value`] that names the first that does not.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        self.sampling.validate()?;
        if self.prompt.is_empty() {
            return Err(Error::value("prompt", "at least one token", "none"));
        }
        if self.max_new_tokens == 0 {
            return Err(Error::value("max_new_tokens", "at least 1", 0));
        }
        if !(1..=MAX_COMPLETIONS).contains(&self.n) {
            return Err(Error::value("n", format!("from 1 to {MAX_COMPLETIONS}"), self.n));
        }
        match self.prompt.iter().find(|&&id| id as usize >= vocab_size) {
            Some(id) => Err(Error::value("token id", format!("below the vocabulary size {vocab_size}"), id)),
            None => Ok(()),
        }
    }
}

/// Why a completion ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// This token was generated; it is the last one reported.
    Stop(u32),
    /// `max_new_tokens` were generated.
    Length,
    /// It failed by itself; others go on.
    Failed(String),
}

impl FinishReason {
    /// `stop`, `length` or `error`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stop(_) => "stop",
            Self::Length => "length",
            Self::Failed(_) => "error",
        }
    }
}

/// Something that happened to a request during a step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A token was generated.
    Token {
        /// The request.
        request: RequestId,
        /// Which of its completions, from 0.
        index: usize,
        /// The token.
        id: u32,
        /// Natural logarithm of its probability at temperature 1, over the whole vocabulary, where asked for.
        logprob: Option<f32>,
    },
    /// A completion is over and holds no pages. The request is over when all `n` are.
    Finished {
        /// The request.
        request: RequestId,
        /// Which of its completions, from 0.
        index: usize,
        /// Why.
        reason: FinishReason,
        /// Tokens of the prompt that were not computed, because their pages were in the cache.
        cached_tokens: usize,
    },
}
