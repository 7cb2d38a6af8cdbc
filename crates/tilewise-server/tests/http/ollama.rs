//! Ollama's protocol.

use serde_json::{Value, json};

use crate::common::server;

fn body(fields: &Value) -> Value {
    let mut body = json!({
        "model": "demo", "options": { "temperature": 0, "num_predict": 24, "num_ctx": 2048 },
        "messages": [{ "role": "user", "content": "Write a function that adds two numbers" }], "stream": false,
    });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// The objects of a stream, one on each line.
#[track_caller]
fn lines(path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body.as_object_mut().unwrap().remove("stream");
    let answer = server().open(path, &body);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-ndjson")));
    answer.whole().text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_conversation_is_answered_like_a_chat_whole_and_in_lines() {
    let answer = server().post("/api/chat", &body(&json!({ "keep_alive": "5m", "colour": 1 })));
    assert_eq!(answer.header("x-ignored-fields"), Some("colour, options.num_ctx"));
    let whole = answer.json();
    let chat = json!({ "messages": body(&json!({}))["messages"], "max_tokens": 24, "temperature": 0 });
    let text = server().ask("/v1/chat/completions", &chat)["choices"][0]["message"]["content"].clone();
    assert_eq!(whole["message"], json!({ "role": "assistant", "content": text }));
    assert_eq!(
        (&whole["done"], &whole["done_reason"], &whole["eval_count"]),
        (&json!(true), &json!("length"), &json!(24))
    );
    let lines = lines("/api/chat", &body(&json!({ "model": "demo:latest" })));
    let streamed: String = lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(streamed, text.as_str().unwrap());
    let (last, others) = lines.split_last().unwrap();
    assert!(others.iter().all(|line| line["done"] == false) && last["done"] == true);
}

#[test]
fn a_prompt_is_continued_by_the_template_or_as_it_stands() {
    let ask = |fields: Value| {
        let mut body = body(&fields);
        body.as_object_mut().unwrap().remove("messages");
        body
    };
    let chat = server().ask("/api/chat", &body(&json!({})))["message"]["content"].clone();
    let prompt = json!({ "prompt": "Write a function that adds two numbers" });
    assert_eq!(server().ask("/api/generate", &ask(prompt.clone()))["response"], chat);
    let streamed: String =
        lines("/api/generate", &ask(prompt)).iter().map(|line| line["response"].as_str().unwrap()).collect();
    assert_eq!(json!(streamed), chat);
    let raw = server().ask("/api/generate", &ask(json!({ "prompt": "def add(a, b):", "raw": true })));
    let plain = json!({ "prompt": "def add(a, b):", "max_tokens": 24, "temperature": 0 });
    assert_eq!(raw["response"], server().ask("/v1/completions", &plain)["choices"][0]["text"]);
    assert_eq!(server().ask("/api/generate", &ask(json!({})))["done_reason"], "load");
}

#[test]
fn formats_are_obeyed_and_calls_are_told_whole() {
    let schema = json!({ "type": "object", "properties": { "a": { "enum": [1] } }, "required": ["a"], "additionalProperties": false });
    let answer = server().ask("/api/chat", &body(&json!({ "format": schema })));
    assert_eq!(answer["message"]["content"], "{\"a\": 1}");
    let tool =
        json!({ "type": "function", "function": { "name": "f", "description": "d", "parameters": schema } });
    // The model calls nothing by itself; that it is offered a function is no error, and neither is a call that comes back.
    let call = json!({ "role": "assistant", "content": "", "tool_calls": [{ "function": { "name": "f", "arguments": { "a": 1 } } }] });
    let user = body(&json!({}))["messages"][0].clone();
    let turns = json!([user, call, { "role": "tool", "tool_name": "f", "content": "3" }]);
    server().ask("/api/chat", &body(&json!({ "messages": turns, "tools": [tool] })));
}

#[test]
fn the_model_is_shown_in_ollamas_words() {
    for path in ["/api/tags", "/api/ps"] {
        let models = server().get(path).json();
        assert_eq!(
            (&models["models"][0]["name"], &models["models"][0]["details"]["family"]),
            (&json!("demo"), &json!("qwen3"))
        );
    }
    assert!(server().get("/api/version").json()["version"].is_string());
    let shown = server().ask("/api/show", &json!({ "model": "demo" }));
    assert_eq!(shown["model_info"]["qwen3.context_length"], 1024);
    assert!(shown["capabilities"].as_array().unwrap().contains(&json!("completion")));
    assert_eq!(server().post("/api/show", &json!({ "name": "other" })).status, 404);
}

#[test]
fn errors_have_ollamas_form() {
    let image = json!([{ "role": "user", "content": "x", "images": ["aGk="] }]);
    for (fields, status, words) in [
        (json!({ "messages": image }), 400, "images"),
        (json!({ "model": "other" }), 404, "other"),
        (json!({ "options": { "temperature": -1 } }), 400, "temperature"),
        (json!({ "options": { "top_k": "x" } }), 400, "options.top_k"),
    ] {
        let answer = server().post("/api/chat", &body(&fields));
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.json()["error"].as_str().unwrap().contains(words), "{}", answer.text());
    }
}

#[test]
fn a_body_without_a_type_is_taken_from_a_shell_and_not_from_a_browser() {
    let body = body(&json!({})).to_string();
    let form = ("content-type", "application/x-www-form-urlencoded");
    let status = |headers: &[(&str, &str)]| {
        server().send("POST", "/api/chat", headers, body.as_bytes()).whole().status
    };
    assert_eq!((status(&[form]), status(&[])), (200, 200));
    assert_eq!(status(&[form, ("sec-fetch-site", "same-origin")]), 415);
    assert_eq!(status(&[form, ("sec-fetch-site", "cross-site")]), 403);
    assert_eq!(status(&[form, ("origin", "http://localhost")]), 415);
}
