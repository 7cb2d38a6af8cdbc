//! Functions that a model may call.

use serde::Serialize;
use serde_json::{Value, json};

use crate::grammar::{Call, Grammar, check_multiples};
use crate::{Error, Result};

/// Functions of a conversation at most.
pub const MAX_TOOLS: usize = 128;

/// A function that may be called.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Function {
    /// Its name: 1 to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON schema of its arguments, an object; `None` and an empty one are an object with any fields.
    pub parameters: Option<Value>,
    /// Whether a keyword of the schema that cannot be enforced is an error.
    #[serde(skip)]
    pub strict: bool,
}

/// Whether functions are called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// None is, and the model sees none.
    None,
    /// One is, or several where that is allowed.
    Required,
    /// This one is.
    Named(String),
}

/// The functions of a conversation and whether they are called.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tools {
    functions: Vec<Function>,
    /// What is called, where a text has to be a call.
    called: Option<Vec<Call>>,
    /// Whether an answer may call several functions.
    parallel: Option<bool>,
}

impl Tools {
    /// Functions, and whether they are called. `parallel` says whether one answer may call several; unless it is given, a
    /// call that is required is one, and a model that calls as it likes may call several.
    ///
    /// # Errors
    /// [`Error::Tools`] for a function without a proper name or schema, or too many; [`Error::Value`] for a choice of
    /// none of them.
    pub fn new(mut functions: Vec<Function>, choice: &ToolChoice, parallel: Option<bool>) -> Result<Self> {
        if functions.len() > MAX_TOOLS {
            return Err(Error::Tools(format!("there may be {MAX_TOOLS} at most, got {}", functions.len())));
        }
        functions.iter_mut().try_for_each(Function::check)?;
        let called: Vec<&Function> = match choice {
            ToolChoice::Auto => Vec::new(),
            ToolChoice::None => return Ok(Self::default()),
            ToolChoice::Required if functions.is_empty() => {
                return Err(Error::value("tool_choice", "auto or none where there are no tools", "required"));
            }
            ToolChoice::Required => functions.iter().collect(),
            ToolChoice::Named(name) => {
                let named: Vec<_> = functions.iter().filter(|function| function.name == *name).collect();
                if named.is_empty() {
                    return Err(Error::value(
                        "tool_choice",
                        "the name of one of the tools",
                        format!("{name:?}"),
                    ));
                }
                named
            }
        };
        let called: Vec<Call> = called.into_iter().map(Function::call).collect();
        // A function that is named is called once.
        let parallel = if matches!(choice, ToolChoice::Named(_)) { Some(false) } else { parallel };
        Ok(Self { called: (!called.is_empty()).then_some(called), functions, parallel })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.functions.iter().map(|function| function.name.clone()).collect()
    }

    /// What a text obeys whose words obey `words`: a call, where one has to be made, for then nothing is said; calls or the
    /// words, where it may.
    ///
    /// # Errors
    /// [`Error::Value`] for an expression that the whole text has to match where it has to be a call.
    pub(super) fn grammar(&self, words: Option<Grammar>) -> Result<Option<Grammar>> {
        Ok(match (&self.called, words) {
            (Some(_), Some(Grammar::Regex(_) | Grammar::Lark(_))) => {
                return Err(Error::value("regex", "left out where a call is required", "one"));
            }
            (Some(called), _) => Some(Grammar::Calls {
                functions: called.clone(),
                several: self.parallel.unwrap_or(false),
                or: None,
            }),
            (None, Some(words @ (Grammar::JsonSchema(_) | Grammar::StrictJsonSchema(_))))
                if !self.is_empty() =>
            {
                Some(Grammar::Calls {
                    functions: self.functions.iter().map(Function::call).collect(),
                    several: self.parallel.unwrap_or(true),
                    or: Some(Box::new(words)),
                })
            }
            (None, words) => words,
        })
    }

    pub(super) fn one_call(&self) -> bool {
        self.parallel == Some(false)
    }

    /// As chat templates take them.
    pub(super) fn for_template(&self) -> Option<Value> {
        let tool = |function| json!({ "type": "function", "function": function });
        (!self.is_empty()).then(|| self.functions.iter().map(tool).collect())
    }
}

impl Function {
    /// Checks the name and the parameters, and completes these.
    fn check(&mut self) -> Result<()> {
        let name = &self.name;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !(1..=64).contains(&name.len()) || !name.chars().all(is_plain) {
            let why = format!("a function's name must be 1 to 64 letters, digits, _ or -, got {name:?}");
            return Err(Error::Tools(why));
        }
        let parameters = self.parameters.get_or_insert_with(|| json!({}));
        let Some(fields) = parameters.as_object_mut() else {
            return Err(Error::Tools(format!("the parameters of {name:?} must be a schema of an object")));
        };
        if fields.is_empty() {
            *parameters = json!({ "type": "object", "properties": {} });
        }
        check_multiples(parameters).map_err(|why| Error::Tools(format!("the parameters of {name:?}: {why}")))
    }

    fn call(&self) -> Call {
        let schema = self.parameters.clone().unwrap_or_default();
        Call { name: self.name.clone(), schema, strict: self.strict }
    }
}
