//! What `/generate` takes.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::fields::OneOrMany;
use crate::prompt::Prompt;
use crate::request::{RequestFields, nested, request};
use crate::sampling::{Sampling, SamplingFields};

/// Tokens that are generated unless told, as in SGLang.
const DEFAULT_NEW_TOKENS: usize = 128;

request! {
    /// A text or tokens to continue.
    GenerateRequest { generate: GenerateFields, common: RequestFields }
}

/// What only this endpoint takes.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct GenerateFields {
    /// A text, or several; this or `input_ids`.
    pub(crate) text: Option<OneOrMany<String>>,
    /// Token ids, or several lists of them.
    pub(crate) input_ids: Option<TokenIds>,
    #[schema(value_type = Option<SamplingParams>)]
    pub(crate) sampling_params: Option<Map<String, Value>>,
    pub(crate) return_logprob: Option<bool>,
    /// The first place of the prompt whose logprobs are told; -1 for none.
    #[schema(minimum = -1)]
    pub(crate) logprob_start_len: Option<i64>,
    /// The most probable tokens to tell with each.
    #[schema(minimum = 0, maximum = 20)]
    pub(crate) top_logprobs_num: Option<u64>,
    /// Whether logprobs come with the tokens' texts.
    pub(crate) return_text_in_logprobs: Option<bool>,
}

/// Token ids, or several lists of them.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected token ids or lists of them")]
pub(crate) enum TokenIds {
    /// One list.
    One(Vec<u32>),
    /// Several.
    Many(Vec<Vec<u32>>),
}

request! {
    /// How the text is drawn.
    SamplingParams { length: LengthFields, sampling: SamplingFields }
}

/// How long the text is.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct LengthFields {
    /// Tokens to generate at most; 128 unless given, and -1 for all that there is room for.
    #[serde(default, deserialize_with = "crate::fields::whole")]
    #[schema(minimum = -1)]
    max_new_tokens: Option<i64>,
}

impl GenerateRequest {
    /// The prompts, and the field that they stand in.
    ///
    /// # Errors
    /// 400 for none, or both kinds.
    pub(crate) fn prompt(&self) -> Result<(Prompt, &'static str), ApiError> {
        match (&self.generate.text, &self.generate.input_ids) {
            (Some(OneOrMany::One(text)), None) => Ok((Prompt::Text(text.clone()), "text")),
            (Some(OneOrMany::Many(texts)), None) => Ok((Prompt::Texts(texts.clone()), "text")),
            (None, Some(TokenIds::One(ids))) => Ok((Prompt::Tokens(ids.clone()), "input_ids")),
            (None, Some(TokenIds::Many(lists))) => Ok((Prompt::TokenLists(lists.clone()), "input_ids")),
            _ => Err(ApiError::param("text", "either text or input_ids must be given")),
        }
    }

    /// Whether there are several prompts, or several completions: then the answer is a list.
    pub(crate) fn is_list(&self) -> bool {
        let GenerateFields { text, input_ids, sampling_params, .. } = &self.generate;
        let n = sampling_params.as_ref().and_then(|params| params.get("n")?.as_f64());
        matches!(text, Some(OneOrMany::Many(_)))
            || matches!(input_ids, Some(TokenIds::Many(_)))
            || n.unwrap_or(1.0) > 1.0
    }

    /// The first place of the prompt whose logprobs are told, if any.
    ///
    /// # Errors
    /// 400 for one below -1.
    pub(crate) fn prompt_logprobs_from(&self) -> Result<Option<usize>, ApiError> {
        match self.generate.logprob_start_len {
            Some(place) if place < -1 => {
                Err(ApiError::param("logprob_start_len", "logprob_start_len must be at least -1"))
            }
            Some(place) if place >= 0 && self.generate.return_logprob.unwrap_or(false) => {
                Ok(Some(place as usize))
            }
            _ => Ok(None),
        }
    }

    /// What it says of sampling.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn sampling(&self) -> Result<Sampling, ApiError> {
        let fields = &self.generate;
        let params: SamplingParams = nested(fields.sampling_params.as_ref(), "sampling_params.")?;
        let top = fields.top_logprobs_num.unwrap_or(0);
        let max_new_tokens = params.length.max_new_tokens;
        Ok(Sampling {
            fields: params.sampling,
            max_tokens: ("max_new_tokens", max_new_tokens),
            default_max_tokens: max_new_tokens.is_none().then_some(DEFAULT_NEW_TOKENS),
            logprobs: ("top_logprobs_num", fields.return_logprob.unwrap_or(false).then_some(top)),
        })
    }
}
