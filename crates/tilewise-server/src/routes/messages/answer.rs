//! What `/v1/messages` answers.

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::fields::Usage;
use crate::generation::End;

/// An answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct MessageObject {
    pub(crate) id: String,
    /// `message`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// `assistant`.
    pub(crate) role: &'static str,
    pub(crate) model: String,
    /// `thinking`, `text` and `tool_use`.
    #[schema(value_type = Vec<Object>)]
    pub(crate) content: Vec<Value>,
    /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`.
    pub(crate) stop_reason: Option<&'static str>,
    pub(crate) stop_sequence: Option<String>,
    pub(crate) usage: MessageUsage,
}

/// Tokens that an answer took.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct MessageUsage {
    /// Of the prompt, without those that a cache had.
    pub(crate) input_tokens: usize,
    pub(crate) cache_creation_input_tokens: usize,
    /// Those of the prompt that were not computed, because a cache had them.
    pub(crate) cache_read_input_tokens: usize,
    pub(crate) output_tokens: usize,
}

impl From<Usage> for MessageUsage {
    fn from(usage: Usage) -> Self {
        let cached = usage.prompt_tokens_details.cached_tokens;
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(cached),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: usage.completion_tokens,
        }
    }
}

/// Tokens of a conversation.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct TokenCount {
    pub(super) input_tokens: usize,
}

/// Why an answer ended, and the string that it ended at.
pub(super) fn stop_reason(end: &End, is_call: bool) -> (&'static str, Option<String>) {
    match end {
        _ if is_call => ("tool_use", None),
        End::Length => ("max_tokens", None),
        End::String(string) => ("stop_sequence", Some(string.clone())),
        _ => ("end_turn", None),
    }
}

/// A block that is made.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Block {
    Thinking(String),
    Text(String),
    /// The call's name, the function and its arguments so far.
    ToolUse(String, String, String),
}

impl Block {
    /// The block before its first word.
    pub(super) fn begun(&self) -> Value {
        match self {
            Self::Thinking(_) => json!({ "type": "thinking", "thinking": "", "signature": "" }),
            Self::Text(_) => json!({ "type": "text", "text": "" }),
            Self::ToolUse(id, name, _) => json!({ "type": "tool_use", "id": id, "name": name, "input": {} }),
        }
    }

    /// Whether it is no call that broke off.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::ToolUse(_, _, arguments) => {
                serde_json::from_str::<serde::de::IgnoredAny>(arguments).is_ok()
            }
            _ => true,
        }
    }

    /// The whole block. Arguments that broke off are none.
    pub(super) fn whole(&self) -> Value {
        match self {
            Self::Thinking(text) => json!({ "type": "thinking", "thinking": text, "signature": "" }),
            Self::Text(text) => json!({ "type": "text", "text": text }),
            Self::ToolUse(id, name, arguments) => {
                let input = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
                let input: Value = input;
                json!({ "type": "tool_use", "id": id, "name": name, "input": input })
            }
        }
    }

    /// What words add to it, as a stream tells it.
    pub(super) fn push(&mut self, words: &str) -> Value {
        match self {
            Self::Thinking(text) => {
                text.push_str(words);
                json!({ "type": "thinking_delta", "thinking": words })
            }
            Self::Text(text) => {
                text.push_str(words);
                json!({ "type": "text_delta", "text": words })
            }
            Self::ToolUse(_, _, arguments) => {
                arguments.push_str(words);
                json!({ "type": "input_json_delta", "partial_json": words })
            }
        }
    }
}
