//! `/v1/chat/completions`

use serde_json::{Value, json};

use crate::common::{chunks, server};

const PATH: &str = "/v1/chat/completions";

fn body() -> Value {
    let message = json!({ "role": "user", "content": "Write a function that adds two numbers" });
    json!({ "model": "demo", "messages": [message], "max_tokens": 24, "temperature": 0 })
}

fn with(fields: &Value) -> Value {
    let mut body = body();
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn a_stream_put_together_is_the_whole_answer() {
    let body = with(&json!({ "n": 2, "logprobs": true, "top_logprobs": 2, "temperature": 1, "seed": 5 }));
    let whole = server().ask(PATH, &body);
    let mut streamed = body.clone();
    streamed["stream_options"] = json!({ "include_usage": true });
    let chunks = chunks(&server().stream(PATH, &streamed));
    for choice in whole["choices"].as_array().unwrap() {
        let parts: Vec<&Value> = chunks
            .iter()
            .flat_map(|chunk| chunk["choices"].as_array().unwrap())
            .filter(|part| part["index"] == choice["index"])
            .collect();
        assert_eq!(parts[0]["delta"], json!({ "role": "assistant", "content": "" }));
        let text: String = parts.iter().filter_map(|part| part["delta"]["content"].as_str()).collect();
        assert_eq!(choice["message"]["content"], text);
        let logprobs: Vec<&Value> =
            parts.iter().filter_map(|part| part["logprobs"]["content"].as_array()).flatten().collect();
        assert_eq!(logprobs, choice["logprobs"]["content"].as_array().unwrap().iter().collect::<Vec<_>>());
        assert_eq!(logprobs.len(), 24);
        assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(parts.last().unwrap()["finish_reason"], choice["finish_reason"]);
    }
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
}

#[test]
fn a_conversation_is_rendered_by_the_models_template() {
    let rendered =
        "<|im_start|>user\nWrite a function that adds two numbers<|im_end|>\n<|im_start|>assistant\n";
    let prompt = json!({ "prompt": rendered, "max_tokens": 24, "temperature": 0 });
    let text = server().ask("/v1/completions", &prompt)["choices"][0]["text"].clone();
    let chat = server().ask(PATH, &body());
    assert_eq!(chat["choices"][0]["message"], json!({ "role": "assistant", "content": text }));
    let parts = json!([{ "type": "text", "text": "Write a function " }, { "type": "text", "text": "that adds two numbers" }]);
    let in_parts = server().ask(PATH, &with(&json!({ "messages": [{ "role": "user", "content": parts }] })));
    assert_eq!(in_parts["choices"][0]["message"]["content"], text);
}

#[test]
fn the_assistants_last_message_can_be_continued() {
    let begun = json!([
        { "role": "user", "content": "Write a function that adds two numbers" },
        { "role": "assistant", "content": "def add(" },
    ]);
    let answer = server().ask(PATH, &with(&json!({ "messages": begun, "continue_final_message": true })));
    let rendered =
        "<|im_start|>user\nWrite a function that adds two numbers<|im_end|>\n<|im_start|>assistant\ndef add(";
    let prompt = json!({ "prompt": rendered, "max_tokens": 24, "temperature": 0 });
    let text = server().ask("/v1/completions", &prompt)["choices"][0]["text"].clone();
    assert_eq!(answer["choices"][0]["message"]["content"], text);
    server().refused(PATH, &with(&json!({ "continue_final_message": true })), "continue_final_message");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_its_name() {
    for (fields, param) in [
        (json!({ "colour": 1 }), "colour"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": "hello" }), "messages"),
        (json!({ "messages": [{ "role": "user", "content": 5 }] }), "messages[0].content"),
        (json!({ "messages": [{ "role": "wizard", "content": "x" }] }), "messages[0].role"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "http://127.0.0.1/" } }] }] }),
            "messages[0].content",
        ),
        (json!({ "top_logprobs": 2 }), "top_logprobs"),
        (json!({ "functions": [{ "name": "f" }] }), "functions"),
        (json!({ "function_call": { "name": "f" } }), "function_call"),
        (json!({ "audio": { "voice": "x" } }), "audio"),
        (json!({ "modalities": ["audio"] }), "modalities"),
        (json!({ "response_format": { "type": "grammar" } }), "response_format.type"),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x" } } }),
            "response_format",
        ),
        (json!({ "chat_template_kwargs": { "messages": [] } }), "chat_template_kwargs"),
    ] {
        server().refused(PATH, &with(&fields), param);
    }
    let defaults = json!({
        "logprobs": false, "no_stop_trim": false, "ignore_eos": false, "continue_final_message": false,
        "skip_special_tokens": true, "separate_reasoning": true, "stream_reasoning": true, "return_hidden_states": false,
    });
    server().ask(PATH, &with(&defaults));
    let missing = server().refused(PATH, &json!({ "model": "demo" }), "messages");
    assert_eq!(missing["code"], "missing_field");
}

#[test]
fn an_answer_is_an_object_where_that_is_asked_for() {
    let answer = server()
        .ask(PATH, &with(&json!({ "response_format": { "type": "json_object" }, "max_tokens": 200 })));
    let choice = &answer["choices"][0];
    if choice["finish_reason"] == "stop" {
        let value: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!(value.is_object());
    } else {
        assert!(choice["message"]["content"].as_str().unwrap().trim_start().starts_with('{'), "{answer}");
    }
}
