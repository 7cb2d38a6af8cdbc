//! Tool calls and reasoning.

use serde_json::{Value, json};

use crate::common::{chunks, folder, server, start_model};

const PATH: &str = "/v1/chat/completions";

fn tool(name: &str) -> Value {
    let parameters = json!({
        "type": "object",
        "properties": { "city": { "enum": ["Oslo", "Rome"] }, "days": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["city", "days"],
        "additionalProperties": false,
    });
    json!({ "type": "function", "function": { "name": name, "description": "The weather", "parameters": parameters } })
}

fn body(choice: &Value) -> Value {
    json!({
        "messages": [{ "role": "user", "content": "How is the weather in Rome?" }],
        "tools": [tool("get_weather"), tool("get_forecast")], "tool_choice": choice, "max_tokens": 120, "temperature": 0,
    })
}

#[test]
fn a_call_that_is_required_is_one_of_the_tools_by_its_schema() {
    let named = json!({ "type": "function", "function": { "name": "get_forecast" } });
    for (choice, names) in
        [(json!("required"), vec!["get_weather", "get_forecast"]), (named, vec!["get_forecast"])]
    {
        let whole = server().ask(PATH, &body(&choice));
        let choice_of = &whole["choices"][0];
        assert_eq!(choice_of["finish_reason"], "tool_calls", "{whole}");
        assert!(choice_of["message"]["content"].is_null(), "{whole}");
        let call = &choice_of["message"]["tool_calls"][0];
        assert!(names.contains(&call["function"]["name"].as_str().unwrap()), "{call}");
        assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(
            ["Oslo", "Rome"].contains(&arguments["city"].as_str().unwrap()) && arguments["days"].is_i64()
        );

        let chunks = chunks(&server().stream(PATH, &body(&choice)));
        let deltas: Vec<&Value> = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array())
            .flatten()
            .collect();
        assert_eq!(
            (&deltas[0]["function"]["name"], &deltas[0]["type"]),
            (&call["function"]["name"], &json!("function"))
        );
        assert!(deltas.len() > 5, "the arguments come in pieces: {deltas:?}");
        for delta in &deltas[1..] {
            assert!(delta.get("id").is_none() && delta["function"].get("name").is_none(), "{delta}");
            assert_eq!(delta["index"], 0);
        }
        let streamed: String =
            deltas.iter().map(|delta| delta["function"]["arguments"].as_str().unwrap()).collect();
        assert_eq!(streamed, call["function"]["arguments"].as_str().unwrap());
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
    server().wait_idle();
}

#[test]
fn a_call_that_breaks_off_has_what_came_and_does_not_end_as_a_call() {
    let mut body = body(&json!("required"));
    let whole = server().ask(PATH, &body);
    body["max_tokens"] = json!(whole["usage"]["completion_tokens"].as_u64().unwrap() - 12);
    let cut = server().ask(PATH, &body)["choices"][0].clone();
    assert_eq!(cut["finish_reason"], "length", "{cut}");
    let arguments = |choice: &Value| {
        choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap().to_owned()
    };
    let (cut, whole) = (arguments(&cut), arguments(&whole["choices"][0]));
    assert!(whole.starts_with(&cut) && cut.len() < whole.len(), "{cut} of {whole}");
}

#[test]
fn a_conversation_with_calls_and_their_answers_goes_on() {
    let whole = server().ask(PATH, &body(&json!("required")));
    let message = whole["choices"][0]["message"].clone();
    let mut next = body(&json!("none"));
    let id = message["tool_calls"][0]["id"].clone();
    let answer = json!({ "role": "tool", "tool_call_id": id, "content": "Sunny" });
    next["messages"].as_array_mut().unwrap().extend([message, answer]);
    let answered = server().ask(PATH, &next);
    assert!(answered["choices"][0]["message"]["content"].is_string(), "{answered}");
    next["tool_choice"] = json!("auto");
    server().ask(PATH, &next);
}

#[test]
fn tools_that_mean_nothing_are_refused() {
    for (fields, param) in [
        (json!({ "tools": [] }), "tool_choice"),
        (json!({ "tool_choice": { "type": "function", "function": { "name": "other" } } }), "tool_choice"),
        (json!({ "tools": [{ "type": "function", "function": { "name": "a b" } }] }), "tools"),
        (json!({ "tools": [{ "type": "browser" }] }), "tools[0].type"),
        (json!({ "tools": vec![tool("f"); 200] }), "tools"),
        (json!({ "regex": "yes|no" }), "regex"),
    ] {
        let mut asked = body(&json!("required"));
        asked.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server().refused(PATH, &asked, param);
    }
}

#[test]
fn a_model_whose_template_has_no_tools_refuses_them() {
    let model = folder("{% for message in messages %}{{ message.content }}{% endfor %}");
    let server = start_model(&model.source, |_, _| {});
    server.refused(PATH, &body(&json!("auto")), "tools");
    server.ask(PATH, &body(&json!("none")));
}

#[test]
fn reasoning_comes_apart_from_the_content_unless_it_shall_not() {
    let model = folder("{% for message in messages %}{{ message.content }}{% endfor %}{# <think> #}");
    let server = start_model(&model.source, |_, _| {});
    let body = json!({
        "messages": [{ "role": "user", "content": "x" }], "regex": "<think>one two</think>three", "max_tokens": 60,
    });
    let whole = server.ask(PATH, &body);
    let message = &whole["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("one two"), &json!("three")));
    let chunks = chunks(&server.stream(PATH, &body));
    let of = |field: &str| -> String {
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
    };
    assert_eq!((of("reasoning_content").as_str(), of("content").as_str()), ("one two", "three"));
    let mut together = body.clone();
    together["separate_reasoning"] = json!(false);
    assert_eq!(
        server.ask(PATH, &together)["choices"][0]["message"]["content"],
        "<think>one two</think>three"
    );
}

#[test]
fn a_form_of_the_answer_leaves_room_for_calls() {
    let model = folder(
        "{% for message in messages %}{{ message.content }}{% endfor %}{% if tools %}<tool_call>{% endif %}",
    );
    let server = start_model(&model.source, |_, _| {});
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": { "enum": ["left"] }, "strict": true } });
    let bias = |text: &str| {
        let ids = server.ask("/tokenize", &json!({ "prompt": text }))["tokens"].clone();
        json!({ ids[0].to_string(): 90 })
    };
    let ask = |choice: Value, bias: Value| {
        let mut asked = body(&choice);
        (asked["response_format"], asked["logit_bias"]) = (format.clone(), bias);
        server.ask(PATH, &asked)["choices"][0]["message"].clone()
    };
    assert!(ask(json!("auto"), bias("<"))["tool_calls"][0].is_object());
    assert_eq!(ask(json!("auto"), bias("\""))["content"], "\"left\"");
    // A call that has to be made comes before the form of words.
    assert!(ask(json!("required"), json!({}))["tool_calls"][0].is_object());
}
