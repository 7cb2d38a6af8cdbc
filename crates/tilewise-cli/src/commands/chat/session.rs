//! The conversation itself.

use std::io;
use std::ops::ControlFlow;

use serde::Serialize;
use serde_json::{Value, json};
use tilewise_engine::chat::{ChatFormat, Conversation, Said};
use tilewise_engine::tokenizer::{ChatTemplate, TextStream, Tokenizer};
use tilewise_engine::{CachedTokens, Engine, GenerateRequest, SamplingParams};

use super::completion::{Reader, complete};
use super::{ABORTED, ChatArgs, CliError};

/// What was said so far, and how answers are made.
///
/// Turns of the user and of the assistant take turns, also behind an answer that was broken off: templates insist on it.
pub(super) struct Session<'a> {
    args: &'a ChatArgs,
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    format: ChatFormat,
    sampling: SamplingParams,
    conversation: Conversation,
    turns: Vec<Value>,
}

/// An answer.
#[derive(Debug, Default, Serialize)]
pub(super) struct Answer {
    pub(super) content: String,
    pub(super) reasoning: String,
    pub(super) finish_reason: &'static str,
    prompt_tokens: usize,
    output_tokens: usize,
    /// Tokens of the prompt that were not computed, by where they were found.
    cached_tokens: CachedTokens,
    /// Tokens that the conversation may have.
    #[serde(skip)]
    context: usize,
}

impl<'a> Session<'a> {
    /// A new conversation.
    ///
    /// # Errors
    /// [`tilewise_engine::Error::Template`] of a model without a chat template; as
    /// [`crate::args::ConversationArgs::variables`].
    pub(super) fn new(
        args: &'a ChatArgs,
        tokenizer: &'a Tokenizer,
        sampling: SamplingParams,
    ) -> Result<Self, CliError> {
        let template = tokenizer.chat_template()?;
        let options = args.conversation.variables(template)?;
        let mut session = Self {
            format: ChatFormat::choose(Some(template), None, None)?,
            conversation: Conversation { options, ..Conversation::default() },
            turns: Vec::new(),
            args,
            tokenizer,
            template,
            sampling,
        };
        session.clear();
        Ok(session)
    }

    /// Forgets all turns.
    pub(super) fn clear(&mut self) {
        let system = self.args.conversation.system.iter();
        self.turns = system.map(|text| json!({ "role": "system", "content": text })).collect();
    }

    /// The answer to a turn, which `emit` is given as it comes and may break off. What was said until then stays the
    /// assistant's turn; where there is no answer, the user's turn is taken back.
    ///
    /// # Errors
    /// As [`ChatFormat::prepare`] and [`complete`]; [`CliError::Failed`] where the conversation fills the context.
    pub(super) fn answer(
        &mut self,
        engine: &mut Engine,
        text: &str,
        emit: impl FnMut(&Said) -> io::Result<ControlFlow<()>>,
    ) -> Result<Answer, CliError> {
        let before = self.turns.len();
        self.turns.push(json!({ "role": "user", "content": text }));
        let answer = self.ask(engine, emit);
        match &answer {
            Ok(answer) => {
                let mut turn = json!({ "role": "assistant", "content": answer.content });
                if !answer.reasoning.is_empty() {
                    turn["reasoning_content"] = answer.reasoning.clone().into();
                }
                self.turns.push(turn);
            }
            Err(_) => self.turns.truncate(before),
        }
        answer
    }

    /// The answer to the last turn.
    fn ask(
        &self,
        engine: &mut Engine,
        mut emit: impl FnMut(&Said) -> io::Result<ControlFlow<()>>,
    ) -> Result<Answer, CliError> {
        let conversation = Conversation { messages: self.turns.clone().into(), ..self.conversation.clone() };
        let prompt = self.format.prepare(self.template, &conversation)?;
        let mut output = prompt.reader;
        let prompt = self.tokenizer.encode(&prompt.text, false)?;
        // The last token of an answer needs no place in the cache.
        let context = engine.config().max_positions.min(engine.stats().total_tokens + 1);
        let room = context.saturating_sub(prompt.len());
        if room == 0 {
            let (tokens, limit) = (prompt.len(), self.limit(engine));
            return Err(CliError::Failed(format!(
                "the conversation has {tokens} tokens and {limit} holds {context}: /clear begins a new one"
            )));
        }
        let mut answer = Answer { prompt_tokens: prompt.len(), context, ..Answer::default() };
        let most = self.args.max_new_tokens.unwrap_or(room).min(room);
        let mut request = GenerateRequest::new(prompt, most);
        request.sampling = self.sampling.clone();
        let reader =
            Reader { tokenizer: Some(self.tokenizer), text: TextStream::new(self.args.run.stop.clone()) };
        let mut add = |said: &Said, answer: &mut Answer| {
            answer.content.push_str(&said.content());
            answer.reasoning.push_str(&said.reasoning());
            emit(said)
        };
        let generated = complete(engine, request, reader, |piece| add(&output.push(piece), &mut answer))?;
        let _ = add(&output.finish(""), &mut answer)?;
        answer.finish_reason = generated.finish_reason;
        answer.output_tokens = generated.output_ids.len();
        answer.cached_tokens = generated.cached_tokens;
        Ok(answer)
    }

    /// What sets the limit of the conversation.
    fn limit(&self, engine: &Engine) -> &'static str {
        let is_cache = engine.stats().total_tokens < engine.config().max_positions;
        match self.args.kv_tokens {
            Some(_) if is_cache => "the cache (--kv-tokens)",
            None if is_cache => "the cache that fits the memory",
            _ => "the model's context",
        }
    }

    /// Why an answer that has no end has none.
    pub(super) fn why_cut(&self, answer: &Answer) -> Option<String> {
        match answer.finish_reason {
            "length" if answer.prompt_tokens + answer.output_tokens >= answer.context => Some(format!(
                "the answer ends here because the context of {} tokens is full; /clear begins a new conversation",
                answer.context
            )),
            "length" => Some(format!(
                "the answer ends here because --max-new-tokens is {}",
                self.args.max_new_tokens.unwrap_or_default()
            )),
            ABORTED => Some("the answer was stopped; the conversation goes on".to_owned()),
            _ => None,
        }
    }
}
