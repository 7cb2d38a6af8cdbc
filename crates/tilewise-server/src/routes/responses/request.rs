//! What `/v1/responses` takes.

use serde::Deserialize;
use serde_json::Value;
use tilewise_engine::chat::{Conversation, Function, ToolChoice, Tools};
use utoipa::ToSchema;

use super::items::{Input, InputShape};
use crate::chats::{ChatAsk, TemplateFields};
use crate::error::ApiError;
use crate::grammars::{Form, TextFormat};
use crate::messages::Turn;
use crate::request::{Ignored, RequestFields, request};
use crate::sampling::{Sampling, SamplingFields};
use crate::state::App;
use crate::tools::{Choice, FunctionDefinition, ToolChoiceShape};

request! {
    /// A text or a conversation to answer.
    ResponsesRequest {
        response: ResponseFields,
        common: RequestFields,
        sampling: SamplingFields,
        template: TemplateFields,
    }
}

/// What only this endpoint takes.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct ResponseFields {
    #[schema(value_type = InputShape)]
    pub(crate) input: Input,
    /// Comes before the input, as the system's words.
    pub(crate) instructions: Option<String>,
    /// Tokens to generate at most; all that there is room for unless given.
    #[serde(default, deserialize_with = "crate::fields::whole")]
    #[schema(minimum = -1)]
    pub(crate) max_output_tokens: Option<i64>,
    pub(crate) text: Option<TextConfig>,
    /// Functions that may be called. Tools that OpenAI hosts are left out, and the header `x-ignored-fields` says so.
    #[schema(value_type = Option<Vec<FunctionTool>>)]
    pub(crate) tools: Option<Vec<Value>>,
    #[schema(value_type = Option<ToolChoiceShape>)]
    pub(crate) tool_choice: Option<Choice>,
    /// Whether an answer may call several functions.
    pub(crate) parallel_tool_calls: Option<bool>,
    pub(crate) reasoning: Option<ReasoningConfig>,
    /// Comes back as it is.
    #[schema(value_type = Option<Object>)]
    pub(crate) metadata: Option<Value>,
    /// Must be 0: there are no logprobs here.
    #[schema(minimum = 0, maximum = 0)]
    pub(crate) top_logprobs: Option<u64>,
}

/// The form of the answer.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub(crate) struct TextConfig {
    pub(crate) format: Option<TextFormat>,
}

/// How much the model reasons.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub(crate) struct ReasoningConfig {
    /// As `reasoning_effort` of a chat.
    pub(crate) effort: Option<String>,
}

/// A function that may be called.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is only described")]
pub(crate) struct FunctionTool {
    /// `function`.
    r#type: FunctionKind,
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_-]+$")]
    name: String,
    description: Option<String>,
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    strict: Option<bool>,
}

/// What a tool is.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "it is only described")]
pub(crate) enum FunctionKind {
    /// A function.
    Function,
}

impl ResponseFields {
    /// The functions, as they were given and as the engine takes them; names those that are left out.
    fn functions(&self, ignored: &mut Ignored) -> Result<(Vec<Value>, Vec<Function>), ApiError> {
        let (mut given, mut functions) = (Vec::new(), Vec::new());
        for (place, tool) in self.tools.iter().flatten().enumerate() {
            match tool.get("type").and_then(Value::as_str) {
                Some("function") => {
                    let read: Result<FunctionDefinition, _> = serde_json::from_value(tool.clone());
                    let wrong = |error| ApiError::param("tools", format!("tools[{place}]: {error}"));
                    functions.push(read.map_err(wrong)?.into());
                    given.push(tool.clone());
                }
                Some(kind) => ignored.0.push(format!("tools[{place}] ({kind})")),
                None => {
                    return Err(ApiError::param(
                        "tools",
                        format!("tools[{place}] has no type, such as function"),
                    ));
                }
            }
        }
        Ok((given, functions))
    }
}

impl ResponsesRequest {
    /// The conversation, how it is continued, and the functions as they were given.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn ask(&self, app: &App, ignored: &mut Ignored) -> Result<(ChatAsk, Vec<Value>), ApiError> {
        let fields = &self.response;
        if fields.top_logprobs.unwrap_or(0) > 0 {
            let message = "top_logprobs must be 0: answers of this endpoint have no logprobs";
            return Err(ApiError::unsupported("top_logprobs", message));
        }
        if self.sampling.n.unwrap_or(1) != 1 {
            return Err(ApiError::unsupported("n", "n must be 1: this endpoint gives one answer"));
        }
        let (given, functions) = fields.functions(ignored)?;
        let choice = self.choice(&functions);
        let invalid = |error| ApiError::refused(&error, "input");
        let format = fields.text.as_ref().and_then(|text| text.format.clone());
        let format = format.map(|format| format.form("text")).transpose()?.flatten();
        let effort = fields.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref());
        let (form_field, grammar) = Form::parts(self.sampling.form(format)?);
        let ask = ChatAsk {
            conversation: Conversation {
                messages: self.messages(app, ignored)?,
                tools: Tools::new(functions, &choice, fields.parallel_tool_calls).map_err(invalid)?,
                options: self.template.options(app, effort)?,
                grammar,
                ..Conversation::default()
            },
            sampling: Sampling {
                fields: self.sampling.clone(),
                max_tokens: ("max_output_tokens", fields.max_output_tokens),
                default_max_tokens: None,
                logprobs: ("top_logprobs", None),
            },
            cache_salt: self.common.salt(),
            field: "input",
            form_field,
        };
        Ok((ask, given))
    }

    /// Whether functions are called: where all tools were left out, there is nothing to choose from.
    fn choice(&self, functions: &[Function]) -> ToolChoice {
        let choice = self.response.tool_choice.clone().unwrap_or_default().0;
        let had_tools = self.response.tools.as_ref().is_some_and(|tools| !tools.is_empty());
        if functions.is_empty() && had_tools {
            return ToolChoice::Auto;
        }
        choice
    }

    /// The conversation as chat templates read it.
    fn messages(&self, app: &App, ignored: &mut Ignored) -> Result<Value, ApiError> {
        let instructions = self.response.instructions.iter().map(|text| Turn::new("system", text));
        let turns = self.response.input.turns(&app.kept_items, ignored)?;
        Ok(instructions.chain(turns).map(Turn::into_value).collect())
    }
}
