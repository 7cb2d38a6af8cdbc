//! What `/v1/responses` takes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::fields::{Off, Unset, Zero};
use crate::grammars;
use crate::sampling::Sampling;

/// Items of an input at most.
const MAX_ITEMS: usize = 4096;

/// A text or a conversation to answer.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[expect(dead_code, reason = "some fields are only taken, so that others can send them")]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponsesRequest {
    pub(crate) model: Option<String>,
    input: Input,
    /// Comes before the input, as the system's words.
    pub(crate) instructions: Option<String>,
    /// Tokens to generate at most; all that there is room for unless given.
    #[schema(minimum = 1)]
    pub(crate) max_output_tokens: Option<u64>,
    #[schema(minimum = 0)]
    pub(crate) temperature: Option<f32>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub(crate) top_p: Option<f32>,
    pub(crate) stream: Option<bool>,
    text: Option<TextConfig>,
    pub(crate) metadata: Option<BTreeMap<String, String>>,
    /// A name by which the request can be aborted.
    pub(crate) request_id: Option<String>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    #[schema(minimum = 0.000001, maximum = 1000000)]
    repetition_penalty: Option<f32>,
    /// Taken and not used.
    user: Option<String>,
    /// Taken and not used.
    prompt_cache_key: Option<String>,
    /// Taken and not used.
    safety_identifier: Option<String>,
    truncation: Option<Truncation>,
    /// Taken, since routers set it; nothing is stored, as the answer says.
    store: Option<bool>,
    background: Option<Off>,
    priority: Option<Zero>,
    stream_options: Option<Unset>,
    previous_response_id: Option<Unset>,
    conversation: Option<Unset>,
    include: Option<Vec<Unset>>,
    tools: Option<Vec<Unset>>,
    tool_choice: Option<Choice>,
    parallel_tool_calls: Option<bool>,
    max_tool_calls: Option<Unset>,
    top_logprobs: Option<Zero>,
    reasoning: Option<Unset>,
    service_tier: Option<Unset>,
    prompt: Option<Unset>,
    stop: Option<Unset>,
}

/// What becomes of an input that is too long: it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Truncation {
    /// It is refused.
    Disabled,
}

/// Whether functions are called: there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Choice {
    /// As the model likes.
    Auto,
    /// None is.
    None,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged)]
enum Input {
    /// The user's words.
    Text(String),
    /// What was said.
    Items(Vec<Item>),
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<ItemKind>,
    role: ItemRole,
    content: ItemContent,
    /// Answers have it, and come back.
    id: Option<String>,
    /// Answers have it, and come back.
    status: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ItemKind {
    /// One turn.
    Message,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ItemRole {
    /// The one who sets the rules.
    System,
    /// The same.
    Developer,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged)]
enum ItemContent {
    /// At once.
    Text(String),
    /// In parts.
    Parts(Vec<ItemPart>),
}

#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ItemPart {
    /// What was asked.
    InputText {
        /// The words.
        text: String,
    },
    /// What was answered.
    OutputText {
        /// The words.
        text: String,
    },
}

/// The form of the answer.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TextConfig {
    format: Option<TextFormat>,
    verbosity: Option<Unset>,
}

/// The form of the answer.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum TextFormat {
    /// Any text.
    Text {},
    /// Any JSON object.
    JsonObject {},
    /// JSON that a schema describes.
    JsonSchema {
        /// Taken and not used.
        name: Option<String>,
        /// Taken and not used.
        description: Option<String>,
        /// The schema.
        #[schema(value_type = Object)]
        schema: Value,
        /// Schemas are always obeyed.
        strict: Option<bool>,
    },
}

impl ResponsesRequest {
    /// The conversation as chat templates read it.
    ///
    /// # Errors
    /// 400 for none or too many turns.
    pub(crate) fn conversation(&self) -> Result<Value, ApiError> {
        let instructions = self.instructions.iter().map(|text| json!({ "role": "system", "content": text }));
        let turns: Vec<Value> = match &self.input {
            Input::Text(text) => vec![json!({ "role": "user", "content": text })],
            Input::Items(items) => items.iter().map(Item::for_template).collect(),
        };
        if !(1..=MAX_ITEMS).contains(&turns.len()) {
            return Err(ApiError::param("input", format!("input must be from 1 to {MAX_ITEMS} items")));
        }
        Ok(instructions.chain(turns).collect())
    }

    /// What it says of sampling.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn sampling(&self) -> Result<Sampling, ApiError> {
        let format = self.text.as_ref().and_then(|text| text.format.clone());
        let grammar = match format {
            None | Some(TextFormat::Text {}) => None,
            Some(TextFormat::JsonObject {}) => Some(grammars::schema("text", json!({ "type": "object" }))?),
            Some(TextFormat::JsonSchema { schema, .. }) => Some(grammars::schema("text", schema)?),
        };
        Ok(Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            max_tokens: ("max_output_tokens", self.max_output_tokens),
            logprobs: ("top_logprobs", None),
            grammar,
            ..Sampling::default()
        })
    }
}

impl Item {
    fn for_template(&self) -> Value {
        let role = match self.role {
            ItemRole::System | ItemRole::Developer => "system",
            ItemRole::User => "user",
            ItemRole::Assistant => "assistant",
        };
        let content: String = match &self.content {
            ItemContent::Text(text) => text.clone(),
            ItemContent::Parts(parts) => parts
                .iter()
                .map(|(ItemPart::InputText { text } | ItemPart::OutputText { text })| text.as_str())
                .collect(),
        };
        json!({ "role": role, "content": content })
    }
}
