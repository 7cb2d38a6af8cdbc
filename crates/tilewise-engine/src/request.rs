//! What is asked of the engine and what it answers.

use tilewise::{Logprobs, LogprobsOf, NotFinite};

use crate::cache::tiers::Source;
use crate::{CompiledGrammar, Error, Result};

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
/// The logits are changed first: the bias is added, then the repetition penalty applies, then the presence and frequency
/// penalties. The temperature applies next, then `min_p`, then `top_k`, then `top_p` to what the two left: the order of
/// vLLM. Temperature 0 takes the largest logit, the lowest id among equals.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps the tokens whose probability is at least this much of the largest; 0 keeps all.
    pub min_p: f32,
    /// Keeps this many of the most probable tokens; `None` keeps all.
    pub top_k: Option<usize>,
    /// Keeps the fewest most probable tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Selects the random stream. The same seed gives the same text in any batch.
    pub seed: u64,
    /// Divides the logits above zero, and multiplies the others, of tokens that the prompt or the output has; 1 changes
    /// nothing (Keskar et al. 2019); from a millionth to a million, so that no logit becomes infinite.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that the output has; from -2 to 2, 0 changes nothing.
    pub presence_penalty: f32,
    /// Subtracted as often as the output has the token; from -2 to 2, 0 changes nothing.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens, each named once; from -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Whether each token comes with its logprob, which costs a pass over the vocabulary. It is that of the model's own
    /// logits: penalties, bias and filters do not change it.
    pub logprobs: bool,
    /// How many of the most probable tokens come with theirs, with each token; 20 at most, and none without `logprobs`.
    pub top_logprobs: usize,
}

impl Default for SamplingParams {
    /// Greedy, without logprobs.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            min_p: 0.0,
            top_k: None,
            top_p: 1.0,
            seed: 0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: false,
            top_logprobs: 0,
        }
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
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(Error::value("min_p", "from 0 to 1", self.min_p));
        }
        if !(1e-6..=1e6).contains(&self.repetition_penalty) {
            return Err(Error::value(
                "repetition_penalty",
                "from 0.000001 to 1000000",
                self.repetition_penalty,
            ));
        }
        let (presence, frequency) = (self.presence_penalty, self.frequency_penalty);
        for (name, penalty) in [("presence_penalty", presence), ("frequency_penalty", frequency)] {
            if !(-2.0..=2.0).contains(&penalty) {
                return Err(Error::value(name, "from -2 to 2", penalty));
            }
        }
        if let Some((_, bias)) = self.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
            return Err(Error::value("logit_bias", "from -100 to 100", bias));
        }
        let mut biased: Vec<u32> = self.logit_bias.iter().map(|&(token, _)| token).collect();
        biased.sort_unstable();
        if let Some(twice) = biased.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::value("logit_bias", "of different tokens", format!("{} twice", twice[0])));
        }
        let most = if self.logprobs { LogprobsOf::MOST as usize } else { 0 };
        if self.top_logprobs > most {
            let expected = if self.logprobs { "at most 20" } else { "0 without logprobs" };
            return Err(Error::value("top_logprobs", expected, self.top_logprobs));
        }
        Ok(())
    }

    /// Whether any logit depends on what was generated.
    pub(crate) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Completions that a request may ask for.
pub const MAX_COMPLETIONS: usize = 128;

/// A prompt and how to continue it.
#[derive(Debug, Clone)]
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
    /// What the text has to obey. It ends where the grammar does: by an end-of-text token where more could come, or with
    /// [`FinishReason::Grammar`] where nothing can.
    pub grammar: Option<CompiledGrammar>,
    /// Whether the logprob of each token of the prompt but the first is told, beside those of this many most probable
    /// tokens in its place; at most 20. The whole prompt is computed then, cached or not.
    pub prompt_logprobs: Option<usize>,
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
            grammar: None,
            prompt_logprobs: None,
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
        let is_name =
            |salt: &str| (1..=128).contains(&salt.len()) && salt.bytes().all(|b| b.is_ascii_graphic());
        if let Some(salt) = self.cache_salt.as_deref().filter(|salt| !is_name(salt)) {
            return Err(Error::value(
                "cache_salt",
                "from 1 to 128 visible ASCII characters",
                format!("{salt:?}"),
            ));
        }
        if let Some(top) = self.prompt_logprobs.filter(|&top| top > LogprobsOf::MOST as usize) {
            return Err(Error::value("prompt_logprobs", "at most 20", top));
        }
        if let Some(grammar) = self.grammar.as_ref().filter(|grammar| grammar.vocab_size() != vocab_size) {
            let expected = format!("compiled for {vocab_size} tokens");
            return Err(Error::value("grammar", expected, grammar.vocab_size()));
        }
        let biased = self.sampling.logit_bias.iter().map(|(token, _)| token);
        match self.prompt.iter().chain(biased).find(|&&id| id as usize >= vocab_size) {
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
    /// The text is complete by its grammar, and nothing can follow.
    Grammar,
    /// `max_new_tokens` were generated.
    Length,
    /// Whoever reads its text ended it.
    Ended,
    /// Its grammar cannot be followed: nothing obeys it, or it is too large.
    Ungrammatical(String),
    /// It failed by itself; others go on.
    Failed(String),
}

impl FinishReason {
    /// `stop`, `length` or `error`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stop(_) | Self::Grammar | Self::Ended => "stop",
            Self::Length => "length",
            Self::Ungrammatical(_) | Self::Failed(_) => "error",
        }
    }
}

/// Tokens of a prompt that were not computed, by who had their keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct CachedTokens {
    /// The device's prefix cache.
    pub device: usize,
    /// The host's memory.
    pub host: usize,
    /// A folder.
    pub disk: usize,
    /// A server that speaks RESP.
    pub resp: usize,
    /// An object store.
    pub object: usize,
}

impl CachedTokens {
    /// All of them.
    pub fn total(&self) -> usize {
        let Self { device, host, disk, resp, object } = self;
        device + host + disk + resp + object
    }

    /// Those that a tier had.
    pub(crate) fn of_tier(&mut self, source: Source) -> &mut usize {
        match source {
            Source::Host => &mut self.host,
            Source::Disk => &mut self.disk,
            Source::Resp => &mut self.resp,
            Source::Object => &mut self.object,
        }
    }
}

impl std::ops::AddAssign for CachedTokens {
    fn add_assign(&mut self, other: Self) {
        self.device += other.device;
        self.host += other.host;
        self.disk += other.disk;
        self.resp += other.resp;
        self.object += other.object;
    }
}

/// Something that happened to a request during a step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Logprobs of a part of the prompt, which come in order and before the first token.
    PromptLogprobs {
        /// The request.
        request: RequestId,
        /// The place in the prompt of the first token that they are of, from 1.
        position: usize,
        /// Of each token, at temperature 1, whatever the sampling parameters are.
        logprobs: Vec<Result<Logprobs, NotFinite>>,
    },
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
        /// The most probable tokens with theirs, as many as were asked for; the first is the most probable.
        top_logprobs: Vec<(u32, f32)>,
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
        /// The same, by who had them.
        cached_from: CachedTokens,
    },
}
