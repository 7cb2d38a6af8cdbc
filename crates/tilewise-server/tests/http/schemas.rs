//! Schemas as pydantic, zod and people write them.

use serde_json::{Value, json};

use crate::common::server;

const PATH: &str = "/v1/chat/completions";

fn ask(fields: &Value) -> Value {
    let mut body = json!({
        "messages": [{ "role": "user", "content": "Write a function that adds two numbers" }], "max_tokens": 300, "temperature": 0,
    });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn closed(properties: &Value) -> Value {
    let required: Vec<&String> = properties.as_object().unwrap().keys().collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn format(schema: &Value, strict: &Value) -> Value {
    json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema, "strict": strict } } })
}

fn function(name: &str, parameters: &Value) -> Value {
    json!({ "type": "function", "function": { "name": name, "parameters": parameters } })
}

/// The name and the arguments of a call that is forced.
#[track_caller]
fn forced(tools: &Value) -> (String, Value) {
    let choice =
        server().ask(PATH, &ask(&json!({ "tools": tools, "tool_choice": "required" })))["choices"][0].clone();
    let call = &choice["message"]["tool_calls"][0]["function"];
    let arguments = serde_json::from_str(call["arguments"].as_str().unwrap());
    (call["name"].as_str().unwrap().to_owned(), arguments.unwrap_or_else(|error| panic!("{error}: {choice}")))
}

#[test]
fn json_ends_where_its_schema_does() {
    let schema = closed(&json!({ "ok": { "type": "boolean" } }));
    for temperature in [0.0, 0.7] {
        for seed in 0..4 {
            let mut fields = format(&schema, &json!(null));
            (fields["temperature"], fields["seed"]) = (json!(temperature), json!(seed));
            let choice = server().ask(PATH, &ask(&fields))["choices"][0].clone();
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
            let text = choice["message"]["content"].as_str().unwrap();
            assert!(["{\"ok\": true}", "{\"ok\": false}"].contains(&text), "{text}");
        }
    }
    let text = json!({ "input": "x", "text": { "format": { "type": "json_schema", "name": "x", "schema": schema } } });
    assert_eq!(server().ask("/v1/responses", &text)["status"], "completed");
    let bare = json!({ "prompt": "x", "json_schema": schema.to_string(), "max_tokens": 60 });
    assert_eq!(server().ask("/v1/completions", &bare)["choices"][0]["finish_reason"], "stop");
    // Options of the schema's own come first.
    let mut own = schema.clone();
    own["x-guidance"] = json!({ "whitespace_flexible": false, "key_separator": ":" });
    let text =
        server().ask(PATH, &ask(&format(&own, &json!(null))))["choices"][0]["message"]["content"].clone();
    assert!(text.as_str().unwrap().starts_with("{\"ok\":"), "{text}");
}

#[test]
fn each_functions_schema_has_its_own_root() {
    let item = |field: &str, value: &str| {
        let mut schema = closed(&json!({ "item": { "$ref": "#/$defs/Item" } }));
        schema["$defs"] = json!({ "Item": closed(&json!({ field: { "enum": [value] } })) });
        schema
    };
    let (name, arguments) =
        forced(&json!([function("add_item", &item("sku", "S1")), function("rename", &item("title", "T1"))]));
    let own = if name == "add_item" { json!({ "sku": "S1" }) } else { json!({ "title": "T1" }) };
    assert_eq!(arguments, json!({ "item": own }), "{name}");
    let tree =
        closed(&json!({ "v": { "enum": [1] }, "next": { "anyOf": [{ "type": "null" }, { "$ref": "#" }] } }));
    // The model goes on for ever, at the root of the function's schema and not at that of all calls.
    let body =
        ask(&json!({ "tools": [function("tree", &tree)], "tool_choice": "required", "max_tokens": 60 }));
    let call = server().ask(PATH, &body)["choices"][0]["message"]["tool_calls"][0]["function"].clone();
    let arguments = call["arguments"].as_str().unwrap();
    assert!(arguments.starts_with("{\"v\": 1, \"next\": ") && !arguments.contains("name"), "{arguments}");
    let mut old = closed(&json!({ "a": { "$ref": "#/definitions/A" } }));
    old["definitions"] = json!({ "A": { "enum": ["x", "y"] } });
    assert!(["x", "y"].contains(&forced(&json!([function("f", &old)])).1["a"].as_str().unwrap()));
    let reused = closed(&json!({ "a": { "enum": [1, 2] }, "b": { "$ref": "#/properties/a" } }));
    assert!([1, 2].contains(&forced(&json!([function("f", &reused)])).1["b"].as_i64().unwrap()));
    for parameters in [json!({}), json!({ "type": "object", "properties": {} })] {
        let body = ask(
            &json!({ "tools": [function("f", &parameters)], "tool_choice": "required", "max_tokens": 60 }),
        );
        let call = server().ask(PATH, &body)["choices"][0]["message"]["tool_calls"][0].clone();
        assert!(call["function"]["arguments"].as_str().unwrap().starts_with('{'), "{call}");
    }
}

/// Of usual types in pydantic and zod; none of it changes what a string or a list is.
const ANNOTATED: [&str; 8] = [
    r#"{ "type": "string", "format": "password", "maxLength": 4 }"#,
    r#"{ "type": "string", "format": "binary", "maxLength": 4 }"#,
    r#"{ "type": "string", "format": "path", "maxLength": 4 }"#,
    r#"{ "type": "string", "format": "int64", "maxLength": 4 }"#,
    r#"{ "type": "array", "items": { "enum": ["a", "b"] }, "uniqueItems": true, "maxItems": 2 }"#,
    r#"{ "type": "object", "propertyNames": { "enum": ["a"] }, "additionalProperties": { "enum": [1] }, "maxProperties": 1 }"#,
    r#"{ "not": {} }"#,
    r#"{ "oneOf": [{ "type": "integer", "minimum": 0 }, { "type": "integer", "maximum": 9 }] }"#,
];

#[test]
fn what_cannot_be_enforced_is_ignored_unless_it_has_to_be_strict() {
    for text in ANNOTATED {
        let field: Value = serde_json::from_str(text).unwrap();
        let schema = closed(&json!({ "f": field }));
        for strict in [json!(null), json!(false)] {
            server().ask(PATH, &ask(&format(&schema, &strict)));
        }
        let is_format = field.get("format").is_some();
        let strict = server().post(PATH, &ask(&format(&schema, &json!(true))));
        assert_eq!(strict.status, if is_format { 200 } else { 400 }, "{text}: {}", strict.text());
        let mut tool = function("f", &schema);
        let choice = json!({ "tools": [tool], "tool_choice": "required" });
        server().ask(PATH, &ask(&choice));
        tool["function"]["strict"] = json!(true);
        if !is_format {
            let body = ask(&json!({ "tools": [tool], "tool_choice": "required" }));
            let error = server().refused(PATH, &body, "tools");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("\"f\"") && !message.contains("start:"), "{message}");
        }
    }
    let named = closed(&json!({ "default": { "type": "string", "format": "binary", "maxLength": 3 } }));
    server().ask(PATH, &ask(&format(&named, &json!(true))));
    let unique = closed(&json!({ "f": { "type": "array", "uniqueItems": true } }));
    let error = server().refused(PATH, &ask(&format(&unique, &json!(true))), "response_format");
    assert!(error["message"].as_str().unwrap().contains("uniqueItems"), "{error}");
}
