//! What `/v1/completions` answers.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use tilewise_engine::Logprobs;
use tilewise_engine::tokenizer::Detokenizer;
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

/// How probable the tokens of the text were. A token that is a part of a character is written as `bytes:\\xf0\\x9f`.
#[derive(Debug, Default, Clone, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    pub(crate) tokens: Vec<String>,
    /// Null for the first token of a prompt.
    pub(crate) token_logprobs: Vec<Option<f32>>,
    /// The most probable tokens in each place, the one that stands there among them.
    pub(crate) top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where each token begins, in characters of the answer.
    pub(crate) text_offset: Vec<usize>,
}

/// What is written for zero probability: JSON has no infinity.
pub(crate) const LEAST: f32 = -9999.0;

impl CompletionLogprobs {
    fn push(&mut self, app: &App, id: u32, logprob: Option<f32>, top: &[(u32, f32)], offset: usize) {
        let text = token_name(app, id);
        let all = top.iter().copied().chain(logprob.map(|logprob| (id, logprob)));
        let top = all.map(|(id, logprob)| (token_name(app, id), logprob.max(LEAST))).collect();
        self.text_offset.push(offset);
        self.tokens.push(text);
        self.token_logprobs.push(logprob.map(|logprob| logprob.max(LEAST)));
        self.top_logprobs.push(logprob.map(|_| top));
    }

    fn append(&mut self, mut more: Self) {
        self.tokens.append(&mut more.tokens);
        self.token_logprobs.append(&mut more.token_logprobs);
        self.top_logprobs.append(&mut more.top_logprobs);
        self.text_offset.append(&mut more.text_offset);
    }
}

/// A token's text, or its bytes where they are no whole characters.
fn token_name(app: &App, id: u32) -> String {
    let bytes = app.model.bytes_of(id);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let mut name = "bytes:".to_owned();
            bytes.iter().for_each(|byte| name.push_str(&format!("\\x{byte:02x}")));
            name
        }
    }
}

/// The logprobs of a choice, which are told once the text that they are of is certain: a stop string may still take it.
#[derive(Default)]
pub(crate) struct LogprobsOfText {
    /// Makes text of the tokens, to know where each begins.
    detokenizer: Detokenizer,
    /// Bytes of that text, and of the text that was told; characters of the former.
    bytes: usize,
    told: usize,
    characters: usize,
    /// Tokens that wait, with where they begin, in bytes and in characters.
    waiting: VecDeque<(usize, usize, Token)>,
}

impl LogprobsOfText {
    /// Those of a prompt, whose text is told; its first token has no probability.
    pub(crate) fn prompt(
        &mut self,
        app: &App,
        prompt: &[u32],
        logprobs: &[Option<Logprobs>],
    ) -> CompletionLogprobs {
        let mut all = CompletionLogprobs::default();
        for (place, &id) in prompt.iter().enumerate().filter(|(_, id)| !app.model.is_special(**id)) {
            let logprobs = place.checked_sub(1).and_then(|place| logprobs.get(place)?.as_ref());
            let top = logprobs.map(|logprobs| &*logprobs.top).unwrap_or_default();
            all.push(app, id, logprobs.map(|logprobs| logprobs.logprob), top, self.characters);
            self.go_on(app, id);
        }
        (self.detokenizer, self.bytes) = (Detokenizer::default(), 0);
        all
    }

    /// Takes a token of the text. What ends a text is no part of it, nor are special tokens.
    pub(crate) fn push(&mut self, app: &App, token: Token) {
        if !(token.is_end || app.model.is_special(token.id)) {
            let id = token.id;
            self.waiting.push_back((self.bytes, self.characters, token));
            self.go_on(app, id);
        }
    }

    /// Counts the text that is certain with a token.
    fn go_on(&mut self, app: &App, id: u32) {
        let text = self.detokenizer.push(&app.model.tokenizer, id).unwrap_or_default();
        self.bytes += text.len();
        self.characters += text.chars().count();
    }

    /// Those of tokens that begin in the text, of which so many bytes more were told.
    pub(crate) fn told(&mut self, app: &App, bytes: usize) -> Option<CompletionLogprobs> {
        self.told += bytes;
        let mut all = CompletionLogprobs::default();
        while let Some((_, offset, token)) = self.waiting.pop_front_if(|(start, ..)| *start < self.told) {
            all.push(app, token.id, token.logprob, &token.top_logprobs, offset);
        }
        (!all.tokens.is_empty()).then_some(all)
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
