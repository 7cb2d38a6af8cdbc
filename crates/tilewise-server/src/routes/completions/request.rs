//! What `/v1/completions` takes.

use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::prompt::Prompt;
use crate::request::{RequestFields, request};
use crate::sampling::{Sampling, SamplingFields};

/// Tokens that are generated unless told, as in OpenAI's API.
const DEFAULT_MAX_TOKENS: usize = 16;

request! {
    /// A prompt to continue.
    CompletionRequest { completion: CompletionFields, common: RequestFields, sampling: SamplingFields }
}

/// What only this endpoint takes.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct CompletionFields {
    pub(crate) prompt: Option<Prompt>,
    /// Tokens to generate at most; 16 unless given, and -1 for all that there is room for.
    #[serde(default, deserialize_with = "crate::fields::whole")]
    #[schema(minimum = -1)]
    max_tokens: Option<i64>,
    /// Must be `n`, if given.
    #[serde(default, deserialize_with = "crate::fields::whole")]
    best_of: Option<i64>,
    /// The most probable tokens to tell with each.
    #[schema(minimum = 0, maximum = 20)]
    pub(crate) logprobs: Option<u64>,
    /// Whether the answer begins with the prompt.
    pub(crate) echo: Option<bool>,
}

impl CompletionRequest {
    /// What it says of sampling.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn sampling(&self) -> Result<Sampling, ApiError> {
        let CompletionFields { max_tokens, best_of, logprobs, .. } = &self.completion;
        if best_of.is_some_and(|best_of| Some(best_of) != self.sampling.n.or(Some(1))) {
            return Err(ApiError::unsupported("best_of", "best_of must be n"));
        }
        // -1 is for all.
        let default_max_tokens = max_tokens.is_none().then_some(DEFAULT_MAX_TOKENS);
        Ok(Sampling {
            fields: self.sampling.clone(),
            max_tokens: ("max_tokens", *max_tokens),
            default_max_tokens,
            logprobs: ("logprobs", *logprobs),
        })
    }
}
