//! What a text has to obey, as requests write it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use tilewise_engine::grammar::check_multiples;
use tilewise_engine::{CompiledGrammar, Grammar};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::state::{App, Room, blocking};

/// Bytes of a grammar: other grammars wait while it is compiled.
pub(crate) const MAX_BYTES: usize = 64 << 10;

/// Bytes of a regular expression, whose automaton may be exponentially larger.
pub(crate) const MAX_REGEX_BYTES: usize = 4 << 10;

/// The form of a text.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text {},
    /// Any JSON object, or one that a schema describes.
    JsonObject {
        /// The schema.
        #[schema(value_type = Option<Object>)]
        schema: Option<Value>,
    },
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema and its name.
        json_schema: NamedSchema,
    },
}

/// The form of a text, as `/v1/responses` writes it.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum TextFormat {
    /// Any text.
    Text {},
    /// Any JSON object.
    JsonObject {},
    /// JSON that a schema describes.
    JsonSchema(NamedSchema),
}

/// A schema with a name.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub(crate) struct NamedSchema {
    /// The schema.
    #[schema(value_type = Object)]
    schema: Option<Value>,
    /// Whether a keyword that cannot be enforced is refused; it is ignored otherwise.
    strict: Option<bool>,
}

/// What a text has to obey, and the field that says so.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    pub(crate) field: &'static str,
    pub(crate) grammar: Grammar,
}

impl Form {
    /// The field and its grammar. Where no field says anything, only calls of tools have a grammar.
    pub(crate) fn parts(form: Option<Self>) -> (&'static str, Option<Grammar>) {
        form.map_or(("tools", None), |form| (form.field, Some(form.grammar)))
    }
}

impl NamedSchema {
    /// Its form.
    ///
    /// # Errors
    /// 400 for a schema that is none or too large.
    pub(crate) fn form(self, field: &'static str) -> Result<Form, ApiError> {
        let missing = || ApiError::param(field, format!("{field} needs a schema"));
        let value = self.schema.ok_or_else(missing)?;
        check(field, &value)?;
        let grammar = match self.strict {
            Some(true) => Grammar::StrictJsonSchema(value),
            _ => Grammar::JsonSchema(value),
        };
        Ok(Form { field, grammar })
    }
}

impl ResponseFormat {
    /// The form, if it is one.
    ///
    /// # Errors
    /// As [`NamedSchema::form`].
    pub(crate) fn form(self, field: &'static str) -> Result<Option<Form>, ApiError> {
        match self {
            Self::Text {} => Ok(None),
            Self::JsonObject { schema: None } => Ok(Some(any_object(field))),
            Self::JsonObject { schema: Some(value) } => schema(field, value).map(Some),
            Self::JsonSchema { json_schema } => json_schema.form(field).map(Some),
        }
    }
}

impl TextFormat {
    /// As [`ResponseFormat::form`].
    ///
    /// # Errors
    /// Likewise.
    pub(crate) fn form(self, field: &'static str) -> Result<Option<Form>, ApiError> {
        match self {
            Self::Text {} => Ok(None),
            Self::JsonObject {} => Ok(Some(any_object(field))),
            Self::JsonSchema(schema) => schema.form(field).map(Some),
        }
    }
}

/// JSON that is an object.
fn any_object(field: &'static str) -> Form {
    Form { field, grammar: Grammar::JsonSchema(json!({ "type": "object" })) }
}

/// A form as Ollama writes it: `json`, or the schema itself.
///
/// # Errors
/// As [`schema`].
pub(crate) fn bare_format(field: &'static str, format: Option<&Value>) -> Result<Option<Form>, ApiError> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => Ok(Some(any_object(field))),
        Some(value) => schema(field, value.clone()).map(Some),
    }
}

/// JSON that a schema describes.
///
/// # Errors
/// 400 for one that is none or too large.
fn schema(field: &'static str, schema: Value) -> Result<Form, ApiError> {
    check(field, &schema)?;
    Ok(Form { field, grammar: Grammar::JsonSchema(schema) })
}

fn check(field: &str, schema: &Value) -> Result<(), ApiError> {
    if !(schema.is_object() || schema.is_boolean()) {
        return Err(ApiError::param(field, format!("{field}: a schema must be an object")));
    }
    check_size(field, &schema.to_string(), MAX_BYTES)?;
    check_patterns(field, schema)?;
    check_multiples(schema).map_err(|why| ApiError::param(field, format!("{field}: {why}")))
}

/// JSON that a schema describes which is written as text.
///
/// # Errors
/// As [`schema`].
pub(crate) fn schema_text(field: &'static str, text: &str) -> Result<Form, ApiError> {
    check_size(field, text, MAX_BYTES)?;
    let value = serde_json::from_str(text);
    schema(field, value.map_err(|error| ApiError::param(field, format!("{field} is no JSON: {error}")))?)
}

/// Text that a regular expression matches.
///
/// # Errors
/// 400 for one that is too large.
pub(crate) fn regex(field: &'static str, regex: &str) -> Result<Form, ApiError> {
    check_size(field, regex, MAX_REGEX_BYTES)?;
    Ok(Form { field, grammar: Grammar::Regex(regex.to_owned()) })
}

/// Compiles the grammar of a request, which keeps its room meanwhile, beside the engine.
///
/// One at a time: each takes a core from the engine for as long as it takes.
///
/// # Errors
/// 400 for one that cannot be compiled, which names its field.
pub(crate) async fn compile(
    app: &Arc<App>,
    room: &Arc<Room>,
    form: Form,
) -> Result<CompiledGrammar, ApiError> {
    let turn = app.compiling.clone().acquire_owned().await;
    let (app, room) = (app.clone(), room.clone());
    blocking(move || {
        let compiled = app.model.grammars.compile(&form.grammar);
        // Whoever asked may have gone meanwhile, and taken their hands off both.
        drop((turn, room));
        compiled.map_err(|error| ApiError::refused(&error, form.field))
    })
    .await
}

/// Holds the expressions in a schema to the bound of one by itself.
fn check_patterns(field: &str, schema: &Value) -> Result<(), ApiError> {
    match schema {
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            match (name.as_str(), value) {
                ("pattern", Value::String(pattern)) => check_size(field, pattern, MAX_REGEX_BYTES)?,
                ("patternProperties", Value::Object(patterns)) => {
                    patterns.keys().try_for_each(|pattern| check_size(field, pattern, MAX_REGEX_BYTES))?;
                }
                _ => {}
            }
            check_patterns(field, value)
        }),
        Value::Array(items) => items.iter().try_for_each(|item| check_patterns(field, item)),
        _ => Ok(()),
    }
}

fn check_size(field: &str, text: &str, most: usize) -> Result<(), ApiError> {
    if text.len() <= most {
        return Ok(());
    }
    Err(ApiError::param(field, format!("{field} must have at most {most} bytes, got {}", text.len())))
}
