//! What `/v1/chat/completions` takes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tilewise_engine::Grammar;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::fields::{Off, On, OneOrMany, StreamOptions, Unset, Zero};
use crate::grammars::{self, ResponseFormat};
use crate::sampling::Sampling;
use crate::tools::{ToolChoice, ToolDefinition};

/// Messages of a conversation at most.
const MAX_MESSAGES: usize = 4096;

/// A conversation to continue.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[expect(dead_code, reason = "some fields are only taken, so that others can send them")]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatRequest {
    pub(crate) model: Option<String>,
    /// What was said.
    #[schema(min_items = 1, max_items = 4096)]
    pub(crate) messages: Vec<Message>,
    #[schema(minimum = 1)]
    max_tokens: Option<u64>,
    /// Tokens to generate at most; all that there is room for unless given.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u64>,
    #[schema(minimum = 0)]
    temperature: Option<f32>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// -1 for all.
    top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    #[schema(minimum = 1, maximum = 128)]
    n: Option<u64>,
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) logprobs: Option<bool>,
    /// The most probable tokens to tell with each; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u64>,
    stop: Option<OneOrMany<String>>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    #[schema(minimum = 0.000001, maximum = 1000000)]
    repetition_penalty: Option<f32>,
    /// Added to the logits of tokens, by their ids.
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    sampling_seed: Option<i64>,
    response_format: Option<ResponseFormat>,
    regex: Option<String>,
    #[schema(max_items = 128)]
    pub(crate) tools: Option<Vec<ToolDefinition>>,
    pub(crate) tool_choice: Option<ToolChoice>,
    pub(crate) parallel_tool_calls: Option<bool>,
    /// Whether reasoning comes apart from the content; true unless given.
    pub(crate) separate_reasoning: Option<bool>,
    /// Variables of the chat template, such as `enable_thinking`.
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the last message, the assistant's, is continued.
    pub(crate) continue_final_message: Option<bool>,
    /// Whose cached prefixes may be shared: those of requests with the same salt.
    pub(crate) cache_salt: Option<String>,
    /// A name by which the request can be aborted.
    pub(crate) rid: Option<String>,
    /// Taken and not used.
    user: Option<String>,
    /// Taken and not used.
    metadata: Option<BTreeMap<String, String>>,
    /// Taken and not used.
    prompt_cache_key: Option<String>,
    /// Taken and not used.
    safety_identifier: Option<String>,
    store: Option<Off>,
    stream_reasoning: Option<On>,
    skip_special_tokens: Option<On>,
    no_stop_trim: Option<Off>,
    return_hidden_states: Option<Off>,
    min_tokens: Option<Zero>,
    functions: Option<Unset>,
    function_call: Option<Unset>,
    modalities: Option<Unset>,
    audio: Option<Unset>,
    prediction: Option<Unset>,
    reasoning_effort: Option<Unset>,
    service_tier: Option<Unset>,
    verbosity: Option<Unset>,
    web_search_options: Option<Unset>,
    ebnf: Option<Unset>,
    lora_path: Option<Unset>,
    session_params: Option<Unset>,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    role: Role,
    content: Option<Content>,
    /// Who speaks, where several have a role.
    name: Option<String>,
    /// What the assistant thought.
    reasoning_content: Option<String>,
    /// Functions that the assistant called.
    tool_calls: Option<Vec<MessageCall>>,
    /// The call that a tool answers.
    tool_call_id: Option<String>,
    refusal: Option<Unset>,
    annotations: Option<Vec<Option<Unset>>>,
    audio: Option<Unset>,
    function_call: Option<Unset>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// The one who sets the rules.
    System,
    /// The same.
    Developer,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// A function's answer.
    Tool,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Content {
    /// At once.
    Text(String),
    /// In parts, which are texts.
    Parts(Vec<Part>),
}

/// A part of what is said.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Part {
    /// A text.
    Text {
        /// It.
        text: String,
    },
}

/// A function that the assistant called.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum MessageCall {
    /// A function.
    Function {
        /// The call's name.
        id: String,
        /// Which function, and with what.
        function: CalledFunction,
        /// Its place among the calls.
        index: Option<u64>,
    },
}

/// A call.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CalledFunction {
    name: String,
    /// JSON as text.
    arguments: String,
}

impl Message {
    /// As chat templates read it.
    fn for_template(&self) -> Value {
        let role = match self.role {
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let content = match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => parts.iter().map(|Part::Text { text }| text.as_str()).collect(),
        };
        let mut message = json!({ "role": role, "content": content });
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                message[key] = value;
            }
        };
        set("name", self.name.clone().map(Value::from));
        set("reasoning_content", self.reasoning_content.clone().map(Value::from));
        set("tool_call_id", self.tool_call_id.clone().map(Value::from));
        let calls = self.tool_calls.as_ref().filter(|calls| !calls.is_empty());
        set("tool_calls", calls.map(|calls| calls.iter().map(MessageCall::for_template).collect()));
        message
    }

    fn is_assistant(&self) -> bool {
        self.role == Role::Assistant
    }
}

impl MessageCall {
    /// Templates take arguments as an object where they are one.
    fn for_template(&self) -> Value {
        let Self::Function { id, function: CalledFunction { name, arguments }, .. } = self;
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|_| arguments.clone().into());
        json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
    }
}

impl ChatRequest {
    /// The conversation as chat templates read it.
    ///
    /// # Errors
    /// 400 for none or too many messages.
    pub(crate) fn conversation(&self) -> Result<Value, ApiError> {
        if !(1..=MAX_MESSAGES).contains(&self.messages.len()) {
            let message = format!("messages must be from 1 to {MAX_MESSAGES}, got {}", self.messages.len());
            return Err(ApiError::param("messages", message));
        }
        Ok(self.messages.iter().map(Message::for_template).collect())
    }

    /// Whether the text begins inside the last message.
    ///
    /// # Errors
    /// 400 if that is not the assistant's.
    pub(crate) fn continues(&self) -> Result<bool, ApiError> {
        let continues = self.continue_final_message.unwrap_or(false);
        if continues && !self.messages.last().is_some_and(Message::is_assistant) {
            let message = "the last message must be the assistant's to be continued";
            return Err(ApiError::param("continue_final_message", message));
        }
        Ok(continues)
    }

    /// What it says of sampling.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn sampling(&self, call: Option<Grammar>) -> Result<Sampling, ApiError> {
        let has_logprobs = self.logprobs.unwrap_or(false);
        if self.top_logprobs.is_some_and(|top| top > 0) && !has_logprobs {
            return Err(ApiError::param("top_logprobs", "top_logprobs needs logprobs"));
        }
        let max_tokens = match (self.max_completion_tokens, self.max_tokens) {
            (None, max_tokens) => ("max_tokens", max_tokens),
            (given, _) => ("max_completion_tokens", given),
        };
        Ok(Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.or(self.sampling_seed),
            n: self.n,
            max_tokens,
            default_max_tokens: None,
            stop: self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default(),
            stop_ids: self.stop_token_ids.clone().unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            logprobs: ("top_logprobs", has_logprobs.then(|| self.top_logprobs.unwrap_or(0))),
            grammar: grammars::only_one([
                call,
                self.response_format
                    .clone()
                    .map(|format| format.grammar("response_format"))
                    .transpose()?
                    .flatten(),
                self.regex.as_deref().map(|regex| grammars::regex("regex", regex)).transpose()?,
            ])?,
        })
    }
}
