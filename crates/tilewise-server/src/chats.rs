//! Conversations continued, in whichever protocol they came.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use tilewise_engine::Error;
use tilewise_engine::chat::{Conversation, OutputReader, Said, Thinking};
use tilewise_engine::tokenizer::ChatTemplate;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::fields::Usage;
use crate::generation::{Batch, End, Generation, News, Token};
use crate::grammars::Form;
use crate::prompt::{check_length, encode};
use crate::sampling::{Ask, Sampling};
use crate::sse::Events;
use crate::state::{App, Room};

/// Bytes of a template's variables: it may copy them as often as it likes.
const MAX_VARIABLES: usize = 16 << 10;

/// What a request says to the chat template.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct TemplateFields {
    /// `none` turns reasoning off; another word turns it on, and reaches the chat template.
    pub(crate) reasoning_effort: Option<String>,
    /// Whether the model reasons.
    pub(crate) enable_thinking: Option<bool>,
    /// Variables of the chat template, such as `enable_thinking`.
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
}

impl TemplateFields {
    /// Variables of the template: the server's, then what the fields of reasoning say (`effort` is what another field of
    /// the protocol says of it), then the request's own.
    ///
    /// # Errors
    /// 400 for more than some KB.
    pub(crate) fn options(&self, app: &App, effort: Option<&str>) -> Result<Map<String, Value>, ApiError> {
        const FIELD: &str = "chat_template_kwargs";
        let own = self.chat_template_kwargs.clone().unwrap_or_default();
        if !own.is_empty() && Value::from(own.clone()).to_string().len() > MAX_VARIABLES {
            return Err(ApiError::param(FIELD, format!("{FIELD} must have at most {MAX_VARIABLES} bytes")));
        }
        let effort = self.reasoning_effort.as_deref().or(effort);
        let mut thinking = effort.map(Thinking::of_effort).unwrap_or_default();
        thinking.enabled = self.enable_thinking.or(thinking.enabled);
        let mut options = app.config.chat_template_kwargs.clone();
        thinking.set(&mut options);
        options.extend(own);
        Ok(options)
    }
}

/// A conversation, and how it is continued.
#[derive(Debug, Default)]
pub(crate) struct ChatAsk {
    pub(crate) conversation: Conversation,
    pub(crate) sampling: Sampling,
    pub(crate) cache_salt: Option<String>,
    /// The field that the conversation came in.
    pub(crate) field: &'static str,
    /// The field of the conversation's grammar.
    pub(crate) form_field: &'static str,
}

/// What is new of an answer.
#[derive(Debug)]
pub(crate) enum ChatNews {
    /// A token, and what it adds; often nothing.
    Token { index: usize, said: Said, token: Token },
    /// An answer is over; with what was held back. It is a call if it called something and was not cut off.
    End { index: usize, said: Said, end: End, is_call: bool },
}

/// The answers to a conversation, as they come.
pub(crate) struct Chat {
    batch: Batch,
    readers: Vec<OutputReader>,
    reasoning_tokens: usize,
}

impl ChatAsk {
    /// The prompt's tokens, and what obeys and reads its continuation. Runs a template and a tokenizer.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn prompt(&self, app: &App) -> Result<(Vec<u32>, Option<Form>, OutputReader), ApiError> {
        let invalid = |error: Error| match error {
            Error::Grammar(_) => ApiError::refused(&error, self.form_field),
            _ => ApiError::refused(&error, self.field),
        };
        let template: &ChatTemplate = app.model.tokenizer.chat_template().map_err(invalid)?;
        let prompt = app.model.format.prepare(template, &self.conversation).map_err(invalid)?;
        check_length(app, &prompt.text, self.field)?;
        let form = prompt.grammar.map(|grammar| Form { field: self.form_field, grammar });
        Ok((encode(app, &prompt.text, false, self.field)?, form, prompt.reader))
    }

    /// What the engine is asked, and what reads its answer.
    ///
    /// # Errors
    /// 400 that names the field.
    fn prepare(&self, app: &App) -> Result<(Ask, OutputReader), ApiError> {
        let (ids, form, reader) = self.prompt(app)?;
        let mut ask = self.sampling.ask(app, ids, self.field, form)?;
        ask.request.cache_salt.clone_from(&self.cache_salt);
        Ok((ask, reader))
    }
}

impl Chat {
    /// Prepares a conversation, which has the room of all its answers, and queues it under a name.
    ///
    /// # Errors
    /// 400 that names the field, 503 if the engine has failed.
    pub(crate) async fn start(
        app: &Arc<App>,
        ask: ChatAsk,
        room: Room,
        name: &str,
    ) -> Result<Self, ApiError> {
        let (worker, field, n) = (app.clone(), ask.field, ask.sampling.fields.completions()?);
        // The room is given back when the work is over, even if nobody waits for it any more.
        let prepare = move || ask.prepare(&worker).map(|(ask, reader)| (room, ask, reader));
        let (room, ask, reader) = app.prepare(prepare).await?;
        let generation = Generation::start(app, ask, room, name, field).await?;
        Ok(Self { batch: Batch::new(vec![generation]), readers: vec![reader; n], reasoning_tokens: 0 })
    }

    /// Continues a prompt that is no conversation.
    ///
    /// # Errors
    /// As [`Generation::start`].
    pub(crate) async fn plain(
        app: &Arc<App>,
        ask: Ask,
        room: Room,
        name: &str,
        field: &str,
    ) -> Result<Self, ApiError> {
        let readers = vec![OutputReader::plain(); ask.request.n];
        let generation = Generation::start(app, ask, room, name, field).await?;
        Ok(Self { batch: Batch::new(vec![generation]), readers, reasoning_tokens: 0 })
    }

    /// What is new; `None` when all answers are over.
    ///
    /// # Errors
    /// As [`Generation::poll_next`].
    pub(crate) async fn next(&mut self) -> Option<Result<ChatNews, ApiError>> {
        loop {
            match self.batch.next().await?.map(|(_, news)| news) {
                Err(error) => return Some(Err(error)),
                Ok(News::Prompt { .. }) => {}
                Ok(News::Token { index, text, token }) => {
                    let reader = &mut self.readers[index];
                    self.reasoning_tokens += usize::from(reader.is_reasoning());
                    let said = reader.push(&text);
                    if reader.is_over() {
                        self.batch.generations[0].finish(index);
                    }
                    return Some(Ok(ChatNews::Token { index, said, token }));
                }
                Ok(News::End { index, text, end }) => {
                    let reader = &mut self.readers[index];
                    let said = reader.finish(&text);
                    let is_call = reader.has_calls() && !matches!(end, End::Length | End::Aborted);
                    return Some(Ok(ChatNews::End { index, said, end, is_call }));
                }
            }
        }
    }

    /// What all took so far.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = self.batch.usage();
        usage.completion_tokens_details.reasoning_tokens = self.reasoning_tokens;
        usage
    }
}

/// What a protocol makes of an answer's news: its form on the wire.
pub(crate) trait Protocol: Send + 'static {
    /// What a stream begins with.
    fn begin(&mut self, usage: Usage) -> String;

    /// What news add to a stream; often nothing.
    fn take(&mut self, news: ChatNews, usage: Usage) -> String;

    /// What ends a stream that failed.
    fn fail(&mut self, error: &ApiError) -> String;

    /// What ends a stream.
    fn end(&mut self, _usage: Usage) -> String {
        String::new()
    }
}

/// An answer that is being made.
pub(crate) struct Answer<P> {
    chat: Chat,
    protocol: P,
    state: Progress,
}

/// Where a stream is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Begins,
    Runs,
    IsOver,
}

impl<P: Protocol> Answer<P> {
    pub(crate) fn new(chat: Chat, protocol: P) -> Self {
        Self { chat, protocol, state: Progress::Begins }
    }

    /// All of it at once: the protocol once it has taken all news, and what it took.
    ///
    /// # Errors
    /// As [`Chat::next`].
    pub(crate) async fn whole(mut self) -> Result<(P, Usage), ApiError> {
        while let Some(news) = self.chat.next().await {
            let news = news?;
            self.protocol.take(news, self.chat.usage());
        }
        let usage = self.chat.usage();
        Ok((self.protocol, usage))
    }
}

impl<P: Protocol> Events for Answer<P> {
    async fn next(&mut self) -> Option<String> {
        while self.state != Progress::IsOver {
            let words = if self.state == Progress::Begins {
                self.state = Progress::Runs;
                self.protocol.begin(self.chat.usage())
            } else {
                match self.chat.next().await {
                    Some(Ok(news)) => self.protocol.take(news, self.chat.usage()),
                    Some(Err(error)) => {
                        self.state = Progress::IsOver;
                        self.protocol.fail(&error)
                    }
                    None => {
                        self.state = Progress::IsOver;
                        self.protocol.end(self.chat.usage())
                    }
                }
            };
            if !words.is_empty() {
                return Some(words);
            }
        }
        None
    }
}
