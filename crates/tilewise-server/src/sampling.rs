//! How tokens are drawn: what requests say of it, in whichever protocol, and what the engine is told.

use std::collections::BTreeMap;

use serde::Deserialize;
use tilewise_engine::{GenerateRequest, MAX_COMPLETIONS, SamplingParams};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::fields::OneOrMany;
use crate::grammars::{self, Form, ResponseFormat};
use crate::state::App;

/// Strings that may end a text, and the bytes that they may have together: each token is compared with all of them.
pub(crate) const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 4096;

/// Tokens that may end a text, and tokens that may have a bias.
pub(crate) const MAX_STOP_IDS: usize = 1024;
pub(crate) const MAX_BIASES: usize = 1024;

/// How the text is drawn, and what it obeys. What is left out is the model's default, and else the protocol's.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct SamplingFields {
    #[schema(minimum = 0)]
    pub(crate) temperature: Option<f32>,
    /// 0 keeps one token.
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) top_p: Option<f32>,
    /// -1 or 0 for all.
    #[serde(default, deserialize_with = "crate::fields::whole")]
    #[schema(minimum = -1)]
    pub(crate) top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) min_p: Option<f32>,
    #[schema(minimum = 0.000001, maximum = 1000000)]
    pub(crate) repetition_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    pub(crate) presence_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    pub(crate) frequency_penalty: Option<f32>,
    /// Added to the logits of tokens, by their ids.
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    #[serde(default, deserialize_with = "crate::fields::seed")]
    #[schema(value_type = Option<i64>)]
    pub(crate) seed: Option<u64>,
    /// The same.
    #[serde(default, deserialize_with = "crate::fields::seed")]
    #[schema(value_type = Option<i64>)]
    pub(crate) sampling_seed: Option<u64>,
    #[serde(default, deserialize_with = "crate::fields::whole")]
    #[schema(minimum = 1, maximum = 128)]
    pub(crate) n: Option<i64>,
    pub(crate) stop: Option<OneOrMany<String>>,
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) response_format: Option<ResponseFormat>,
    /// A schema as text.
    pub(crate) json_schema: Option<String>,
    /// An expression that the whole text matches.
    pub(crate) regex: Option<String>,
}

/// Logprobs of an answer at most: each takes some tens of bytes until all of it is written.
const MAX_LOGPROBS: usize = 1 << 23;

/// What a request says of its text; the rest is the endpoint's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sampling {
    pub(crate) fields: SamplingFields,
    /// With the name of its field; -1 counts as none.
    pub(crate) max_tokens: (&'static str, Option<i64>),
    /// Where none is given; `None` for all there is room for.
    pub(crate) default_max_tokens: Option<usize>,
    /// The most probable tokens to tell with each, with the name of the field; `None` for no logprobs at all.
    pub(crate) logprobs: (&'static str, Option<u64>),
}

/// A prompt, how it is continued, and where the text ends.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) request: GenerateRequest,
    pub(crate) stop: Vec<String>,
    /// What the text has to obey, which is still to be compiled.
    pub(crate) form: Option<Form>,
}

impl SamplingFields {
    /// How many completions are asked for.
    ///
    /// # Errors
    /// 400.
    pub(crate) fn completions(&self) -> Result<usize, ApiError> {
        match self.n.unwrap_or(1) {
            n if (1..=MAX_COMPLETIONS as i64).contains(&n) => Ok(n as usize),
            n => Err(ApiError::param("n", format!("n must be from 1 to {MAX_COMPLETIONS}, got {n}"))),
        }
    }

    /// What the text has to obey; `other` is what the endpoint's own fields say.
    ///
    /// # Errors
    /// 400 that names the field, and for several.
    pub(crate) fn form(&self, other: Option<Form>) -> Result<Option<Form>, ApiError> {
        let format = self.response_format.clone();
        let format = format.map(|format| format.form("response_format")).transpose()?.flatten();
        let schema = self.json_schema.as_deref();
        let schema = schema.map(|text| grammars::schema_text("json_schema", text)).transpose()?;
        let regex = self.regex.as_deref().map(|regex| grammars::regex("regex", regex)).transpose()?;
        let mut given = [other, format, schema, regex].into_iter().flatten();
        let first = given.next();
        match given.next() {
            None => Ok(first),
            Some(second) => Err(ApiError::param(second.field, "a text can obey one grammar only")),
        }
    }

    fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default();
        if stops.len() > MAX_STOPS || stops.iter().map(String::len).sum::<usize>() > MAX_STOP_BYTES {
            let message =
                format!("stop must be at most {MAX_STOPS} strings of {MAX_STOP_BYTES} bytes together");
            return Err(ApiError::param("stop", message));
        }
        if stops.iter().any(String::is_empty) {
            return Err(ApiError::param("stop", "a stop string must not be empty"));
        }
        if self.stop_token_ids.as_ref().is_some_and(|ids| ids.len() > MAX_STOP_IDS) {
            let message = format!("stop_token_ids must be at most {MAX_STOP_IDS}");
            return Err(ApiError::param("stop_token_ids", message));
        }
        Ok(stops)
    }

    fn biases(&self, app: &App) -> Result<Vec<(u32, f32)>, ApiError> {
        let biases = self.logit_bias.iter().flatten();
        if self.logit_bias.as_ref().is_some_and(|biases| biases.len() > MAX_BIASES) {
            let message = format!("logit_bias must be of at most {MAX_BIASES} tokens");
            return Err(ApiError::param("logit_bias", message));
        }
        // The engine would not tell these from the prompt's.
        let tokens = 0..app.model.config.vocab_size as u32;
        biases
            .map(|(token, &bias)| match token.parse() {
                Ok(token) if tokens.contains(&token) => Ok((token, bias)),
                _ => Err(ApiError::param(
                    "logit_bias",
                    format!("logit_bias must name tokens below {}, got {token:?}", tokens.end),
                )),
            })
            .collect()
    }

    /// Those of the engine; what is left out is the model's default, and else that of OpenAI's protocol.
    fn params(&self, app: &App) -> Result<SamplingParams, ApiError> {
        let (model, default) = (&app.model.defaults, SamplingParams::default());
        let top_k = match self.top_k {
            None => model.top_k.filter(|&k| k > 0),
            // SGLang and vLLM write all tokens as -1, others as 0.
            Some(-1 | 0) => None,
            Some(k) if k > 0 => Some(k as usize),
            Some(k) => return Err(ApiError::param("top_k", format!("top_k must be at least -1, got {k}"))),
        };
        let penalty = self.repetition_penalty.or(model.repetition_penalty);
        let mut params = SamplingParams {
            temperature: self.temperature.or(model.temperature).unwrap_or(1.0),
            min_p: self.min_p.or(model.min_p).unwrap_or(default.min_p),
            top_k,
            top_p: self.top_p.or(model.top_p).unwrap_or(default.top_p),
            seed: self.seed.or(self.sampling_seed).unwrap_or_else(|| app.new_seed()),
            repetition_penalty: penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            logit_bias: self.biases(app)?,
            ..default
        };
        if params.top_p == 0.0 {
            (params.top_k, params.top_p) = (Some(1), 1.0);
        }
        Ok(params)
    }
}

impl Sampling {
    /// What the engine is asked. `prompt_field` is where the prompt came from, `form` what the text has to obey.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn ask(
        &self,
        app: &App,
        prompt: Vec<u32>,
        prompt_field: &str,
        form: Option<Form>,
    ) -> Result<Ask, ApiError> {
        let stop = self.fields.stops()?;
        let max_new_tokens = self.max_new_tokens(app, prompt.len(), prompt_field)?;
        let mut request = GenerateRequest::new(prompt, max_new_tokens);
        request.n = self.fields.completions()?;
        request.sampling = self.fields.params(app)?;
        let (field, logprobs) = self.logprobs;
        request.sampling.logprobs = logprobs.is_some();
        request.sampling.top_logprobs = match logprobs.unwrap_or(0) {
            top @ 0..=20 => top as usize,
            top => return Err(ApiError::param(field, format!("{field} must be from 0 to 20, got {top}"))),
        };
        let told = request.sampling.top_logprobs.saturating_add(1);
        let told = told.saturating_mul(max_new_tokens).saturating_mul(request.n);
        if request.sampling.logprobs && told > MAX_LOGPROBS {
            let message = format!(
                "n times max_tokens times the logprobs of each token must be at most {MAX_LOGPROBS}, got {told}; ask for \
                 fewer {field}, or set max_tokens"
            );
            return Err(ApiError::param(field, message));
        }
        request.stop_ids = self.fields.stop_token_ids.clone().unwrap_or_default();
        request.ignore_eos = self.fields.ignore_eos.unwrap_or(false);
        let invalid = |error| ApiError::refused(&error, prompt_field);
        request.validate(app.model.config.vocab_size).map_err(invalid)?;
        Ok(Ask { request, stop, form })
    }

    /// Tokens to generate at most: those that are asked for, as far as there is room for them.
    fn max_new_tokens(&self, app: &App, prompt: usize, prompt_field: &str) -> Result<usize, ApiError> {
        let (field, given) = self.max_tokens;
        let most = app.max_tokens();
        let room = most.saturating_sub(prompt);
        if room == 0 {
            return Err(ApiError::too_long(most, &format!("your prompt has {prompt} tokens"), prompt_field));
        }
        match given {
            None | Some(-1) => Ok(self.default_max_tokens.unwrap_or(room).min(room)),
            Some(tokens @ 1..) => {
                let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
                if tokens > room && app.config.strict_max_tokens {
                    let asked = tokens.saturating_add(prompt);
                    let why = format!(
                        "you requested {asked} tokens ({prompt} in the prompt, {tokens} in the completion)"
                    );
                    return Err(ApiError::too_long(most, &why, prompt_field));
                }
                Ok(tokens.min(room))
            }
            Some(tokens) => Err(ApiError::param(
                field,
                format!("{field} must be at least 1, or -1 for all, got {tokens}"),
            )),
        }
    }
}
