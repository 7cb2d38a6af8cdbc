//! `/v1/responses`

use serde_json::{Value, json};

use crate::common::server;

const PATH: &str = "/v1/responses";

fn body() -> Value {
    json!({ "model": "demo", "input": "Write a function that adds two numbers", "max_output_tokens": 24, "temperature": 0 })
}

#[test]
fn a_text_is_answered_like_a_conversation_of_one_message() {
    let answer = server().ask(PATH, &body());
    let message = json!({ "role": "user", "content": "Write a function that adds two numbers" });
    let chat = json!({ "messages": [message], "max_tokens": 24, "temperature": 0 });
    let text = server().ask("/v1/chat/completions", &chat)["choices"][0]["message"]["content"].clone();
    assert_eq!(answer["output"][0]["content"][0]["text"], text);
    assert_eq!(answer["status"], "incomplete");
    assert_eq!(answer["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(answer["usage"]["output_tokens"], 24);
    let mut items = body();
    items["input"] = json!([{ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": message["content"] }] }]);
    assert_eq!(server().ask(PATH, &items)["output"][0]["content"][0]["text"], text);
}

#[test]
fn a_streams_events_are_numbered_and_make_the_whole() {
    let whole = server().ask(PATH, &body());
    let events: Vec<Value> =
        server().stream(PATH, &body()).iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let text: String =
        of("response.output_text.delta").iter().map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(whole["output"][0]["content"][0]["text"], text);
    assert_eq!(of("response.output_text.done")[0]["text"], text);
    assert_eq!(events[0]["type"], "response.created");
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["response"]["usage"]), (&json!("response.incomplete"), &whole["usage"]));
}

#[test]
fn an_answer_obeys_its_schema() {
    let mut asked = body();
    asked["text"] =
        json!({ "format": { "type": "json_schema", "name": "n", "schema": { "enum": ["left", "right"] } } });
    let answer = server().ask(PATH, &asked);
    assert_eq!(answer["status"], "completed");
    let text = answer["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(["\"left\"", "\"right\""].contains(&text), "{text}");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_its_name() {
    for (fields, param) in [
        (json!({ "previous_response_id": "resp_1" }), "previous_response_id"),
        (json!({ "background": true }), "background"),
        (json!({ "tools": [{ "name": "f" }] }), "tools"),
        (json!({ "tools": [{ "type": "function", "name": "a b" }] }), "tools"),
        (json!({ "top_logprobs": 2 }), "top_logprobs"),
        (json!({ "input": [{ "role": "wizard", "content": "x" }] }), "input[0].role"),
        (json!({ "input": [{ "type": "item_reference", "id": "x" }] }), "input[0].id"),
        (json!({ "input": [{ "type": "wizardry" }] }), "input[0].type"),
        (
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_image" }] }] }),
            "input[0].content",
        ),
        (json!({ "input": [] }), "input"),
        (
            json!({ "text": { "format": { "type": "json_schema", "name": "n", "schema": { "type": "none" } } } }),
            "text",
        ),
        (json!({ "truncation": "auto" }), "truncation"),
        (json!({ "max_output_tokens": 0 }), "max_output_tokens"),
        (json!({ "colour": 1 }), "colour"),
    ] {
        let mut asked = body();
        asked.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server().refused(PATH, &asked, param);
    }
    // What routers add.
    let mut asked = body();
    let added = json!({
        "store": true, "stream": null, "top_p": 1.0, "priority": 0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
    });
    asked.as_object_mut().unwrap().extend(added.as_object().unwrap().clone());
    assert_eq!(server().ask(PATH, &asked)["store"], false);
}

fn tool() -> Value {
    json!({
        "type": "function", "name": "f", "strict": true,
        "parameters": { "type": "object", "properties": { "a": { "enum": [1] } }, "required": ["a"], "additionalProperties": false },
    })
}

#[test]
fn a_function_is_called_and_its_output_comes_back() {
    let mut asked = body();
    asked["max_output_tokens"] = json!(90);
    asked["tools"] = json!([tool(), { "type": "web_search" }]);
    asked["tool_choice"] = json!("required");
    let answer = server().post(PATH, &asked);
    assert_eq!(answer.header("x-ignored-fields"), Some("tools[1] (web_search)"));
    let whole = answer.json();
    assert_eq!((&whole["status"], &whole["tools"]), (&json!("completed"), &json!([tool()])), "{whole}");
    let call = whole["output"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        (&call["type"], &call["name"], &call["arguments"]),
        (&json!("function_call"), &json!("f"), &json!("{\"a\": 1}"))
    );
    let events: Vec<Value> =
        server().stream(PATH, &asked).iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let arguments: String = of("response.function_call_arguments.delta")
        .iter()
        .map(|event| event["delta"].as_str().unwrap())
        .collect();
    assert_eq!(json!(arguments), call["arguments"]);
    assert_eq!(of("response.function_call_arguments.done")[0]["arguments"], call["arguments"]);
    // All that came goes back, as SDKs write it, with the output of the call.
    let mut next = body();
    let output = json!({ "type": "function_call_output", "call_id": call["call_id"], "output": "3" });
    let reasoning = json!({ "type": "reasoning", "id": "rs_1", "summary": [], "content": [{ "type": "reasoning_text", "text": "hm" }] });
    let old = json!({ "type": "message", "role": "assistant", "status": "completed", "id": "msg_1", "phase": null,
        "content": [{ "type": "output_text", "text": "x", "annotations": [], "logprobs": null }] });
    next["input"] = json!([{ "role": "user", "content": "x" }, old, { "role": "user", "content": "y" }, reasoning, call, output]);
    next["tools"] = json!([tool()]);
    assert_eq!(server().ask(PATH, &next)["output"][0]["type"], "message");
    server().wait_idle();
}

#[test]
fn items_of_an_answer_can_be_named_instead_of_sent() {
    let item = server().ask(PATH, &body())["output"][0].clone();
    let ask = |item: Value| {
        let mut next = body();
        next["input"] = json!([{ "role": "user", "content": "x" }, item, { "role": "user", "content": "y" }]);
        server().ask(PATH, &next)["output"][0]["content"].clone()
    };
    assert_eq!(ask(json!({ "type": "item_reference", "id": item["id"] })), ask(item.clone()));
}

#[test]
fn a_call_that_breaks_off_is_incomplete_and_what_follows_it_is_said_behind_it() {
    for (regex, stop, arguments) in [
        (r#"<tool_call>\n\{"name": "f", "arguments": \{"a": 1, b: 2\}\}"#, json!(null), "{\"a\": 1, "),
        (
            r#"<tool_call>\n\{"name": "f", "arguments": \{"a": 1\}\}\n</tool_call> after"#,
            json!("1}"),
            "{\"a\": ",
        ),
    ] {
        let mut asked = body();
        asked["max_output_tokens"] = json!(90);
        asked["tools"] = json!([{ "type": "function", "name": "f", "parameters": {} }]);
        (asked["regex"], asked["stop"]) = (json!(regex), stop);
        let output = server().ask(PATH, &asked)["output"].clone();
        let call = &output[0];
        assert_eq!(
            (&call["type"], &call["status"]),
            (&json!("function_call"), &json!("incomplete")),
            "{output}"
        );
        assert_eq!(call["arguments"], arguments);
        let names: Vec<&Value> =
            output.as_array().unwrap().iter().filter(|item| item["type"] == "function_call").collect();
        assert_eq!(names.len(), 1, "{output}");
    }
}
