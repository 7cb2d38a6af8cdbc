//! How tokens are drawn: what requests say of it, and what the engine is told.

use std::collections::BTreeMap;

use tilewise_engine::{GenerateRequest, Grammar, MAX_COMPLETIONS, SamplingParams};

use crate::error::ApiError;
use crate::state::App;

/// Strings that may end a text, and the bytes that they may have together: each token is compared with all of them.
pub(crate) const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 4096;

/// Tokens that may end a text, and tokens that may have a bias.
pub(crate) const MAX_STOP_IDS: usize = 1024;
pub(crate) const MAX_BIASES: usize = 1024;

/// What a request says of sampling; what it leaves out is the protocol's default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sampling {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    pub(crate) seed: Option<i64>,
    pub(crate) n: Option<u64>,
    /// With the name of its field.
    pub(crate) max_tokens: (&'static str, Option<u64>),
    /// Where none is given; `None` for all there is room for.
    pub(crate) default_max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_ids: Vec<u32>,
    pub(crate) ignore_eos: bool,
    /// The most probable tokens to tell with each, with the name of the field; `None` for no logprobs at all.
    pub(crate) logprobs: (&'static str, Option<u64>),
    pub(crate) grammar: Option<Grammar>,
}

/// A prompt, how it is continued, and where the text ends.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) request: GenerateRequest,
    pub(crate) stop: Vec<String>,
    /// What the text has to obey, which is still to be compiled.
    pub(crate) grammar: Option<Grammar>,
}

impl Sampling {
    /// How many completions it asks for.
    ///
    /// # Errors
    /// 400.
    pub(crate) fn completions(&self) -> Result<usize, ApiError> {
        match self.n.unwrap_or(1) {
            n if (1..=MAX_COMPLETIONS as u64).contains(&n) => Ok(n as usize),
            n => Err(ApiError::param("n", format!("n must be from 1 to {MAX_COMPLETIONS}, got {n}"))),
        }
    }

    /// What the engine is asked. `prompt_field` is where the prompt came from.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn ask(&self, app: &App, prompt: Vec<u32>, prompt_field: &str) -> Result<Ask, ApiError> {
        self.check_stops()?;
        let (field, max_tokens) = self.max_tokens;
        let room = app.max_tokens().saturating_sub(prompt.len());
        let max_new_tokens = match max_tokens {
            Some(0) => return Err(ApiError::param(field, format!("{field} must be at least 1, got 0"))),
            Some(tokens) => usize::try_from(tokens).unwrap_or(usize::MAX),
            None => self.default_max_tokens.unwrap_or(room).min(room).max(1),
        };
        let mut request = GenerateRequest::new(prompt, max_new_tokens);
        request.n = self.completions()?;
        request.sampling = self.params(app)?;
        request.stop_ids.clone_from(&self.stop_ids);
        request.ignore_eos = self.ignore_eos;
        let invalid = |error| ApiError::refused(&error, prompt_field);
        request.validate(app.model.config.vocab_size).map_err(invalid)?;
        Ok(Ask { request, stop: self.stop.clone(), grammar: self.grammar.clone() })
    }

    fn params(&self, app: &App) -> Result<SamplingParams, ApiError> {
        let default = SamplingParams::default();
        let (field, logprobs) = self.logprobs;
        let top_logprobs = match logprobs.unwrap_or(0) {
            top @ 0..=20 => top as usize,
            top => return Err(ApiError::param(field, format!("{field} must be from 0 to 20, got {top}"))),
        };
        Ok(SamplingParams {
            temperature: self.temperature.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(default.min_p),
            top_k: match self.top_k {
                // SGLang and vLLM write all tokens so.
                None | Some(-1) => None,
                Some(k) if k > 0 => Some(k as usize),
                Some(k) => {
                    return Err(ApiError::param("top_k", format!("top_k must be -1 or at least 1, got {k}")));
                }
            },
            top_p: self.top_p.unwrap_or(default.top_p),
            seed: self.seed.map_or_else(|| app.new_seed(), i64::cast_unsigned),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            logit_bias: self.biases(app)?,
            logprobs: logprobs.is_some(),
            top_logprobs,
        })
    }

    fn biases(&self, app: &App) -> Result<Vec<(u32, f32)>, ApiError> {
        let biases = self.logit_bias.iter().flatten();
        if self.logit_bias.as_ref().is_some_and(|biases| biases.len() > MAX_BIASES) {
            return Err(ApiError::param(
                "logit_bias",
                format!("logit_bias must be of at most {MAX_BIASES} tokens"),
            ));
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

    fn check_stops(&self) -> Result<(), ApiError> {
        if self.stop.len() > MAX_STOPS || self.stop.iter().map(String::len).sum::<usize>() > MAX_STOP_BYTES {
            let message =
                format!("stop must be at most {MAX_STOPS} strings of {MAX_STOP_BYTES} bytes together");
            return Err(ApiError::param("stop", message));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(ApiError::param("stop", "a stop string must not be empty"));
        }
        if self.stop_ids.len() > MAX_STOP_IDS {
            return Err(ApiError::param(
                "stop_token_ids",
                format!("stop_token_ids must be at most {MAX_STOP_IDS}"),
            ));
        }
        Ok(())
    }
}
