//! What `/v1/completions` answers.

use std::collections::BTreeMap;

use serde::Serialize;
use tilewise_engine::Logprobs;
use utoipa::ToSchema;

use crate::fields::Usage;
use crate::generation::{Matched, Token};
use crate::state::App;

/// Continuations, or a part of them as they come.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Completion {
    pub(crate) id: String,
    /// `text_completion`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<CompletionChoice>,
    pub(crate) usage: Option<Usage>,
}

/// One continuation, or a part.
#[derive(Debug, Default, Clone, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) logprobs: Option<CompletionLogprobs>,
    /// `stop`, `length` or `abort`; null while there is more to come.
    pub(crate) finish_reason: Option<&'static str>,
    /// The string or the token that ended it.
    pub(crate) matched_stop: Option<Matched>,
}

/// How probable the tokens were.
#[derive(Debug, Default, Clone, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    pub(crate) tokens: Vec<String>,
    /// Null for the first token of a prompt.
    pub(crate) token_logprobs: Vec<Option<f32>>,
    pub(crate) top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where each token begins, in bytes of the answer.
    pub(crate) text_offset: Vec<usize>,
}

/// What is written for zero probability: JSON has no infinity.
pub(crate) const LEAST: f32 = -9999.0;

impl CompletionLogprobs {
    /// Adds a token of the answer or of the prompt.
    pub(crate) fn push(
        &mut self,
        app: &App,
        id: u32,
        logprob: Option<f32>,
        top: &[(u32, f32)],
        offset: &mut usize,
    ) {
        let text = app.model.token_text(id);
        let top = top.iter().map(|&(id, logprob)| (app.model.token_text(id), logprob.max(LEAST))).collect();
        self.text_offset.push(*offset);
        *offset += text.len();
        self.tokens.push(text);
        self.token_logprobs.push(logprob.map(|logprob| logprob.max(LEAST)));
        self.top_logprobs.push(logprob.map(|_| top));
    }

    /// A prompt's tokens; the first has no probability.
    pub(crate) fn of_prompt(
        app: &App,
        prompt: &[u32],
        logprobs: &[Option<Logprobs>],
        offset: &mut usize,
    ) -> Self {
        let mut all = Self::default();
        for (place, &id) in prompt.iter().enumerate() {
            let logprobs = place.checked_sub(1).and_then(|place| logprobs.get(place)?.as_ref());
            let top = logprobs.map(|logprobs| &*logprobs.top).unwrap_or_default();
            all.push(app, id, logprobs.map(|logprobs| logprobs.logprob), top, offset);
        }
        all
    }

    pub(crate) fn of_token(app: &App, token: &Token, offset: &mut usize) -> Self {
        let mut one = Self::default();
        one.push(app, token.id, token.logprob, &token.top_logprobs, offset);
        one
    }

    fn append(&mut self, mut more: Self) {
        self.tokens.append(&mut more.tokens);
        self.token_logprobs.append(&mut more.token_logprobs);
        self.top_logprobs.append(&mut more.top_logprobs);
        self.text_offset.append(&mut more.text_offset);
    }
}

impl CompletionChoice {
    /// Adds the next part.
    pub(crate) fn append(&mut self, more: Self) {
        self.text.push_str(&more.text);
        match (&mut self.logprobs, more.logprobs) {
            (Some(all), Some(more)) => all.append(more),
            (none, more) => *none = none.take().or(more),
        }
        self.finish_reason = self.finish_reason.or(more.finish_reason);
        self.matched_stop = self.matched_stop.take().or(more.matched_stop);
    }
}
