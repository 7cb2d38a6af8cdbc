//! What was said before, as `/v1/responses` takes it: messages, calls, their outputs and reasoning.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::KeptItems;
use crate::error::ApiError;
use crate::messages::{Content, ContentShape, Turn, TurnCall};
use crate::request::Ignored;

/// Items of an input at most.
const MAX_ITEMS: usize = 4096;

/// What is answered.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of items")]
pub(crate) enum Input {
    /// The user's words.
    Text(String),
    /// What was said.
    Items(Vec<Value>),
}

impl Default for Input {
    fn default() -> Self {
        Self::Items(Vec::new())
    }
}

/// What is answered.
#[derive(ToSchema)]
#[schema(as = Input)]
#[expect(dead_code, reason = "it is only described")]
#[serde(untagged)]
pub(crate) enum InputShape {
    /// The user's words.
    #[schema(title = "Text")]
    Text(String),
    /// What was said.
    #[schema(title = "Items")]
    Items(Vec<Item>),
}

/// Fields of an item, of which each kind has some; others are ignored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub(crate) struct Item {
    /// `message` unless given; `function_call`, `function_call_output`, `reasoning`.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Who speaks, in a message.
    role: Option<String>,
    /// What a message says, or a reasoning thought.
    #[schema(value_type = Option<ContentShape>)]
    content: Option<Value>,
    /// The call's name.
    call_id: Option<String>,
    /// The function that was called.
    name: Option<String>,
    /// What it was called with: JSON as text.
    #[schema(value_type = Option<String>)]
    arguments: Option<Value>,
    /// What it returned.
    #[schema(value_type = Option<ContentShape>)]
    output: Option<Value>,
}

/// The assistant's turn, which may come in several items.
#[derive(Debug, Default)]
struct Assistant {
    content: String,
    reasoning: Option<String>,
    calls: Vec<TurnCall>,
}

/// The turns so far.
#[derive(Default)]
struct Turns {
    turns: Vec<Turn>,
    /// The assistant's turn that may go on.
    open: Option<Assistant>,
}

impl Turns {
    fn close(&mut self) {
        if let Some(Assistant { content, reasoning, calls }) = self.open.take() {
            let turn = Turn::new("assistant", &content)
                .with("reasoning_content", reasoning.map(Value::from))
                .with_calls(calls);
            self.turns.push(turn);
        }
    }

    fn push(&mut self, turn: Turn) {
        self.close();
        self.turns.push(turn);
    }

    fn assistant(&mut self) -> &mut Assistant {
        self.open.get_or_insert_default()
    }
}

impl Input {
    /// The turns as chat templates read them; names items that are left out.
    ///
    /// # Errors
    /// 400 that names the item.
    pub(super) fn turns(&self, kept: &KeptItems, ignored: &mut Ignored) -> Result<Vec<Turn>, ApiError> {
        let items = match self {
            Self::Text(text) => return Ok(vec![Turn::new("user", text)]),
            Self::Items(items) => items,
        };
        if !(1..=MAX_ITEMS).contains(&items.len()) {
            let message = format!("input must be from 1 to {MAX_ITEMS} items, got {}", items.len());
            return Err(ApiError::param("input", message));
        }
        let mut turns = Turns::default();
        for (place, item) in items.iter().enumerate() {
            let path = format!("input[{place}]");
            let item = match item.get("type").and_then(Value::as_str) {
                Some("item_reference") => referred(&path, item, kept)?,
                _ => item.clone(),
            };
            let item: Item = serde_json::from_value(item)
                .map_err(|error| ApiError::param(&path, format!("{path}: {error}")))?;
            item.add(&path, &mut turns, ignored)?;
        }
        turns.close();
        Ok(turns.turns)
    }
}

impl Item {
    /// Adds what it says to the turns.
    fn add(self, path: &str, turns: &mut Turns, ignored: &mut Ignored) -> Result<(), ApiError> {
        let missing = |field: &str| {
            let path = format!("{path}.{field}");
            ApiError::param(&path, format!("{path} is missing")).code("missing_field")
        };
        match self.kind.as_deref().unwrap_or("message") {
            "message" => {
                let role = self.role.ok_or_else(|| missing("role"))?;
                let text = text(&format!("{path}.content"), self.content)?;
                match role.as_str() {
                    "system" | "developer" => turns.push(Turn::new("system", &text)),
                    "user" => turns.push(Turn::new("user", &text)),
                    "assistant" => {
                        // What follows calls is another turn.
                        if turns.open.as_ref().is_some_and(|turn| !turn.calls.is_empty()) {
                            turns.close();
                        }
                        turns.assistant().content.push_str(&text);
                    }
                    other => {
                        let path = format!("{path}.role");
                        let message =
                            format!("{path} must be system, developer, user or assistant, got {other:?}");
                        return Err(ApiError::param(&path, message));
                    }
                }
            }
            "function_call" => {
                let call = TurnCall {
                    id: self.call_id.ok_or_else(|| missing("call_id"))?,
                    name: self.name.ok_or_else(|| missing("name"))?,
                    arguments: self.arguments.unwrap_or_default(),
                };
                turns.assistant().calls.push(call);
            }
            "function_call_output" => {
                let output = text(&format!("{path}.output"), self.output)?;
                let id = self.call_id.ok_or_else(|| missing("call_id"))?;
                turns.push(Turn::new("tool", &output).with("tool_call_id", Some(id.into())));
            }
            "reasoning" => {
                turns.close();
                let thought = thought(self.content.as_ref());
                turns.assistant().reasoning = (!thought.is_empty()).then_some(thought);
            }
            // What tools did that OpenAI hosts.
            kind if kind.ends_with("_call") || kind.starts_with("mcp_") => {
                ignored.0.push(format!("{path} ({kind})"));
            }
            kind => {
                let path = format!("{path}.type");
                let message = format!("{path}: items of the type {kind:?} are not supported");
                return Err(ApiError::unsupported(&path, message));
            }
        }
        Ok(())
    }
}

/// The item that another names.
fn referred(path: &str, item: &Value, kept: &KeptItems) -> Result<Value, ApiError> {
    let id = item.get("id").and_then(Value::as_str).unwrap_or_default();
    kept.find(id).ok_or_else(|| {
        let path = format!("{path}.id");
        let message =
            format!("{path}: the item {id:?} is not kept here; send it whole, or ask with store false");
        ApiError::param(&path, message)
    })
}

fn text(path: &str, content: Option<Value>) -> Result<String, ApiError> {
    let content = Content::try_from(content.unwrap_or_default());
    content.map(|content| content.0).map_err(|why| ApiError::param(path, format!("{path}: {why}")))
}

/// The words of a reasoning: its summary is for people.
fn thought(content: Option<&Value>) -> String {
    let parts = content.and_then(Value::as_array).into_iter().flatten();
    parts.filter_map(|part| part.get("text")?.as_str()).collect()
}
