//! What `/v1/responses` answers.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::fields::Usage;

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
    pub(crate) max_output_tokens: Option<u64>,
    pub(crate) model: String,
    pub(crate) output: Vec<OutputItem>,
    pub(crate) parallel_tool_calls: bool,
    pub(crate) previous_response_id: Option<String>,
    pub(crate) store: bool,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    /// `auto`.
    pub(crate) tool_choice: &'static str,
    /// None.
    #[schema(value_type = Vec<Object>)]
    pub(crate) tools: [Value; 0],
    /// `disabled`.
    pub(crate) truncation: &'static str,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) usage: Option<ResponseUsage>,
}

/// Why an answer is not whole.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct IncompleteDetails {
    /// `max_output_tokens` or `aborted`.
    pub(crate) reason: &'static str,
}

/// What the assistant says.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct OutputItem {
    /// `message`.
    #[serde(rename = "type")]
    kind: &'static str,
    id: String,
    status: &'static str,
    /// `assistant`.
    role: &'static str,
    content: Vec<OutputText>,
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
}

impl OutputText {
    pub(crate) fn new(text: &str) -> Self {
        Self { kind: "output_text", text: text.to_owned(), annotations: [] }
    }
}

impl OutputItem {
    pub(crate) fn new(id: &str, status: &'static str, text: Option<&str>) -> Self {
        let content = text.map(OutputText::new).into_iter().collect();
        Self { kind: "message", id: id.to_owned(), status, role: "assistant", content }
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
    /// Reasoning is a part of the text here.
    reasoning_tokens: usize,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails {
                cached_tokens: usage.prompt_tokens_details.cached_tokens,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: 0 },
            total_tokens: usage.total_tokens,
        }
    }
}

/// The error of an answer that failed.
pub(crate) fn failure(message: &str) -> Value {
    json!({ "code": "server_error", "message": message })
}
