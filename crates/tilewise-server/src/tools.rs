//! Functions that a model may call.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tilewise_engine::Grammar;
use utoipa::ToSchema;

use crate::calls::{CLOSE, OPEN};
use crate::error::ApiError;
use crate::grammars::check_multiples;

/// Tools of a request at most.
const MAX_TOOLS: usize = 128;

/// A function that may be called.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ToolDefinition {
    /// A function.
    Function {
        /// What it is.
        function: FunctionDefinition,
    },
}

/// What a function is.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FunctionDefinition {
    /// Its name: letters, digits, `_` and `-`.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_-]+$")]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// A schema of its arguments; none means any.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    /// Arguments are always those of the schema where a call is required.
    #[serde(skip_serializing)]
    strict: Option<bool>,
}

/// Whether functions are called.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum ToolChoice {
    /// One of three words.
    Mode(ToolMode),
    /// This one.
    Named(NamedTool),
}

/// Whether functions are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToolMode {
    /// None is.
    None,
    /// As the model likes.
    Auto,
    /// One is, or several with `parallel_tool_calls`.
    Required,
}

/// A function that has to be called.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum NamedTool {
    /// A function.
    Function {
        /// Its name.
        function: FunctionName,
    },
}

/// A function's name.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FunctionName {
    name: String,
}

/// The functions of a request and whether they are called.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tools {
    definitions: Vec<ToolDefinition>,
    /// The text is a call, by this grammar.
    pub(crate) grammar: Option<Grammar>,
}

impl ToolDefinition {
    fn function(&self) -> &FunctionDefinition {
        let Self::Function { function } = self;
        function
    }
}

impl Tools {
    /// What a request says of functions.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn of(
        mut definitions: Vec<ToolDefinition>,
        choice: Option<&ToolChoice>,
        parallel: bool,
    ) -> Result<Self, ApiError> {
        if definitions.len() > MAX_TOOLS {
            return Err(ApiError::param("tools", format!("tools must be at most {MAX_TOOLS}")));
        }
        for ToolDefinition::Function { function } in &mut definitions {
            function.check()?;
        }
        let called: Vec<&FunctionDefinition> = match choice {
            None | Some(ToolChoice::Mode(ToolMode::Auto)) => Vec::new(),
            Some(ToolChoice::Mode(ToolMode::None)) => return Ok(Self::default()),
            Some(ToolChoice::Mode(ToolMode::Required)) => {
                definitions.iter().map(ToolDefinition::function).collect()
            }
            Some(ToolChoice::Named(NamedTool::Function { function: FunctionName { name } })) => {
                let functions = definitions.iter().map(ToolDefinition::function);
                let named: Vec<_> = functions.filter(|function| function.name == *name).collect();
                if named.is_empty() {
                    let message = format!("tool_choice names {name:?}, which is none of the tools");
                    return Err(ApiError::param("tool_choice", message));
                }
                named
            }
        };
        let is_required = matches!(choice, Some(ToolChoice::Mode(ToolMode::Required)));
        if is_required && called.is_empty() {
            return Err(ApiError::param(
                "tool_choice",
                "tool_choice requires a call, but there are no tools",
            ));
        }
        let grammar = (!called.is_empty()).then(|| call_grammar(&called, is_required && parallel));
        Ok(Self { definitions, grammar })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.definitions.is_empty()
    }

    /// What the functions are called.
    pub(crate) fn names(&self) -> Vec<String> {
        self.definitions.iter().map(|tool| tool.function().name.clone()).collect()
    }

    /// As the chat template takes them.
    pub(crate) fn for_template(&self) -> Option<Value> {
        (!self.is_empty()).then(|| serde_json::to_value(&self.definitions).unwrap_or_default())
    }
}

impl FunctionDefinition {
    /// Checks the name and the parameters; none are any.
    fn check(&mut self) -> Result<(), ApiError> {
        let name = &self.name;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !(1..=64).contains(&name.len()) || !name.chars().all(is_plain) {
            let message = format!("a function's name must be 1 to 64 letters, digits, _ or -, got {name:?}");
            return Err(ApiError::param("tools", message));
        }
        let parameters = self.parameters.get_or_insert_with(|| json!({ "type": "object", "properties": {} }));
        if !parameters.is_object() {
            return Err(ApiError::param("tools", format!("the parameters of {name:?} must be a schema")));
        }
        check_multiples("tools", parameters)
    }
}

/// One call of one of these functions, or several, as Qwen3 writes them: JSON between tags.
fn call_grammar(functions: &[&FunctionDefinition], several: bool) -> Grammar {
    let mut definitions = Map::new();
    let calls: Vec<Value> =
        functions.iter().map(|function| call_schema(function, &mut definitions)).collect();
    let call = json!({
        "x-guidance": { "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " },
        "anyOf": calls,
        "$defs": definitions,
    });
    let more = if several { " (\"\\n\" call)*" } else { "" };
    Grammar::Lark(format!(
        "start: call{more}\ncall: \"{OPEN}\\n\" object \"\\n{CLOSE}\"\nobject: %json {call}\n"
    ))
}

/// The schema of a call. Definitions that its parameters refer to stand at the root, where references begin.
fn call_schema(function: &FunctionDefinition, definitions: &mut Map<String, Value>) -> Value {
    let mut parameters = function.parameters.clone().unwrap_or_default();
    if let Some(parameters) = parameters.as_object_mut()
        && let Some(Value::Object(own)) = parameters.remove("$defs")
    {
        definitions.extend(own);
    }
    json!({
        "type": "object",
        "properties": { "name": { "const": function.name }, "arguments": parameters },
        "required": ["name", "arguments"],
        "additionalProperties": false,
    })
}
