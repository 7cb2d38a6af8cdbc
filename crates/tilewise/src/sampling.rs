//! Logits to tokens: what is asked of [`crate::Device`], and what comes back.

/// How a token is drawn from a row of logits.
///
/// The temperature applies first, then `min_p`, then `top_k`, then `top_p` to what the two left, as in vLLM. Hugging Face
/// transformers apply `min_p` last, which differs only where `top_p` is set too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Divides the logits; 0 takes the largest, the lowest id among equals.
    pub temperature: f32,
    /// Keeps the tokens whose probability is at least this much of the largest; 0 keeps all.
    pub min_p: f32,
    /// Keeps this many of the most probable tokens, at least one; `None` keeps all.
    pub top_k: Option<u32>,
    /// Keeps the fewest most probable tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Where in the distribution the token lies, from 0 to below 1: a random number of the caller's.
    pub chance: f64,
    /// Whether the logprob is asked for, which costs a pass over the row.
    pub logprob: bool,
}

impl Draw {
    /// The most probable token, without its logprob.
    pub const GREEDY: Self =
        Self { temperature: 0.0, min_p: 0.0, top_k: None, top_p: 1.0, chance: 0.0, logprob: false };

    /// Whether no token of a row of `len` is left out for its rank.
    pub(crate) fn keeps_all(&self, len: usize) -> bool {
        self.top_p >= 1.0 && self.top_k.is_none_or(|k| k as usize >= len)
    }

    /// How far a logit may be below the largest, for `min_p` to keep it; at most 0.
    ///
    /// In logits, not in weights: then the tokens that are kept do not depend on how a device rounds `exp`.
    pub(crate) fn min_p_distance(&self) -> f32 {
        (f64::from(self.min_p).ln() * f64::from(self.temperature)).max(f64::from(f32::MIN)) as f32
    }
}

/// A token and what it was worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability at temperature 1, over the whole row, where asked for.
    pub logprob: Option<f32>,
}

/// A row of logits that has a NaN, an infinity above all, or no finite number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite")]
pub struct NotFinite;

/// What is done to one logit before a token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitChange {
    /// The row of logits.
    pub row: u32,
    /// The token.
    pub token: u32,
    /// Added first.
    pub bias: f32,
    /// Then divides a logit above zero and multiplies others; 1 changes nothing.
    pub repetition: f32,
    /// Subtracted last.
    pub penalty: f32,
}

impl LogitChange {
    /// The logit after the change: bias, then repetition (Keskar et al. 2019), then the penalty, as vLLM orders them.
    pub fn apply(&self, logit: f32) -> f32 {
        let biased = logit + self.bias;
        let repeated = if biased > 0.0 { biased / self.repetition } else { biased * self.repetition };
        repeated - self.penalty
    }
}

/// Which logprobs of a row of logits are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogprobsOf {
    /// This token's, and
    pub token: u32,
    /// those of this many most probable tokens; [`LogprobsOf::MOST`] at most.
    pub top: u32,
}

impl LogprobsOf {
    /// The most tokens that a row tells of besides the one asked for.
    pub const MOST: u32 = 20;
}

/// Natural logarithms of probabilities at temperature 1, over the whole row.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// That of the token asked for.
    pub logprob: f32,
    /// The most probable tokens with theirs, the lowest id first among equals; fewer where the row is shorter.
    pub top: Vec<(u32, f32)>,
}
