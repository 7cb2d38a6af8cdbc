//! What `/generate` answers.

use serde::Serialize;
use tilewise_engine::Logprobs;
use utoipa::ToSchema;

use crate::generation::{End, Matched, Token};
use crate::routes::completions::LEAST;
use crate::state::App;

/// A continuation; in a stream, all of its text so far, and the tokens since the event before.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Generated {
    /// Which of several, in a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<usize>,
    pub(crate) text: String,
    /// In a stream, those since the event before.
    pub(crate) output_ids: Vec<u32>,
    pub(crate) meta_info: MetaInfo,
}

/// More of a continuation.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct MetaInfo {
    pub(crate) id: String,
    /// Null while there is more to come.
    pub(crate) finish_reason: Option<EndReason>,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// Tokens of the prompt that were not computed; known at the end.
    pub(crate) cached_tokens: usize,
    /// Seconds since the request was accepted.
    pub(crate) e2e_latency: f64,
    /// In a stream, only in the first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) input_token_logprobs: Option<Vec<LogprobTriple>>,
    /// Of `output_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output_token_logprobs: Option<Vec<LogprobTriple>>,
    /// Of each place, the most probable tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) input_top_logprobs: Option<Vec<Option<Vec<LogprobTriple>>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output_top_logprobs: Option<Vec<Vec<LogprobTriple>>>,
}

/// Logprob, id and text of a token.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct LogprobTriple(Option<f32>, u32, Option<String>);

/// Why it ended.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct EndReason {
    /// `stop`, `length` or `abort`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The string or the token that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    matched: Option<Matched>,
    /// Tokens that it might have.
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<usize>,
}

impl Generated {
    /// What the next event of a stream tells: its text is all of it so far, as the protocol has it, and its tokens, of which
    /// each has dozens of logprobs, are not told again.
    pub(crate) fn event(&mut self, index: Option<usize>) -> Self {
        let info = &mut self.meta_info;
        let mut told = info.clone_without_tokens();
        told.input_token_logprobs = info.input_token_logprobs.take();
        told.input_top_logprobs = info.input_top_logprobs.take();
        told.output_token_logprobs = info.output_token_logprobs.as_mut().map(std::mem::take);
        told.output_top_logprobs = info.output_top_logprobs.as_mut().map(std::mem::take);
        Self {
            index,
            text: self.text.clone(),
            output_ids: std::mem::take(&mut self.output_ids),
            meta_info: told,
        }
    }
}

impl MetaInfo {
    fn clone_without_tokens(&self) -> Self {
        Self {
            id: self.id.clone(),
            finish_reason: self.finish_reason.clone(),
            input_token_logprobs: None,
            output_token_logprobs: None,
            input_top_logprobs: None,
            output_top_logprobs: None,
            ..*self
        }
    }
}

impl EndReason {
    pub(crate) fn of(end: &End, tokens: usize) -> Self {
        let length = (*end == End::Length).then_some(tokens);
        Self { kind: end.name(), matched: end.matched(), length }
    }
}

/// Writes tokens with their logprobs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogprobStyle {
    pub(crate) has_text: bool,
    pub(crate) top: usize,
}

impl LogprobStyle {
    fn one(self, app: &App, id: u32, logprob: Option<f32>) -> LogprobTriple {
        let text = self.has_text.then(|| app.model.token_text(id));
        LogprobTriple(logprob.map(|logprob| logprob.max(LEAST)), id, text)
    }

    fn top(self, app: &App, top: &[(u32, f32)]) -> Vec<LogprobTriple> {
        top.iter().map(|&(id, logprob)| self.one(app, id, Some(logprob))).collect()
    }

    /// Adds a generated token.
    pub(crate) fn push(self, app: &App, token: &Token, info: &mut MetaInfo) {
        info.output_token_logprobs.get_or_insert_default().push(self.one(app, token.id, token.logprob));
        if self.top > 0 {
            info.output_top_logprobs.get_or_insert_default().push(self.top(app, &token.top_logprobs));
        }
    }

    /// Sets those of the prompt's tokens from a place on; the first token of all has none.
    pub(crate) fn set_prompt(
        self,
        app: &App,
        (prompt, from): (&[u32], usize),
        logprobs: &[Option<Logprobs>],
        info: &mut MetaInfo,
    ) {
        let of = |place: usize| place.checked_sub(1).and_then(|place| logprobs.get(place)?.as_ref());
        let places = || (from..prompt.len()).map(|place| (place, of(place)));
        let one = |(place, logprobs): (usize, Option<&Logprobs>)| {
            self.one(app, prompt[place], logprobs.map(|logprobs| logprobs.logprob))
        };
        info.input_token_logprobs = Some(places().map(one).collect());
        let top =
            |(_, logprobs): (usize, Option<&Logprobs>)| logprobs.map(|logprobs| self.top(app, &logprobs.top));
        info.input_top_logprobs = (self.top > 0).then(|| places().map(top).collect());
    }
}
