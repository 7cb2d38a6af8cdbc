//! What `/api/chat` and `/api/generate` take.

use serde::Deserialize;
use serde_json::{Map, Value};
use tilewise_engine::chat::{Conversation, ToolChoice, Tools};
use utoipa::ToSchema;

use crate::chats::{ChatAsk, TemplateFields};
use crate::error::ApiError;
use crate::fields::OneOrMany;
use crate::grammars::{Form, bare_format};
use crate::messages::{Turn, TurnCall};
use crate::request::{Ignored, Reader, request};
use crate::sampling::{Sampling, SamplingFields};
use crate::state::App;
use crate::tools::{ToolDefinition, functions};

/// Messages of a conversation at most.
const MAX_MESSAGES: usize = 4096;

request! {
    /// A conversation to continue, in Ollama's words. Fields that nobody knows are ignored and named in the header
    /// `x-ignored-fields`.
    OllamaChatRequest ignores true { chat: OllamaChatFields, common: OllamaFields }
}

request! {
    /// A prompt to continue, in Ollama's words. Fields that nobody knows are ignored and named in the header
    /// `x-ignored-fields`.
    OllamaGenerateRequest ignores true { generate: OllamaGenerateFields, common: OllamaFields }
}

/// What both take.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct OllamaFields {
    pub(crate) model: Option<String>,
    /// Whether the answer comes as it is made, a line with an object at a time; true unless given.
    pub(crate) stream: Option<bool>,
    /// `json`, or a schema.
    #[schema(value_type = Option<Object>)]
    format: Option<Value>,
    #[schema(value_type = Option<OllamaOptions>)]
    options: Option<Map<String, Value>>,
    /// Whether the model reasons, or how much.
    #[schema(value_type = Option<bool>)]
    think: Option<Value>,
    /// Taken and not used: the model stays loaded.
    #[schema(value_type = Option<String>)]
    #[expect(dead_code, reason = "it is only taken, so that others can send it")]
    keep_alive: Option<Value>,
}

/// How the text is drawn.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct OllamaOptions {
    temperature: Option<f32>,
    top_p: Option<f32>,
    #[serde(default, deserialize_with = "crate::fields::whole")]
    top_k: Option<i64>,
    min_p: Option<f32>,
    #[serde(default, deserialize_with = "crate::fields::seed")]
    #[schema(value_type = Option<i64>)]
    seed: Option<u64>,
    /// Tokens to generate at most; -1 and -2 are for all that there is room for.
    #[serde(default, deserialize_with = "crate::fields::whole")]
    num_predict: Option<i64>,
    stop: Option<OneOrMany<String>>,
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
}

/// What only a chat takes.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct OllamaChatFields {
    #[serde(default)]
    pub(crate) messages: Vec<OllamaMessage>,
    tools: Option<Vec<ToolDefinition>>,
}

/// One turn.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct OllamaMessage {
    /// `system`, `user`, `assistant` or `tool`.
    role: String,
    content: Option<String>,
    thinking: Option<String>,
    /// There may be none: the model reads text alone.
    images: Option<Vec<String>>,
    tool_calls: Option<Vec<OllamaCall>>,
    /// The function that answers.
    tool_name: Option<String>,
}

/// A function that was called.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct OllamaCall {
    function: OllamaFunction,
}

/// A function and what it was called with.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct OllamaFunction {
    name: String,
    #[schema(value_type = Option<Object>)]
    arguments: Option<Value>,
}

/// What only a prompt takes.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct OllamaGenerateFields {
    pub(crate) prompt: Option<String>,
    /// Comes before the prompt, as the system's words.
    system: Option<String>,
    /// Whether the prompt is continued as it stands, without the chat template.
    pub(crate) raw: Option<bool>,
    suffix: Option<String>,
    images: Option<Vec<String>>,
}

fn no_images(images: Option<&Vec<String>>) -> Result<(), ApiError> {
    match images.is_some_and(|images| !images.is_empty()) {
        true => Err(ApiError::unsupported("images", "images cannot be read: the model reads text alone")),
        false => Ok(()),
    }
}

impl OllamaFields {
    pub(crate) fn streams(&self) -> bool {
        self.stream.unwrap_or(true)
    }

    /// What it says of sampling; names options that are ignored.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn sampling(&self, ignored: &mut Ignored) -> Result<Sampling, ApiError> {
        let options = self.options.clone().map_or_else(|| Value::Object(Map::new()), Value::Object);
        let mut reader = Reader::new(&options, "options.");
        let fields: OllamaOptions = reader.group()?;
        ignored.0.extend(reader.finish(true)?);
        Ok(Sampling {
            fields: SamplingFields {
                temperature: fields.temperature,
                top_p: fields.top_p,
                top_k: fields.top_k,
                min_p: fields.min_p,
                seed: fields.seed,
                stop: fields.stop,
                repetition_penalty: fields.repeat_penalty,
                presence_penalty: fields.presence_penalty,
                frequency_penalty: fields.frequency_penalty,
                ..SamplingFields::default()
            },
            max_tokens: ("num_predict", fields.num_predict.filter(|&tokens| tokens >= 0)),
            default_max_tokens: None,
            logprobs: ("logprobs", None),
        })
    }

    /// What the text has to obey.
    ///
    /// # Errors
    /// 400.
    pub(crate) fn form(&self) -> Result<Option<Form>, ApiError> {
        bare_format("format", self.format.as_ref())
    }

    fn ask(
        &self,
        app: &App,
        turns: Vec<Turn>,
        tools: Tools,
        ignored: &mut Ignored,
    ) -> Result<ChatAsk, ApiError> {
        let template = TemplateFields {
            reasoning_effort: self.think.as_ref().and_then(Value::as_str).map(str::to_owned),
            enable_thinking: self.think.as_ref().and_then(Value::as_bool),
            ..TemplateFields::default()
        };
        let (form_field, grammar) = Form::parts(self.form()?);
        Ok(ChatAsk {
            conversation: Conversation {
                messages: turns.into_iter().map(Turn::into_value).collect(),
                tools,
                options: template.options(app, None)?,
                grammar,
                ..Conversation::default()
            },
            sampling: self.sampling(ignored)?,
            cache_salt: None,
            field: "messages",
            form_field,
        })
    }
}

impl OllamaChatRequest {
    /// The conversation, and how it is continued.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(super) fn ask(&self, app: &App, ignored: &mut Ignored) -> Result<ChatAsk, ApiError> {
        let messages = &self.chat.messages;
        if messages.len() > MAX_MESSAGES {
            let message = format!("messages must be at most {MAX_MESSAGES}, got {}", messages.len());
            return Err(ApiError::param("messages", message));
        }
        let turns = messages.iter().map(OllamaMessage::turn).collect::<Result<Vec<_>, _>>()?;
        let tools = Tools::new(functions(self.chat.tools.clone()), &ToolChoice::Auto, None)
            .map_err(|error| ApiError::refused(&error, "messages"))?;
        self.common.ask(app, turns, tools, ignored)
    }
}

impl OllamaGenerateRequest {
    /// The prompt as a conversation, and how it is continued.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(super) fn ask(&self, app: &App, ignored: &mut Ignored) -> Result<ChatAsk, ApiError> {
        let OllamaGenerateFields { prompt, system, .. } = &self.generate;
        let system = system.iter().filter(|text| !text.is_empty()).map(|text| Turn::new("system", text));
        let turns = system.chain(prompt.iter().map(|text| Turn::new("user", text))).collect();
        self.common.ask(app, turns, Tools::default(), ignored)
    }

    /// Refuses what cannot be done with a prompt here.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        no_images(self.generate.images.as_ref())?;
        match self.generate.suffix.as_deref().unwrap_or_default() {
            "" => Ok(()),
            _ => Err(ApiError::unsupported("suffix", "a suffix is not supported: leave it out")),
        }
    }
}

impl OllamaMessage {
    fn turn(&self) -> Result<Turn, ApiError> {
        no_images(self.images.as_ref())?;
        let role = match self.role.as_str() {
            "system" | "developer" => "system",
            role @ ("user" | "assistant" | "tool") => role,
            other => {
                let message =
                    format!("a message's role must be system, user, assistant or tool, got {other:?}");
                return Err(ApiError::param("messages", message));
            }
        };
        // Ollama's calls have no names of their own: what a function answers is told by the order.
        let call = |call: &OllamaCall| TurnCall {
            id: String::new(),
            name: call.function.name.clone(),
            arguments: call.function.arguments.clone().unwrap_or_default(),
        };
        Ok(Turn::new(role, self.content.as_deref().unwrap_or_default())
            .with("name", self.tool_name.clone().map(Value::from))
            .with("reasoning_content", self.thinking.clone().map(Value::from))
            .with_calls(self.tool_calls.iter().flatten().map(call).collect()))
    }
}

/// A model that is asked about.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct ShowFields {
    pub(crate) model: Option<String>,
    /// The same, in older clients.
    pub(crate) name: Option<String>,
}

request! {
    /// A model that is asked about.
    ShowRequest ignores true { fields: ShowFields }
}
