//! What a text has to obey, as requests write it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use tilewise_engine::{CompiledGrammar, Grammar};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::state::{App, Room, blocking};

/// Bytes of a grammar: other grammars wait while it is compiled.
pub(crate) const MAX_BYTES: usize = 64 << 10;

/// Remainders that a grammar may tell apart.
const MOST_REMAINDERS: u64 = 20_000;

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
    check_multiples(field, &schema)?;
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

/// Refuses multiples of large numbers: the grammar has a state for each remainder, and a million of them take ten seconds
/// while other grammars wait.
///
/// # Errors
/// 400.
pub(crate) fn check_multiples(field: &str, schema: &Value) -> Result<(), ApiError> {
    match common_multiple(schema, 1) {
        Some(_) => Ok(()),
        None => Err(ApiError::param(
            field,
            format!("{field}: multipleOf must divide a number up to {MOST_REMAINDERS}"),
        )),
    }
}

/// The least common multiple of all `multipleOf` in a schema and `so_far`, whatever the place of their decimal point; `None`
/// above the limit.
fn common_multiple(schema: &Value, so_far: u64) -> Option<u64> {
    match schema {
        Value::Array(values) => {
            values.iter().try_fold(so_far, |so_far, value| common_multiple(value, so_far))
        }
        Value::Object(fields) => fields.iter().try_fold(so_far, |so_far, (name, value)| match value {
            Value::Number(number) if name == "multipleOf" => {
                let digits: u64 =
                    number.to_string().replace('.', "").parse().ok().filter(|&digits| digits > 0)?;
                let multiple = so_far.checked_mul(digits / greatest_divisor(so_far, digits))?;
                (multiple <= MOST_REMAINDERS).then_some(multiple)
            }
            value => common_multiple(value, so_far),
        }),
        _ => Some(so_far),
    }
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

/// Compiles the grammar of a request, which keeps its room meanwhile, beside the engine.
///
/// One at a time: each takes a core from the engine for as long as it takes.
///
/// # Errors
/// 400 for one that cannot be compiled.
pub(crate) async fn compile(
    app: &Arc<App>,
    room: &Arc<Room>,
    grammar: Grammar,
) -> Result<CompiledGrammar, ApiError> {
    let turn = app.compiling.clone().acquire_owned().await;
    let (app, room) = (app.clone(), room.clone());
    blocking(move || {
        let compiled = app.model.grammars.compile(&grammar);
        // Whoever asked may have gone meanwhile, and taken their hands off both.
        drop((turn, room));
        compiled.map_err(|error| ApiError::refused(&error, "response_format"))
    })
    .await
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
