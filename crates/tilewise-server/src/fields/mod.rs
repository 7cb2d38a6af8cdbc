//! Types of fields that several requests have.

pub(crate) mod taken;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::Number;
use utoipa::ToSchema;

/// One or several.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "expected one value of the right type or a list of such")]
pub(crate) enum OneOrMany<T: ToSchema> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

impl<T: ToSchema> OneOrMany<T> {
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A whole number, which some clients write as 8.0.
///
/// # Errors
/// Those of the reader.
pub(crate) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(deserializer)? else { return Ok(None) };
    let whole = |x: f64| (x.fract() == 0.0 && x.abs() < 9e15).then_some(x as i64);
    let value = number.as_i64().or_else(|| number.as_f64().and_then(whole));
    value.map(Some).ok_or_else(|| D::Error::custom(format!("expected an integer, got {number}")))
}

/// A seed: any integer of 64 bits, signed or not.
///
/// # Errors
/// Those of the reader.
pub(crate) fn seed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(deserializer)? else { return Ok(None) };
    let signed = || number.as_i64().map(i64::cast_unsigned);
    let whole =
        || number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15).map(|x| (x as i64).cast_unsigned());
    let value = number.as_u64().or_else(signed).or_else(whole);
    value.map(Some).ok_or_else(|| D::Error::custom(format!("expected an integer of 64 bits, got {number}")))
}

/// What a stream tells besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Whether the last chunk before the end has no choices and the usage of all.
    pub(crate) include_usage: Option<bool>,
    /// Whether every other chunk has the usage so far.
    pub(crate) continuous_usage_stats: Option<bool>,
}

/// Tokens that a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Of the prompt; that of a request with several prompts is the sum.
    pub(crate) prompt_tokens: usize,
    /// Generated.
    pub(crate) completion_tokens: usize,
    /// Both.
    pub(crate) total_tokens: usize,
    /// More of the prompt.
    pub(crate) prompt_tokens_details: PromptTokensDetails,
    /// More of what was generated.
    pub(crate) completion_tokens_details: CompletionTokensDetails,
}

/// More of the generated tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct CompletionTokensDetails {
    /// Those of reasoning that comes apart from the content.
    pub(crate) reasoning_tokens: usize,
}

/// More of the prompt's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Those that were not computed, because a cache had them.
    pub(crate) cached_tokens: usize,
}

impl Usage {
    pub(crate) fn new(prompt: usize, completion: usize, cached_tokens: usize) -> Self {
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            completion_tokens_details: CompletionTokensDetails::default(),
        }
    }
}
