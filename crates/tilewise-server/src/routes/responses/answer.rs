//! What `/v1/responses` answers.

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::fields::Usage;
use crate::tools::ToolChoiceShape;

/// An answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ResponseObject {
    pub(crate) id: String,
    /// `response`.
    pub(crate) object: &'static str,
    pub(crate) created_at: u64,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub(crate) status: &'static str,
    #[schema(value_type = Option<Object>)]
    pub(crate) error: Option<Value>,
    pub(crate) incomplete_details: Option<IncompleteDetails>,
    pub(crate) instructions: Option<String>,
    pub(crate) max_output_tokens: Option<i64>,
    pub(crate) model: String,
    pub(crate) output: Vec<OutputItem>,
    pub(crate) parallel_tool_calls: bool,
    pub(crate) previous_response_id: Option<String>,
    pub(crate) store: bool,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    /// As it was asked for.
    #[schema(value_type = ToolChoiceShape)]
    pub(crate) tool_choice: Value,
    /// The functions that may be called.
    #[schema(value_type = Vec<Object>)]
    pub(crate) tools: Vec<Value>,
    /// `disabled`.
    pub(crate) truncation: &'static str,
    #[schema(value_type = Object)]
    pub(crate) metadata: Value,
    pub(crate) usage: Option<ResponseUsage>,
}

/// Why an answer is not whole.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct IncompleteDetails {
    /// `max_output_tokens` or `aborted`.
    pub(crate) reason: &'static str,
}

/// A part of an answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputItem {
    /// What the assistant says.
    Message {
        id: String,
        status: &'static str,
        /// `assistant`.
        role: &'static str,
        content: Vec<OutputText>,
    },
    /// What it thinks.
    Reasoning {
        id: String,
        status: &'static str,
        /// None.
        #[schema(value_type = Vec<Object>)]
        summary: [Value; 0],
        content: Vec<ReasoningText>,
    },
    /// A function that it calls.
    FunctionCall {
        id: String,
        /// The name that its output has to have.
        call_id: String,
        name: String,
        /// JSON as text.
        arguments: String,
        status: &'static str,
    },
}

/// Words.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct OutputText {
    /// `output_text`.
    #[serde(rename = "type")]
    kind: &'static str,
    text: String,
    /// None.
    #[schema(value_type = Vec<Object>)]
    annotations: [Value; 0],
    /// None.
    #[schema(value_type = Vec<Object>)]
    logprobs: [Value; 0],
}

/// Thoughts.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ReasoningText {
    /// `reasoning_text`.
    #[serde(rename = "type")]
    kind: &'static str,
    text: String,
}

impl OutputText {
    fn new(text: &str) -> Self {
        Self { kind: "output_text", text: text.to_owned(), annotations: [], logprobs: [] }
    }
}

impl ReasoningText {
    fn new(text: &str) -> Self {
        Self { kind: "reasoning_text", text: text.to_owned() }
    }
}

/// What an item is while it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Message,
    Reasoning,
    Call,
}

/// An item that is made.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    /// Of a call.
    pub(crate) call_id: String,
    pub(crate) name: String,
    /// What was said, thought, or is called with.
    pub(crate) text: String,
}

impl Draft {
    /// The item as it is now: without its words while it has just begun.
    pub(crate) fn item(&self, status: &'static str, has_words: bool) -> OutputItem {
        let id = self.id.clone();
        match self.kind {
            Kind::Message => OutputItem::Message {
                id,
                status,
                role: "assistant",
                content: has_words.then(|| OutputText::new(&self.text)).into_iter().collect(),
            },
            Kind::Reasoning => OutputItem::Reasoning {
                id,
                status,
                summary: [],
                content: has_words.then(|| ReasoningText::new(&self.text)).into_iter().collect(),
            },
            Kind::Call => OutputItem::FunctionCall {
                id,
                call_id: self.call_id.clone(),
                name: self.name.clone(),
                arguments: self.text.clone(),
                status,
            },
        }
    }

    /// Whether it is no call that broke off.
    pub(crate) fn is_whole(&self) -> bool {
        self.kind != Kind::Call || serde_json::from_str::<serde::de::IgnoredAny>(&self.text).is_ok()
    }

    /// Its part with these words; calls have none.
    pub(crate) fn part(&self, text: &str) -> Option<Value> {
        match self.kind {
            Kind::Message => Some(json!(OutputText::new(text))),
            Kind::Reasoning => Some(json!(ReasoningText::new(text))),
            Kind::Call => None,
        }
    }
}

/// Tokens that an answer took.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputTokensDetails,
    output_tokens: usize,
    output_tokens_details: OutputTokensDetails,
    total_tokens: usize,
}

/// More of the input's tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct InputTokensDetails {
    /// Those that were not computed, because a cache had them.
    cached_tokens: usize,
}

/// More of the output's tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct OutputTokensDetails {
    reasoning_tokens: usize,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        let reasoning_tokens = usage.completion_tokens_details.reasoning_tokens;
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails {
                cached_tokens: usage.prompt_tokens_details.cached_tokens,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens },
            total_tokens: usage.total_tokens,
        }
    }
}

/// The error of an answer that failed.
pub(crate) fn failure(message: &str) -> Value {
    json!({ "code": "server_error", "message": message })
}
