//! Turns of a conversation, as OpenAI's clients write them.

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// Kinds of parts whose words are read.
const WORDS: [&str; 4] = ["text", "input_text", "output_text", "refusal"];

/// The words of a turn, which came at once or in parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) struct Content(pub(crate) String);

/// What is said.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is only described")]
#[schema(as = Content)]
#[serde(untagged)]
pub(crate) enum ContentShape {
    /// At once.
    #[schema(title = "Text")]
    Text(String),
    /// In parts, which are texts.
    #[schema(title = "Parts")]
    Parts(Vec<PartShape>),
}

/// A part of what is said.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is only described")]
#[schema(as = Part)]
pub(crate) struct PartShape {
    /// `text`.
    r#type: PartKind,
    text: String,
}

/// What a part is.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "it is only described")]
pub(crate) enum PartKind {
    /// Words.
    Text,
    /// Words of the input.
    InputText,
    /// Words of the output.
    OutputText,
}

impl TryFrom<Value> for Content {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::Null => Ok(Self::default()),
            Value::String(text) => Ok(Self(text)),
            Value::Array(parts) => {
                parts.iter().enumerate().map(words).collect::<Result<String, _>>().map(Self)
            }
            _ => Err("expected a text or a list of parts".to_owned()),
        }
    }
}

/// The words of a part.
fn words((place, part): (usize, &Value)) -> Result<String, String> {
    if let Value::String(text) = part {
        return Ok(text.clone());
    }
    let kind = part.get("type").and_then(Value::as_str);
    let Some(kind) = kind else {
        return Err(format!("part {place} has no type; a text has the type \"text\""));
    };
    if !WORDS.contains(&kind) {
        return Err(format!(
            "part {place} has the type {kind:?}, and the model reads text alone; leave it out"
        ));
    }
    let words = part.get("text").or_else(|| part.get("refusal")).and_then(Value::as_str);
    words.map(str::to_owned).ok_or_else(|| format!("part {place} has no text"))
}

/// One turn. Fields that nobody knows are ignored: clients send back what they were given and more.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub(crate) struct Message {
    pub(crate) role: Role,
    #[schema(value_type = Option<ContentShape>)]
    #[serde(default)]
    content: Content,
    /// Who speaks, where several have a role.
    name: Option<String>,
    /// What the assistant thought.
    reasoning_content: Option<String>,
    /// The same, in vLLM's words.
    #[schema(value_type = Option<String>)]
    reasoning: Option<Value>,
    /// Functions that the assistant called.
    tool_calls: Option<Vec<MessageCall>>,
    /// The call that a tool answers.
    tool_call_id: Option<String>,
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
    /// The same, in older clients.
    Function,
}

/// A function that the assistant called.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub(crate) struct MessageCall {
    /// The call's name.
    id: Option<String>,
    /// Which function, and with what.
    function: CalledFunction,
}

/// A call.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub(crate) struct CalledFunction {
    name: String,
    /// JSON as text, or as it is.
    #[schema(value_type = Object)]
    #[serde(default)]
    arguments: Value,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::System | Self::Developer => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool | Self::Function => "tool",
        }
    }
}

/// A turn as chat templates read it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Turn(Value);

impl Turn {
    pub(crate) fn new(role: &str, content: &str) -> Self {
        Self(json!({ "role": role, "content": content }))
    }

    /// With one field more.
    pub(crate) fn with(mut self, name: &str, value: Option<Value>) -> Self {
        if let Some(value) = value {
            self.0[name] = value;
        }
        self
    }

    /// With functions that the assistant called: name of the call, function, arguments.
    pub(crate) fn with_calls(self, calls: Vec<TurnCall>) -> Self {
        let call = |TurnCall { id, name, arguments }| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": object(arguments) } });
        let calls: Vec<Value> = calls.into_iter().map(call).collect();
        self.with("tool_calls", (!calls.is_empty()).then_some(calls.into()))
    }

    pub(crate) fn into_value(self) -> Value {
        self.0
    }
}

/// A function that was called.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TurnCall {
    pub(crate) id: String,
    pub(crate) name: String,
    /// An object, or JSON as text.
    pub(crate) arguments: Value,
}

/// Templates take arguments as an object where they are one.
fn object(arguments: Value) -> Value {
    match arguments {
        Value::String(text) => serde_json::from_str(&text).unwrap_or_else(|_| text.into()),
        Value::Null => json!({}),
        other => other,
    }
}

impl Message {
    /// As chat templates read it.
    pub(crate) fn turn(&self) -> Turn {
        let call = |call: &MessageCall| TurnCall {
            id: call.id.clone().unwrap_or_default(),
            name: call.function.name.clone(),
            arguments: call.function.arguments.clone(),
        };
        let thought = || self.reasoning.as_ref().and_then(Value::as_str).map(str::to_owned);
        Turn::new(self.role.name(), &self.content.0)
            .with("name", self.name.clone().map(Value::from))
            .with("reasoning_content", self.reasoning_content.clone().or_else(thought).map(Value::from))
            .with("tool_call_id", self.tool_call_id.clone().map(Value::from))
            .with_calls(self.tool_calls.iter().flatten().map(call).collect())
    }

    pub(crate) fn is_assistant(&self) -> bool {
        self.role == Role::Assistant
    }
}
