//! What `/generate` takes.

use std::collections::BTreeMap;

use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::fields::{Off, On, OneOrMany, Unset, Zero};
use crate::grammars;
use crate::prompt::Prompt;
use crate::sampling::Sampling;

/// Tokens that are generated unless told, as in SGLang.
const DEFAULT_NEW_TOKENS: usize = 128;

/// A text or tokens to continue.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[expect(dead_code, reason = "some fields are only taken, so that others can send them")]
#[serde(deny_unknown_fields)]
pub(crate) struct GenerateRequest {
    /// A text, or several; this or `input_ids`.
    pub(crate) text: Option<OneOrMany<String>>,
    /// Token ids, or several lists of them.
    pub(crate) input_ids: Option<TokenIds>,
    pub(crate) sampling_params: Option<SamplingParams>,
    pub(crate) stream: Option<bool>,
    pub(crate) return_logprob: Option<bool>,
    /// The first place of the prompt whose logprobs are told; -1 for none.
    #[schema(minimum = -1)]
    pub(crate) logprob_start_len: Option<i64>,
    /// The most probable tokens to tell with each.
    #[schema(minimum = 0, maximum = 20)]
    pub(crate) top_logprobs_num: Option<u64>,
    /// Whether logprobs come with the tokens' texts.
    pub(crate) return_text_in_logprobs: Option<bool>,
    /// A name by which the request can be aborted.
    pub(crate) rid: Option<String>,
    pub(crate) model: Option<String>,
    /// Whose cached prefixes may be shared: those of requests with the same key.
    pub(crate) extra_key: Option<String>,
    /// Taken and not used.
    log_metrics: Option<bool>,
    /// Taken and not used.
    no_logs: Option<bool>,
    background: Option<Off>,
    return_bytes: Option<Off>,
    return_entropy: Option<Off>,
    return_hidden_states: Option<Off>,
    token_ids_logprob: Option<Unset>,
    input_embeds: Option<Unset>,
    image_data: Option<Unset>,
    video_data: Option<Unset>,
    audio_data: Option<Unset>,
    modalities: Option<Unset>,
    session_params: Option<Unset>,
    lora_path: Option<Unset>,
    lora_id: Option<Unset>,
    custom_logit_processor: Option<Unset>,
    bootstrap_host: Option<Unset>,
    bootstrap_port: Option<Unset>,
    bootstrap_room: Option<Unset>,
    bootstrap_pair_key: Option<Unset>,
    data_parallel_rank: Option<Unset>,
    conversation_id: Option<Unset>,
    priority: Option<Unset>,
    custom_labels: Option<Unset>,
}

/// Token ids, or several lists of them.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum TokenIds {
    /// One list.
    One(Vec<u32>),
    /// Several.
    Many(Vec<Vec<u32>>),
}

/// How the text is drawn.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[expect(dead_code, reason = "some fields are only taken, so that others can send them")]
#[serde(deny_unknown_fields)]
pub(crate) struct SamplingParams {
    /// Tokens to generate at most; 128 unless given.
    #[schema(minimum = 1)]
    max_new_tokens: Option<u64>,
    #[schema(minimum = 0)]
    temperature: Option<f32>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// -1 for all.
    top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    #[schema(minimum = 0.000001, maximum = 1000000)]
    repetition_penalty: Option<f32>,
    #[schema(minimum = 1, maximum = 128)]
    n: Option<u64>,
    stop: Option<OneOrMany<String>>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    /// Added to the logits of tokens, by their ids.
    logit_bias: Option<BTreeMap<String, f32>>,
    sampling_seed: Option<i64>,
    /// A schema as text.
    json_schema: Option<String>,
    regex: Option<String>,
    ebnf: Option<Unset>,
    structural_tag: Option<Unset>,
    stop_regex: Option<Unset>,
    min_new_tokens: Option<Zero>,
    skip_special_tokens: Option<On>,
    spaces_between_special_tokens: Option<On>,
    no_stop_trim: Option<Off>,
    stream_interval: Option<Unset>,
    custom_params: Option<Unset>,
}

impl GenerateRequest {
    /// The prompts, and the field that they stand in.
    ///
    /// # Errors
    /// 400 for none, or both kinds.
    pub(crate) fn prompt(&self) -> Result<(Prompt, &'static str), ApiError> {
        match (&self.text, &self.input_ids) {
            (Some(OneOrMany::One(text)), None) => Ok((Prompt::Text(text.clone()), "text")),
            (Some(OneOrMany::Many(texts)), None) => Ok((Prompt::Texts(texts.clone()), "text")),
            (None, Some(TokenIds::One(ids))) => Ok((Prompt::Tokens(ids.clone()), "input_ids")),
            (None, Some(TokenIds::Many(lists))) => Ok((Prompt::TokenLists(lists.clone()), "input_ids")),
            _ => Err(ApiError::param("text", "either text or input_ids must be given")),
        }
    }

    /// Whether there are several prompts, or several completions: then the answer is a list.
    pub(crate) fn is_list(&self) -> bool {
        let several = matches!(self.text, Some(OneOrMany::Many(_)));
        several
            || matches!(self.input_ids, Some(TokenIds::Many(_)))
            || self.sampling_params.as_ref().and_then(|params| params.n).unwrap_or(1) > 1
    }

    /// The first place of the prompt whose logprobs are told, if any.
    ///
    /// # Errors
    /// 400 for one below -1.
    pub(crate) fn prompt_logprobs_from(&self) -> Result<Option<usize>, ApiError> {
        match self.logprob_start_len {
            Some(place) if place < -1 => {
                Err(ApiError::param("logprob_start_len", "logprob_start_len must be at least -1"))
            }
            Some(place) if place >= 0 && self.return_logprob.unwrap_or(false) => Ok(Some(place as usize)),
            _ => Ok(None),
        }
    }

    /// What it says of sampling.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn sampling(&self) -> Result<Sampling, ApiError> {
        let params = self.sampling_params.clone().unwrap_or_default();
        let grammar = grammars::only_one([
            params
                .json_schema
                .as_deref()
                .map(|text| grammars::schema_text("json_schema", text))
                .transpose()?,
            params.regex.as_deref().map(|regex| grammars::regex("regex", regex)).transpose()?,
        ])?;
        let top = self.top_logprobs_num.unwrap_or(0);
        Ok(Sampling {
            temperature: params.temperature,
            top_p: params.top_p,
            top_k: params.top_k,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            logit_bias: params.logit_bias,
            seed: params.sampling_seed,
            n: params.n,
            max_tokens: ("max_new_tokens", params.max_new_tokens),
            default_max_tokens: Some(DEFAULT_NEW_TOKENS),
            stop: params.stop.map(OneOrMany::into_vec).unwrap_or_default(),
            stop_ids: params.stop_token_ids.unwrap_or_default(),
            ignore_eos: params.ignore_eos.unwrap_or(false),
            logprobs: ("top_logprobs_num", self.return_logprob.unwrap_or(false).then_some(top)),
            grammar,
        })
    }
}
