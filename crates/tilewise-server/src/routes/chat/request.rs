//! What `/v1/chat/completions` takes.

use serde::Deserialize;
use serde_json::Value;
use tilewise_engine::chat::{Conversation, Tools};
use utoipa::ToSchema;

use crate::chats::{ChatAsk, TemplateFields};
use crate::error::ApiError;
use crate::grammars::Form;
use crate::messages::{Message, Turn};
use crate::request::{RequestFields, request};
use crate::sampling::{Sampling, SamplingFields};
use crate::state::App;
use crate::tools::{Choice, ToolChoiceShape, ToolDefinition, functions};

/// Messages of a conversation at most.
const MAX_MESSAGES: usize = 4096;

request! {
    /// A conversation to continue.
    ChatRequest {
        chat: ChatFields,
        common: RequestFields,
        sampling: SamplingFields,
        template: TemplateFields,
    }
}

/// What only this endpoint takes.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct ChatFields {
    /// What was said.
    #[schema(min_items = 1, max_items = 4096)]
    messages: Vec<Message>,
    #[serde(default, deserialize_with = "crate::fields::whole")]
    #[schema(minimum = -1)]
    max_tokens: Option<i64>,
    /// Tokens to generate at most; all that there is room for unless given.
    #[serde(default, deserialize_with = "crate::fields::whole")]
    #[schema(minimum = -1)]
    max_completion_tokens: Option<i64>,
    pub(crate) logprobs: Option<bool>,
    /// The most probable tokens to tell with each; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u64>,
    #[schema(max_items = 128)]
    tools: Option<Vec<ToolDefinition>>,
    #[schema(value_type = Option<ToolChoiceShape>)]
    tool_choice: Option<Choice>,
    /// Whether an answer may call several functions.
    parallel_tool_calls: Option<bool>,
    /// Whether reasoning comes apart from the content; true unless given.
    separate_reasoning: Option<bool>,
    /// Whether the last message, the assistant's, is continued.
    continue_final_message: Option<bool>,
}

impl ChatRequest {
    /// The conversation, and how it is continued.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn ask(&self, app: &App) -> Result<ChatAsk, ApiError> {
        let fields = &self.chat;
        let invalid = |error| ApiError::refused(&error, "messages");
        let choice = fields.tool_choice.clone().unwrap_or_default().0;
        let tools = functions(fields.tools.clone());
        let tools = Tools::new(tools, &choice, fields.parallel_tool_calls).map_err(invalid)?;
        let (form_field, grammar) = Form::parts(self.sampling.form(None)?);
        Ok(ChatAsk {
            conversation: Conversation {
                messages: self.messages()?,
                tools,
                options: self.template.options(app, None)?,
                continues: self.continues()?,
                grammar,
                keeps_reasoning: !fields.separate_reasoning.unwrap_or(true),
            },
            sampling: self.sampling()?,
            cache_salt: self.common.salt(),
            field: "messages",
            form_field,
        })
    }

    fn messages(&self) -> Result<Value, ApiError> {
        let messages = &self.chat.messages;
        if !(1..=MAX_MESSAGES).contains(&messages.len()) {
            let message = format!("messages must be from 1 to {MAX_MESSAGES}, got {}", messages.len());
            return Err(ApiError::param("messages", message));
        }
        Ok(messages.iter().map(Message::turn).map(Turn::into_value).collect())
    }

    fn continues(&self) -> Result<bool, ApiError> {
        let continues = self.chat.continue_final_message.unwrap_or(false);
        if continues && !self.chat.messages.last().is_some_and(Message::is_assistant) {
            let message = "the last message must be the assistant's to be continued";
            return Err(ApiError::param("continue_final_message", message));
        }
        Ok(continues)
    }

    fn sampling(&self) -> Result<Sampling, ApiError> {
        let has_logprobs = self.chat.logprobs.unwrap_or(false);
        if self.chat.top_logprobs.is_some_and(|top| top > 0) && !has_logprobs {
            return Err(ApiError::param("top_logprobs", "top_logprobs needs logprobs"));
        }
        let max_tokens = match (self.chat.max_completion_tokens, self.chat.max_tokens) {
            (None, max_tokens) => ("max_tokens", max_tokens),
            (given, _) => ("max_completion_tokens", given),
        };
        Ok(Sampling {
            fields: self.sampling.clone(),
            max_tokens,
            default_max_tokens: None,
            logprobs: ("top_logprobs", has_logprobs.then(|| self.chat.top_logprobs.unwrap_or(0))),
        })
    }
}
