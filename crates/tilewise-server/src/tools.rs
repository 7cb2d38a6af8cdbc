//! Functions that a model may call, as OpenAI's clients write them.

use serde::Deserialize;
use serde_json::Value;
use tilewise_engine::chat::{Function, ToolChoice};
use utoipa::ToSchema;

/// A function that may be called.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ToolDefinition {
    /// A function.
    Function {
        /// What it is.
        function: FunctionDefinition,
    },
}

/// What a function is.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub(crate) struct FunctionDefinition {
    /// Its name: letters, digits, `_` and `-`.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_-]+$")]
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// A schema of its arguments; none means any.
    #[schema(value_type = Option<Object>)]
    pub(crate) parameters: Option<Value>,
    /// Whether a keyword that cannot be enforced is refused; it is ignored otherwise.
    pub(crate) strict: Option<bool>,
}

impl From<FunctionDefinition> for Function {
    fn from(function: FunctionDefinition) -> Self {
        let FunctionDefinition { name, description, parameters, strict } = function;
        Self { name, description, parameters, strict: strict.unwrap_or(false) }
    }
}

/// The functions of a request.
pub(crate) fn functions(definitions: Option<Vec<ToolDefinition>>) -> Vec<Function> {
    let definitions = definitions.unwrap_or_default().into_iter();
    definitions.map(|ToolDefinition::Function { function }| function.into()).collect()
}

/// Kinds of choices that mean something here, or would.
const OURS: [&str; 3] = ["function", "custom", "allowed_tools"];

/// Whether functions are called: `none`, `auto`, `required`, or one by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) struct Choice(pub(crate) ToolChoice);

/// Whether functions are called.
#[derive(ToSchema)]
#[schema(as = ToolChoice)]
#[expect(dead_code, reason = "it is only described")]
#[serde(untagged)]
pub(crate) enum ToolChoiceShape {
    /// One of three words.
    #[schema(title = "Mode")]
    Mode(ToolMode),
    /// This one.
    #[schema(title = "Named")]
    Named(NamedTool),
}

/// Whether functions are called.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "it is only described")]
pub(crate) enum ToolMode {
    /// None is.
    None,
    /// As the model likes.
    Auto,
    /// One is, or several with `parallel_tool_calls`.
    Required,
}

/// A function that has to be called.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is only described")]
pub(crate) struct NamedTool {
    /// `function`.
    r#type: String,
    /// Which one, in chats.
    function: Option<FunctionName>,
    /// Which one, in responses.
    name: Option<String>,
}

/// A function's name.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is only described")]
pub(crate) struct FunctionName {
    name: String,
}

impl TryFrom<Value> for Choice {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let name = || {
            let function = value.get("function").unwrap_or(&value);
            (value.get("type")? == "function").then_some(function.get("name")?.as_str()?)
        };
        // A tool that others host cannot be called here: the model does as it likes.
        let is_hosted = value.get("type").and_then(Value::as_str).is_some_and(|kind| !OURS.contains(&kind));
        match value.as_str() {
            None if is_hosted => Ok(ToolChoice::Auto),
            Some("auto") => Ok(ToolChoice::Auto),
            Some("none") => Ok(ToolChoice::None),
            Some("required" | "any") => Ok(ToolChoice::Required),
            _ => name().map(|name| ToolChoice::Named(name.to_owned())).ok_or_else(|| {
                format!("expected none, auto, required or a function by its name, got {value}")
            }),
        }
        .map(Self)
    }
}

impl From<Choice> for Value {
    /// As `/v1/responses` tells it.
    fn from(choice: Choice) -> Self {
        match choice.0 {
            ToolChoice::Auto => "auto".into(),
            ToolChoice::None => "none".into(),
            ToolChoice::Required => "required".into(),
            ToolChoice::Named(name) => serde_json::json!({ "type": "function", "name": name }),
        }
    }
}
