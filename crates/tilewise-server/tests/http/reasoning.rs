//! Reasoning apart from what is said, also where what is said has to obey something.

use serde_json::{Value, json};

use crate::common::{Folder, Running, chunks, folder, start_model};

const PATH: &str = "/v1/chat/completions";

/// A template that opens the reasoning unless it is told not to, and shows what else it was told.
const TEMPLATE: &str = "{% for message in messages %}{{ message.content }}{% endfor %}{{ reasoning_effort }}\
    {% if tools %}<tool_call>{% endif %}\
    {% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}";

fn thinking(configure: impl FnOnce(&mut tilewise_server::ServerConfig)) -> (Folder, Running) {
    let model = folder(TEMPLATE);
    let server = start_model(&model.source, |config, _| configure(config));
    (model, server)
}

fn body(fields: &Value) -> Value {
    let mut body = json!({
        "messages": [{ "role": "user", "content": "x" }], "max_tokens": 90, "temperature": 0, "stop_token_ids": [],
    });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// Draws the tag that closes the reasoning at once: the demo model has never seen one.
fn closing(server: &Running) -> Value {
    let ids = server.ask("/tokenize", &json!({ "prompt": "</think>" }))["tokens"].clone();
    let bias = |id: &Value| (id.to_string(), json!(60));
    ids.as_array().unwrap().iter().map(bias).collect::<serde_json::Map<_, _>>().into()
}

#[test]
fn reasoning_that_the_prompt_opened_comes_apart_and_json_obeys_its_schema() {
    let (_model, server) = thinking(|_| {});
    let schema = json!({ "enum": ["left", "right"] });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    let asked = body(&json!({ "response_format": format, "max_tokens": 400 }));
    // The model does not close by itself: what it thinks is free.
    let open = server.ask(PATH, &asked)["choices"][0].clone();
    assert_eq!(
        (&open["finish_reason"], &open["message"]["content"]),
        (&json!("length"), &json!("")),
        "{open}"
    );
    assert!(!open["message"]["reasoning_content"].as_str().unwrap().is_empty());
    let mut closed = asked.clone();
    closed["logit_bias"] = closing(&server);
    let whole = server.ask(PATH, &closed);
    let message = &whole["choices"][0]["message"];
    let said = message["content"].as_str().unwrap();
    assert!(["\"left\"", "\"right\""].contains(&said), "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let of = |field: &str| -> String {
        let chunks = chunks(&server.stream(PATH, &closed));
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
    };
    assert_eq!(of("content"), said);
    assert_eq!(of("reasoning_content"), message["reasoning_content"].as_str().unwrap_or_default());
}

#[test]
fn calls_that_are_forced_come_behind_the_reasoning() {
    let (_model, server) = thinking(|_| {});
    let parameters = json!({ "type": "object", "properties": { "a": { "enum": [1] } }, "required": ["a"], "additionalProperties": false });
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": parameters } });
    let mut asked = body(&json!({ "tools": [tool], "tool_choice": "required", "max_tokens": 400 }));
    asked["logit_bias"] = closing(&server);
    let whole = server.ask(PATH, &asked);
    let call = &whole["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!((&call["name"], &call["arguments"]), (&json!("f"), &json!("{\"a\": 1}")), "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn responses_have_items_of_reasoning() {
    let (_model, server) = thinking(|_| {});
    let mut asked = json!({ "input": "x", "temperature": 0, "max_output_tokens": 90, "regex": "yes|no" });
    asked["logit_bias"] = closing(&server);
    let whole = server.ask("/v1/responses", &asked);
    let kinds: Vec<&str> =
        whole["output"].as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds.last(), Some(&"message"), "{whole}");
    assert!(["yes", "no"].contains(
        &whole["output"].as_array().unwrap().last().unwrap()["content"][0]["text"].as_str().unwrap()
    ));
    asked["logit_bias"] = json!({});
    let open = server.ask("/v1/responses", &asked);
    assert_eq!(open["output"][0]["type"], "reasoning", "{open}");
    let thought = open["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(!thought.is_empty());
    assert!(open["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 80, "{open}");
    let events: Vec<Value> = server
        .stream("/v1/responses", &asked)
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let streamed: String =
        of("response.reasoning_text.delta").iter().map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(streamed, thought);
    assert_eq!(of("response.output_item.added").len(), open["output"].as_array().unwrap().len());
}

#[test]
fn reasoning_is_turned_off_by_any_of_its_names_and_by_the_server() {
    let (_model, server) = thinking(|_| {});
    let text = |server: &Running, fields: Value| {
        let mut asked = body(&json!({ "max_tokens": 3, "regex": "yes|no" }));
        asked.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = server.ask(PATH, &asked);
        (answer["usage"]["prompt_tokens"].as_u64().unwrap(), answer["choices"][0]["message"].clone())
    };
    let (off, message) = text(&server, json!({ "enable_thinking": false }));
    assert!(["yes", "no"].contains(&message["content"].as_str().unwrap()), "{message}");
    let (on, message) = text(&server, json!({}));
    assert!(message["reasoning_content"].is_string() && off > on, "{message}");
    for fields in [
        json!({ "reasoning_effort": "none" }),
        json!({ "chat_template_kwargs": { "enable_thinking": false } }),
    ] {
        assert_eq!(text(&server, fields).0, off);
    }
    // The word reaches the template.
    assert!(text(&server, json!({ "reasoning_effort": "high" })).0 > on);
    let (_model, quiet) = thinking(|config| {
        config.chat_template_kwargs = json!({ "enable_thinking": false }).as_object().unwrap().clone();
    });
    assert_eq!(text(&quiet, json!({})).0, off);
    assert_eq!(text(&quiet, json!({ "enable_thinking": true })).0, on);
    let low = text(&server, json!({ "reasoning_effort": "low" })).0;
    assert_eq!(text(&quiet, json!({ "reasoning_effort": "low" })).0, low);
}

#[test]
fn a_strict_schema_leaves_room_for_reasoning_too() {
    let model = folder("{% for message in messages %}{{ message.content }}{% endfor %}{# <think> #}");
    let server = start_model(&model.source, |_, _| {});
    let ids = server.ask("/tokenize", &json!({ "prompt": "<think>" }))["tokens"].clone();
    for strict in [false, true] {
        let format =
            json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": {}, "strict": strict } });
        let bias = json!({ ids[0].to_string(): 90 });
        let asked = body(&json!({ "response_format": format, "logit_bias": bias, "max_tokens": 40 }));
        let message = server.ask(PATH, &asked)["choices"][0]["message"].clone();
        assert!(message["reasoning_content"].is_string(), "strict {strict}: {message}");
    }
}

#[test]
fn a_message_that_is_continued_goes_on_where_it_ends() {
    let model =
        folder("{% for message in messages %}{{ message.content }}{% endfor %}{# <think> end #}<|im_end|>");
    let server = start_model(&model.source, |_, _| {});
    for (begun, content) in
        [("The answer is", " 42"), ("end", " 42"), ("<think>x</think>So", " 42"), ("m", " 42")]
    {
        for off in [false, true] {
            let turns =
                json!([{ "role": "user", "content": "x" }, { "role": "assistant", "content": begun }]);
            let asked = body(&json!({
                "messages": turns, "continue_final_message": true, "regex": " 42", "enable_thinking": !off,
            }));
            let answer = server.ask(PATH, &asked);
            assert_eq!(
                answer["choices"][0]["message"],
                json!({ "role": "assistant", "content": content }),
                "{begun}"
            );
            let prompt = format!("x{begun}");
            let count = server.ask("/tokenize", &json!({ "prompt": prompt }))["count"].clone();
            assert_eq!(answer["usage"]["prompt_tokens"], count, "{begun}");
        }
    }
}
