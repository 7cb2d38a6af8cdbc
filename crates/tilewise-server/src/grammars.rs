//! What a text has to obey, as requests write it.

use serde::Deserialize;
use serde_json::{Value, json};
use tilewise_engine::Grammar;
use utoipa::ToSchema;

use crate::error::ApiError;

/// Bytes of a grammar: it is compiled while others wait.
const MAX_BYTES: usize = 64 << 10;

/// The form of a text.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text {},
    /// Any JSON object.
    JsonObject {},
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema and its name.
        json_schema: NamedSchema,
    },
}

/// A schema with a name.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedSchema {
    /// Taken and not used.
    name: Option<String>,
    /// Taken and not used.
    description: Option<String>,
    /// The schema.
    #[schema(value_type = Object)]
    schema: Option<Value>,
    /// Schemas are always obeyed.
    strict: Option<bool>,
}

impl NamedSchema {
    /// Its grammar.
    ///
    /// # Errors
    /// 400 for a schema that is none or too large.
    pub(crate) fn grammar(self, field: &str) -> Result<Grammar, ApiError> {
        let missing = || ApiError::param(field, format!("{field} needs a schema"));
        schema(field, self.schema.ok_or_else(missing)?)
    }
}

impl ResponseFormat {
    /// Its grammar, if it has one.
    ///
    /// # Errors
    /// As [`NamedSchema::grammar`].
    pub(crate) fn grammar(self, field: &str) -> Result<Option<Grammar>, ApiError> {
        match self {
            Self::Text {} => Ok(None),
            Self::JsonObject {} => Ok(Some(Grammar::JsonSchema(json!({ "type": "object" })))),
            Self::JsonSchema { json_schema } => json_schema.grammar(field).map(Some),
        }
    }
}

/// The grammar of a schema.
///
/// # Errors
/// 400 for one that is none or too large.
pub(crate) fn schema(field: &str, schema: Value) -> Result<Grammar, ApiError> {
    if !(schema.is_object() || schema.is_boolean()) {
        return Err(ApiError::param(field, format!("{field}: a schema must be an object")));
    }
    check_size(field, &schema.to_string())?;
    Ok(Grammar::JsonSchema(schema))
}

/// The grammar of a schema that is written as text.
///
/// # Errors
/// As [`schema`].
pub(crate) fn schema_text(field: &str, text: &str) -> Result<Grammar, ApiError> {
    check_size(field, text)?;
    let value = serde_json::from_str(text);
    schema(field, value.map_err(|error| ApiError::param(field, format!("{field} is no JSON: {error}")))?)
}

/// The grammar of a regular expression.
///
/// # Errors
/// 400 for one that is too large.
pub(crate) fn regex(field: &str, regex: &str) -> Result<Grammar, ApiError> {
    check_size(field, regex)?;
    Ok(Grammar::Regex(regex.to_owned()))
}

fn check_size(field: &str, text: &str) -> Result<(), ApiError> {
    if text.len() <= MAX_BYTES {
        return Ok(());
    }
    Err(ApiError::param(field, format!("{field} must have at most {MAX_BYTES} bytes, got {}", text.len())))
}

/// The one that is given.
///
/// # Errors
/// 400 for several.
pub(crate) fn only_one<const N: usize>(grammars: [Option<Grammar>; N]) -> Result<Option<Grammar>, ApiError> {
    let mut given = grammars.into_iter().flatten();
    let first = given.next();
    match given.next() {
        None => Ok(first),
        Some(_) => Err(ApiError::param("response_format", "a text can obey one grammar only")),
    }
}
