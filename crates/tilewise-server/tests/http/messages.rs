//! `/v1/messages`

use serde_json::{Value, json};

use crate::common::{folder, server, start, start_model};

const PATH: &str = "/v1/messages";

fn body(fields: &Value) -> Value {
    let mut body = json!({
        "model": "demo", "max_tokens": 24, "temperature": 0,
        "messages": [{ "role": "user", "content": "Write a function that adds two numbers" }],
    });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn tool() -> Value {
    json!({
        "name": "f", "description": "d",
        "input_schema": { "type": "object", "properties": { "a": { "enum": [1] } }, "required": ["a"], "additionalProperties": false },
    })
}

/// The events of a stream.
fn events(path: &str, body: &Value) -> Vec<Value> {
    server().stream(path, body).iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[test]
fn a_conversation_is_answered_like_a_chat() {
    let whole = server().ask(PATH, &body(&json!({})));
    let chat = json!({ "messages": body(&json!({}))["messages"], "max_tokens": 24, "temperature": 0 });
    let text = server().ask("/v1/chat/completions", &chat)["choices"][0]["message"]["content"].clone();
    assert_eq!(whole["content"], json!([{ "type": "text", "text": text }]));
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["stop_reason"]),
        (&json!("message"), &json!("assistant"), &json!("max_tokens"))
    );
    assert_eq!(whole["usage"]["output_tokens"], 24);
    // The same in blocks, with a system prompt of blocks and fields that mean nothing here.
    let blocks = json!([{ "type": "text", "text": "Write a function that adds two numbers", "cache_control": { "type": "ephemeral" } }]);
    let again = server().post(PATH, &body(&json!({
        "messages": [{ "role": "user", "content": blocks }], "metadata": { "user_id": "u" }, "betas": ["x"],
    })));
    assert_eq!(again.json()["content"], whole["content"]);
    assert_eq!(again.header("x-ignored-fields"), Some("betas"));
}

#[test]
fn a_streams_events_make_the_whole() {
    let whole = server().ask(PATH, &body(&json!({})));
    let events = events(PATH, &body(&json!({})));
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let text: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(whole["content"][0]["text"], text);
    let last = &events[events.len() - 2];
    assert_eq!(last["delta"]["stop_reason"], whole["stop_reason"]);
    assert_eq!(last["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
}

#[test]
fn a_tool_is_used_and_its_result_comes_back() {
    let asked = body(
        &json!({ "tools": [tool(), { "type": "web_search_20250305", "name": "web_search" }], "tool_choice": { "type": "any" }, "max_tokens": 90 }),
    );
    let answer = server().post(PATH, &asked);
    assert_eq!(answer.header("x-ignored-fields"), Some("tools[1] (web_search_20250305)"));
    let whole = answer.json();
    assert_eq!(whole["stop_reason"], "tool_use", "{whole}");
    let used = whole["content"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        (&used["type"], &used["name"], &used["input"]),
        (&json!("tool_use"), &json!("f"), &json!({ "a": 1 }))
    );
    let events = events(PATH, &asked);
    let arguments: String =
        events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&arguments).unwrap(), used["input"]);
    let user = asked["messages"][0].clone();
    let result = json!({ "type": "tool_result", "tool_use_id": used["id"], "content": [{ "type": "text", "text": "3" }] });
    let turns = json!([user, { "role": "assistant", "content": whole["content"] }, { "role": "user", "content": [result, { "type": "text", "text": "go on" }] }]);
    server().ask(PATH, &body(&json!({ "messages": turns, "tools": [tool()] })));
    server().wait_idle();
}

#[test]
fn thoughts_are_blocks_of_their_own() {
    let model = folder(
        "{% for message in messages %}{{ message.content }}{% endfor %}{% if enable_thinking %}<think>\n{% else %}{# #}{% endif %}",
    );
    let server = start_model(&model.source, |_, _| {});
    let whole = server.ask(PATH, &body(&json!({ "thinking": { "type": "enabled", "budget_tokens": 1024 } })));
    assert_eq!(whole["content"][0]["type"], "thinking", "{whole}");
    let whole = server.ask(PATH, &body(&json!({ "thinking": { "type": "disabled" } })));
    assert_eq!(whole["content"][0]["type"], "text", "{whole}");
}

#[test]
fn tokens_are_counted_as_an_answer_counts_them() {
    let count = server().ask("/v1/messages/count_tokens", &body(&json!({})))["input_tokens"].clone();
    let usage = server().ask(PATH, &body(&json!({})))["usage"].clone();
    let read = usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(count.as_u64().unwrap(), usage["input_tokens"].as_u64().unwrap() + read);
}

#[test]
fn a_text_ends_at_a_stop_sequence() {
    let whole = server().ask(PATH, &body(&json!({})))["content"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = whole.chars().skip(6).take(3).collect();
    let stopped = server().ask(PATH, &body(&json!({ "stop_sequences": [stop] })));
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
}

#[test]
fn errors_have_anthropics_form() {
    let image = json!([{ "role": "user", "content": [{ "type": "image", "source": {} }] }]);
    for (fields, status, kind, words) in [
        (json!({ "messages": image }), 400, "invalid_request_error", "image"),
        (json!({ "messages": [] }), 400, "invalid_request_error", "messages"),
        (json!({ "max_tokens": 0 }), 400, "invalid_request_error", "max_tokens"),
        (json!({ "model": "other" }), 404, "not_found_error", "other"),
    ] {
        let answer = server().post(PATH, &body(&fields));
        let error = answer.json();
        assert_eq!((answer.status, &error["type"]), (status, &json!("error")), "{error}");
        assert_eq!(error["error"]["type"], kind, "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(words), "{error}");
    }
    let guarded = start(|config, _| config.api_key = Some("secret".to_owned()));
    let answer = guarded.post(PATH, &body(&json!({})));
    assert_eq!((answer.status, &answer.json()["error"]["type"]), (401, &json!("authentication_error")));
}

#[test]
fn the_assistants_last_message_is_gone_on_with() {
    let turns = json!([{ "role": "user", "content": "Write a function" }, { "role": "assistant", "content": "def add(" }]);
    let answer = server().ask(PATH, &body(&json!({ "messages": turns })));
    let chat =
        json!({ "messages": turns, "max_tokens": 24, "temperature": 0, "continue_final_message": true });
    let text = server().ask("/v1/chat/completions", &chat)["choices"][0]["message"]["content"].clone();
    assert_eq!(answer["content"][0]["text"], text);
}

#[test]
fn a_tool_use_that_breaks_off_is_none() {
    let asked = |tokens: u64| {
        body(&json!({ "tools": [tool()], "tool_choice": { "type": "any" }, "max_tokens": tokens }))
    };
    let tokens = server().ask(PATH, &asked(90))["usage"]["output_tokens"].as_u64().unwrap();
    let whole = server().ask(PATH, &asked(tokens - 12));
    assert_eq!((&whole["stop_reason"], &whole["content"]), (&json!("max_tokens"), &json!([])), "{whole}");
}

#[test]
fn tools_that_others_host_are_left_out_whatever_is_chosen() {
    let asked = body(&json!({
        "tools": [{ "type": "mcp_toolset", "mcp_server_name": "x" }], "tool_choice": { "type": "any" },
    }));
    let answer = server().post(PATH, &asked);
    assert_eq!((answer.status, answer.header("x-ignored-fields")), (200, Some("tools[0] (mcp_toolset)")));
}
