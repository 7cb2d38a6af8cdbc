//! What `/v1/messages` takes.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tilewise_engine::chat::{Conversation, Function, ToolChoice, Tools};
use utoipa::ToSchema;

use crate::chats::{ChatAsk, TemplateFields};
use crate::error::ApiError;
use crate::fields::OneOrMany;
use crate::grammars::{Form, TextFormat};
use crate::messages::{Turn, TurnCall};
use crate::request::{Ignored, request};
use crate::sampling::{Sampling, SamplingFields};
use crate::state::App;

/// Messages of a conversation at most.
const MAX_MESSAGES: usize = 4096;

request! {
    /// A conversation to continue, in Anthropic's words. Fields that nobody knows are ignored and named in the header
    /// `x-ignored-fields`.
    MessagesRequest ignores true { fields: MessagesFields }
}

/// What is taken.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct MessagesFields {
    pub(crate) model: Option<String>,
    /// Tokens to generate at most; all that there is room for unless given.
    #[serde(default, deserialize_with = "crate::fields::whole")]
    #[schema(minimum = 1)]
    max_tokens: Option<i64>,
    #[schema(min_items = 1, max_items = 4096)]
    messages: Vec<InputMessage>,
    /// The system's words: a text, or blocks of text.
    #[schema(value_type = Option<String>)]
    system: Option<Value>,
    pub(crate) stream: Option<bool>,
    stop_sequences: Option<Vec<String>>,
    #[schema(minimum = 0)]
    temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    #[serde(default, deserialize_with = "crate::fields::whole")]
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    /// Functions; tools that Anthropic hosts are left out and named in the header `x-ignored-fields`.
    tools: Option<Vec<Tool>>,
    tool_choice: Option<MessagesChoice>,
    thinking: Option<ThinkingConfig>,
    /// The form and the effort of the answer.
    output_config: Option<OutputConfig>,
}

/// One turn.
#[derive(Debug, Clone, Deserialize, ToSchema)]
struct InputMessage {
    role: InputRole,
    /// A text, or blocks: `text`, `thinking`, `tool_use`, `tool_result`.
    #[schema(value_type = String)]
    content: Value,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum InputRole {
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// The one who sets the rules.
    System,
}

/// A function, or a tool that Anthropic hosts.
#[derive(Debug, Clone, Deserialize, ToSchema)]
struct Tool {
    /// `custom` for a function; it is one unless given.
    #[serde(rename = "type")]
    kind: Option<String>,
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_-]+$")]
    #[serde(default)]
    name: String,
    description: Option<String>,
    /// A schema of its arguments.
    #[schema(value_type = Option<Object>)]
    input_schema: Option<Value>,
    strict: Option<bool>,
}

/// Whether functions are called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
struct MessagesChoice {
    /// `auto`, `any`, `tool` or `none`.
    #[serde(rename = "type")]
    kind: ChoiceKind,
    /// Which one, for `tool`.
    name: Option<String>,
    /// Whether an answer calls one function at most.
    disable_parallel_tool_use: Option<bool>,
}

/// Whether functions are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ChoiceKind {
    /// As the model likes.
    Auto,
    /// One is.
    Any,
    /// This one is.
    Tool,
    /// None is.
    None,
}

/// Whether the model thinks.
#[derive(Debug, Clone, Deserialize, ToSchema)]
struct ThinkingConfig {
    /// `enabled`, `adaptive` or `disabled`.
    #[serde(rename = "type")]
    kind: String,
}

/// The form and the effort of the answer.
#[derive(Debug, Clone, Deserialize, ToSchema)]
struct OutputConfig {
    /// As `reasoning_effort` of a chat.
    effort: Option<String>,
    format: Option<TextFormat>,
}

impl MessagesRequest {
    /// The conversation, and how it is continued.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(super) fn ask(&self, app: &App, ignored: &mut Ignored) -> Result<ChatAsk, ApiError> {
        let fields = &self.fields;
        let format = fields.output_config.as_ref().and_then(|config| config.format.clone());
        let format = format.map(|format| format.form("output_config")).transpose()?.flatten();
        if fields.max_tokens == Some(-1) {
            return Err(ApiError::param("max_tokens", "max_tokens must be at least 1, got -1"));
        }
        let (form_field, grammar) = Form::parts(format);
        Ok(ChatAsk {
            conversation: Conversation {
                messages: self.messages(ignored)?,
                tools: self.tools(ignored)?,
                options: self.options(app)?,
                continues: self.continues(),
                grammar,
                ..Conversation::default()
            },
            sampling: Sampling {
                fields: SamplingFields {
                    temperature: fields.temperature,
                    top_p: fields.top_p,
                    top_k: fields.top_k,
                    stop: fields.stop_sequences.clone().map(OneOrMany::Many),
                    ..SamplingFields::default()
                },
                max_tokens: ("max_tokens", fields.max_tokens),
                default_max_tokens: None,
                logprobs: ("logprobs", None),
            },
            cache_salt: None,
            field: "messages",
            form_field,
        })
    }

    /// Whether the text begins inside the last message: one of the assistant's words.
    fn continues(&self) -> bool {
        let is_call = |block: &Value| block["type"] == "tool_use";
        self.fields.messages.last().is_some_and(|last| {
            last.role == InputRole::Assistant
                && !last.content.as_array().is_some_and(|blocks| blocks.iter().any(is_call))
        })
    }

    fn options(&self, app: &App) -> Result<Map<String, Value>, ApiError> {
        let fields = &self.fields;
        let effort = fields.output_config.as_ref().and_then(|config| config.effort.clone());
        // In this protocol a model thinks where it is asked to.
        let is_told = effort.is_some() || app.config.chat_template_kwargs.contains_key("enable_thinking");
        let asked = fields.thinking.as_ref().map(|thinking| thinking.kind != "disabled");
        let enabled = if is_told { asked } else { Some(asked.unwrap_or(false)) };
        let template = TemplateFields { enable_thinking: enabled, ..TemplateFields::default() };
        template.options(app, effort.as_deref())
    }

    fn tools(&self, ignored: &mut Ignored) -> Result<Tools, ApiError> {
        let fields = &self.fields;
        let mut functions = Vec::new();
        for (place, tool) in fields.tools.iter().flatten().enumerate() {
            match tool.kind.as_deref() {
                None | Some("custom") => functions.push(Function {
                    name: tool.name.clone(),
                    description: tool.description.clone(),
                    parameters: tool.input_schema.clone(),
                    strict: tool.strict.unwrap_or(false),
                }),
                Some(kind) => ignored.0.push(format!("tools[{place}] ({kind})")),
            }
        }
        let choice = match &fields.tool_choice {
            None => ToolChoice::Auto,
            Some(MessagesChoice { kind, name, .. }) => match (kind, name) {
                (ChoiceKind::Auto, _) => ToolChoice::Auto,
                (ChoiceKind::Any, _) => ToolChoice::Required,
                (ChoiceKind::None, _) => ToolChoice::None,
                (ChoiceKind::Tool, Some(name)) => ToolChoice::Named(name.clone()),
                (ChoiceKind::Tool, None) => {
                    return Err(ApiError::param("tool_choice", "tool_choice.name is missing"));
                }
            },
        };
        // Where all tools were left out, there is nothing to choose from.
        let had_tools = fields.tools.as_ref().is_some_and(|tools| !tools.is_empty());
        let choice = if functions.is_empty() && had_tools { ToolChoice::Auto } else { choice };
        let disabled = fields.tool_choice.as_ref().and_then(|choice| choice.disable_parallel_tool_use);
        let parallel = disabled.map(|disabled| !disabled);
        Tools::new(functions, &choice, parallel).map_err(|error| ApiError::refused(&error, "messages"))
    }

    /// The turns as chat templates read them.
    fn messages(&self, ignored: &mut Ignored) -> Result<Value, ApiError> {
        let messages = &self.fields.messages;
        if !(1..=MAX_MESSAGES).contains(&messages.len()) {
            let message = format!("messages must be from 1 to {MAX_MESSAGES}, got {}", messages.len());
            return Err(ApiError::param("messages", message));
        }
        let mut turns = Vec::new();
        if let Some(system) = self.fields.system.as_ref().filter(|system| !system.is_null()) {
            let text = Blocks::read("system", system, ignored)?.text;
            turns.push(Turn::new("system", &text));
        }
        for (place, message) in messages.iter().enumerate() {
            let path = format!("messages[{place}].content");
            let blocks = Blocks::read(&path, &message.content, ignored)?;
            match message.role {
                InputRole::User => blocks.add_user(&mut turns),
                InputRole::System => turns.push(Turn::new("system", &blocks.text)),
                InputRole::Assistant => {
                    let thought = (!blocks.thinking.is_empty()).then(|| blocks.thinking.into());
                    let turn = Turn::new("assistant", &blocks.text).with("reasoning_content", thought);
                    turns.push(turn.with_calls(blocks.calls));
                }
            }
        }
        Ok(turns.into_iter().map(Turn::into_value).collect())
    }
}

/// What the blocks of a turn say.
#[derive(Default)]
struct Blocks {
    text: String,
    thinking: String,
    calls: Vec<TurnCall>,
    /// Of each call, its name and what the function returned.
    results: Vec<(String, String)>,
}

impl Blocks {
    fn read(path: &str, content: &Value, ignored: &mut Ignored) -> Result<Self, ApiError> {
        let mut all = Self::default();
        let blocks = match content {
            Value::String(text) => {
                all.text.clone_from(text);
                return Ok(all);
            }
            Value::Array(blocks) => blocks,
            _ => return Err(ApiError::param(path, format!("{path} must be a text or a list of blocks"))),
        };
        for (place, block) in blocks.iter().enumerate() {
            all.add(&format!("{path}[{place}]"), block, ignored)?;
        }
        Ok(all)
    }

    fn add(&mut self, path: &str, block: &Value, ignored: &mut Ignored) -> Result<(), ApiError> {
        let word = |name: &str| block.get(name).and_then(Value::as_str);
        let needed = |name: &str| {
            let missing = || {
                let path = format!("{path}.{name}");
                ApiError::param(&path, format!("{path} is missing")).code("missing_field")
            };
            word(name).map(str::to_owned).ok_or_else(missing)
        };
        match word("type").unwrap_or_default() {
            "text" => self.text.push_str(&needed("text")?),
            "thinking" => self.thinking.push_str(&needed("thinking")?),
            // It was never readable.
            "redacted_thinking" => {}
            "tool_use" => self.calls.push(TurnCall {
                id: needed("id")?,
                name: needed("name")?,
                arguments: block.get("input").cloned().unwrap_or_else(|| json!({})),
            }),
            "tool_result" => {
                let content = block.get("content").filter(|content| !content.is_null());
                let path = format!("{path}.content");
                let text = content.map(|content| Self::read(&path, content, ignored)).transpose()?;
                self.results.push((needed("tool_use_id")?, text.unwrap_or_default().text));
            }
            kind if kind.starts_with("server_tool") || kind.ends_with("_tool_result") => {
                ignored.0.push(format!("{path} ({kind})"));
            }
            kind => {
                let message =
                    format!("{path} has the type {kind:?}, and the model reads text alone; leave it out");
                return Err(ApiError::unsupported(path, message));
            }
        }
        Ok(())
    }

    /// What functions returned, then what the user says.
    fn add_user(self, turns: &mut Vec<Turn>) {
        let is_answer = !self.results.is_empty();
        for (id, text) in self.results {
            turns.push(Turn::new("tool", &text).with("tool_call_id", Some(id.into())));
        }
        if !is_answer || !self.text.is_empty() {
            turns.push(Turn::new("user", &self.text));
        }
    }
}
