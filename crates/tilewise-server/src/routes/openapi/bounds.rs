//! What fields of requests may be where their types do not say it: sizes of the model that is served, and what goes together.

use serde_json::{Value, json};
use tilewise_engine::MAX_COMPLETIONS;

use crate::fields::taken;
use crate::grammars::{MAX_BYTES, MAX_REGEX_BYTES};
use crate::prompt::MAX_PROMPTS;
use crate::sampling::{MAX_BIASES, MAX_STOP_IDS, MAX_STOPS};
use crate::state::{App, UNKNOWN_MODEL};

/// Schemas of requests, whose fields of a name mean the same.
const REQUESTS: [&str; 12] = [
    "ChatRequest",
    "CompletionRequest",
    "GenerateRequest",
    "SamplingParams",
    "ResponsesRequest",
    "MessagesRequest",
    "OllamaChatRequest",
    "OllamaGenerateRequest",
    "ShowRequest",
    "EmbeddingRequest",
    "TokenizeRequest",
    "DetokenizeRequest",
];

/// Those that take fields which mean nothing here.
const TAKES: [&str; 5] =
    ["ChatRequest", "CompletionRequest", "GenerateRequest", "SamplingParams", "ResponsesRequest"];

/// Adds them to the description of all endpoints.
pub(super) fn add(description: &mut Value, app: &App) {
    let schemas = &mut description["components"]["schemas"];
    let fields = fields(app);
    for name in REQUESTS {
        let properties = schemas.pointer_mut(&format!("/{name}/properties"));
        for (field, schema) in properties.and_then(Value::as_object_mut).into_iter().flatten() {
            if let Some(more) = fields.get(field) {
                merge(schema, more);
            }
        }
    }
    for name in TAKES {
        schemas[name]["patternProperties"] = taken::patterns();
    }
    merge(schemas, &wholes(app));
}

/// Of fields, by their names.
fn fields(app: &App) -> Value {
    let most_tokens = json!({ "maximum": app.max_tokens().saturating_sub(1) });
    let digits = app.model.config.vocab_size.saturating_sub(1).to_string().len();
    let stop = json!({ "type": "string", "minLength": 1 });
    let integers = json!({ "minimum": i64::MIN, "maximum": i64::MAX });
    json!({
        "model": { "enum": [app.config.served_model_name, UNKNOWN_MODEL, null] },
        "max_tokens": most_tokens,
        "max_completion_tokens": most_tokens,
        "max_new_tokens": most_tokens,
        "max_output_tokens": most_tokens,
        "temperature": { "maximum": f32::MAX },
        "top_k": { "minimum": -1, "maximum": i64::MAX },
        "best_of": { "minimum": 1, "maximum": MAX_COMPLETIONS },
        "seed": integers,
        "sampling_seed": integers,
        "stop": { "anyOf": [{ "type": "null" }, stop, { "type": "array", "maxItems": MAX_STOPS, "items": stop }] },
        "stop_token_ids": {
            "maxItems": MAX_STOP_IDS, "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX },
        },
        "logit_bias": {
            "maxProperties": MAX_BIASES,
            "propertyNames": { "pattern": format!("^(0|[1-9][0-9]{{0,{}}})$", digits - 1) },
            "additionalProperties": { "type": "number", "minimum": -100, "maximum": 100 },
        },
        "json_schema": { "maxLength": MAX_BYTES, "contentMediaType": "application/json" },
        "regex": { "maxLength": MAX_REGEX_BYTES, "format": "regex" },
    })
}

/// Of whole schemas.
fn wholes(app: &App) -> Value {
    let id = json!({
        "type": "integer", "minimum": 0, "maximum": app.model.config.vocab_size.saturating_sub(1),
    });
    let text = json!({ "type": "string", "minLength": 1 });
    let ids = json!({ "type": "array", "minItems": 1, "maxItems": app.max_tokens(), "items": id });
    let several =
        |one: &Value| json!({ "type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": one });
    let given = |field: &str, other: &str| {
        json!({
            "required": [field], "properties": { field: { "not": { "type": "null" } }, other: { "type": "null" } },
        })
    };
    json!({
        "Prompt": { "anyOf": [text, ids, several(&text), several(&ids)] },
        "TokenIds": { "anyOf": [
            { "type": "array", "items": id },
            { "type": "array", "items": { "type": "array", "items": id } },
        ] },
        "CompletionRequest": {
            "required": ["prompt"],
            "properties": { "prompt": { "anyOf": [{ "$ref": "#/components/schemas/Prompt" }] } },
        },
        "GenerateRequest": {
            "properties": {
                "text": { "anyOf": [{ "type": "null" }, text, several(&text)] },
                "input_ids": { "anyOf": [{ "type": "null" }, ids, several(&ids)] },
            },
            "anyOf": [given("text", "input_ids"), given("input_ids", "text")],
        },
        "ChatRequest": { "anyOf": [
            { "properties": { "top_logprobs": { "enum": [0, null] } } },
            { "required": ["logprobs"], "properties": { "logprobs": { "const": true } } },
        ] },
        "ResponsesRequest": { "properties": { "n": { "minimum": 1, "maximum": 1 } } },
        "Input": { "anyOf": [
            { "type": "string" },
            { "type": "array", "minItems": 1, "items": { "$ref": "#/components/schemas/Item" } },
        ] },
        "Item": item(),
        "LogprobTriple": {
            "items": true,
            "prefixItems": [{ "type": ["number", "null"] }, { "type": "integer" }, { "type": ["string", "null"] }],
        },
        "NamedSchema": { "required": ["schema"], "properties": { "schema": { "type": "object" } } },
        "AbortRequest": { "oneOf": [
            {
                "required": ["rid"],
                "properties": { "rid": text, "abort_all": { "enum": [false, null] } },
            },
            {
                "required": ["abort_all"],
                "properties": { "rid": { "type": "null" }, "abort_all": { "const": true } },
            },
        ] },
    })
}

/// What the kinds of items have.
fn item() -> Value {
    let text = json!({ "type": "string" });
    let kind = |kind: &str, fields: Value| {
        let mut required = vec!["type"];
        required.extend(fields.as_object().into_iter().flat_map(|fields| fields.keys().map(String::as_str)));
        let mut properties = fields.clone();
        properties["type"] = json!({ "const": kind });
        json!({ "required": required, "properties": properties })
    };
    let roles = json!({ "enum": ["system", "developer", "user", "assistant"] });
    let message = json!({
        "required": ["role", "content"],
        "properties": { "type": { "enum": ["message", null] }, "role": roles, "content": text },
    });
    json!({ "anyOf": [
        message,
        kind("function_call", json!({ "call_id": text, "name": text, "arguments": text })),
        kind("function_call_output", json!({ "call_id": text, "output": text })),
    ] })
}

/// Sets what `more` has, object by object.
fn merge(schema: &mut Value, more: &Value) {
    match (schema, more) {
        (Value::Object(fields), Value::Object(more)) => {
            for (name, more) in more {
                merge(fields.entry(name).or_insert(Value::Null), more);
            }
        }
        (schema, more) => *schema = more.clone(),
    }
}
