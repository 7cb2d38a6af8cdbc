//! What `/v1/completions` takes.

use std::collections::BTreeMap;

use serde::Deserialize;
use tilewise_engine::Grammar;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::fields::{Off, On, OneOrMany, StreamOptions, Unset, Zero};
use crate::grammars;
use crate::prompt::Prompt;
use crate::sampling::Sampling;

/// Tokens that are generated unless told, as in OpenAI's API.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A prompt to continue.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[expect(dead_code, reason = "some fields are only taken, so that others can send them")]
#[serde(deny_unknown_fields)]
pub(crate) struct CompletionRequest {
    pub(crate) model: Option<String>,
    pub(crate) prompt: Option<Prompt>,
    /// Tokens to generate at most; 16 unless given.
    #[schema(minimum = 1)]
    max_tokens: Option<u64>,
    #[schema(minimum = 0)]
    temperature: Option<f32>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// -1 for all.
    top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    #[schema(minimum = 1, maximum = 128)]
    n: Option<u64>,
    /// Must be `n`, if given.
    best_of: Option<u64>,
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    /// The most probable tokens to tell with each.
    #[schema(minimum = 0, maximum = 20)]
    pub(crate) logprobs: Option<u64>,
    /// Whether the answer begins with the prompt.
    pub(crate) echo: Option<bool>,
    stop: Option<OneOrMany<String>>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    #[schema(minimum = 0.000001, maximum = 1000000)]
    repetition_penalty: Option<f32>,
    /// Added to the logits of tokens, by their ids.
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    sampling_seed: Option<i64>,
    response_format: Option<grammars::ResponseFormat>,
    /// A schema as text.
    json_schema: Option<String>,
    regex: Option<String>,
    /// Whose cached prefixes may be shared: those of requests with the same salt.
    pub(crate) cache_salt: Option<String>,
    /// A name by which the request can be aborted.
    pub(crate) rid: Option<String>,
    /// Taken and not used.
    user: Option<String>,
    suffix: Option<Unset>,
    ebnf: Option<Unset>,
    min_tokens: Option<Zero>,
    no_stop_trim: Option<Off>,
    skip_special_tokens: Option<On>,
    lora_path: Option<Unset>,
    session_params: Option<Unset>,
    return_hidden_states: Option<Off>,
}

impl CompletionRequest {
    /// What it says of sampling.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn sampling(&self) -> Result<Sampling, ApiError> {
        if self.best_of.is_some_and(|best_of| Some(best_of) != self.n.or(Some(1))) {
            return Err(ApiError::unsupported("best_of", "best_of must be n"));
        }
        Ok(Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.or(self.sampling_seed),
            n: self.n,
            max_tokens: ("max_tokens", self.max_tokens),
            default_max_tokens: Some(DEFAULT_MAX_TOKENS),
            stop: self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default(),
            stop_ids: self.stop_token_ids.clone().unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            logprobs: ("logprobs", self.logprobs),
            grammar: self.grammar()?,
        })
    }

    fn grammar(&self) -> Result<Option<Grammar>, ApiError> {
        grammars::only_one([
            self.response_format
                .clone()
                .map(|format| format.grammar("response_format"))
                .transpose()?
                .flatten(),
            self.json_schema.as_deref().map(|text| grammars::schema_text("json_schema", text)).transpose()?,
            self.regex.as_deref().map(|regex| grammars::regex("regex", regex)).transpose()?,
        ])
    }
}
