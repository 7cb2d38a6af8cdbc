//! `/v1/completions`

use serde_json::{Value, json};

use crate::common::{chunks, server};

const PATH: &str = "/v1/completions";

fn body() -> Value {
    json!({ "model": "demo", "prompt": "def add(a, b):", "max_tokens": 24, "temperature": 0 })
}

fn with(fields: &Value) -> Value {
    let mut body = body();
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn a_stream_put_together_is_the_whole_answer() {
    for fields in [
        json!({}),
        json!({ "n": 3, "temperature": 1, "seed": 7, "ignore_eos": true }),
        json!({ "logprobs": 3, "echo": true }),
    ] {
        let body = with(&fields);
        let whole = server().ask(PATH, &body);
        let chunks = chunks(&server().stream(PATH, &body));
        for choice in whole["choices"].as_array().unwrap() {
            let parts: Vec<&Value> = chunks
                .iter()
                .flat_map(|chunk| chunk["choices"].as_array().unwrap())
                .filter(|part| part["index"] == choice["index"])
                .collect();
            let text: String = parts.iter().map(|part| part["text"].as_str().unwrap()).collect();
            assert_eq!(choice["text"], text, "{fields}");
            assert_eq!(choice["finish_reason"], parts.last().unwrap()["finish_reason"]);
            if fields.get("logprobs").is_some() {
                let logprobs = parts.iter().filter_map(|part| part["logprobs"]["token_logprobs"].as_array());
                let logprobs: Vec<&Value> = logprobs.flatten().collect();
                let whole: Vec<&Value> =
                    choice["logprobs"]["token_logprobs"].as_array().unwrap().iter().collect();
                assert_eq!(logprobs, whole);
            }
        }
        assert_eq!(whole["usage"]["completion_tokens"], 24 * whole["choices"].as_array().unwrap().len());
    }
}

#[test]
fn usage_comes_last_where_it_is_asked_for() {
    let asked =
        chunks(&server().stream(PATH, &with(&json!({ "stream_options": { "include_usage": true } }))));
    let (last, parts) = asked.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(24)));
    assert!(parts.iter().all(|part| part["usage"].is_null() && part["choices"][0]["index"] == 0));
    let plain = chunks(&server().stream(PATH, &body()));
    assert!(plain.iter().all(|part| part["usage"].is_null()));
}

#[test]
fn several_prompts_are_several_choices_in_order() {
    let one =
        |prompt: &str| server().ask(PATH, &with(&json!({ "prompt": prompt })))["choices"][0]["text"].clone();
    let (first, second) = (one("def add(a, b):"), one("import "));
    let both = server().ask(PATH, &with(&json!({ "prompt": ["def add(a, b):", "import "] })));
    assert_eq!((&both["choices"][0]["text"], &both["choices"][1]["text"]), (&first, &second));
    assert_eq!(both["choices"][1]["index"], 1);
    let ids = server().ask("/tokenize", &json!({ "prompt": "import " }))["tokens"].clone();
    assert_eq!(server().ask(PATH, &with(&json!({ "prompt": ids })))["choices"][0]["text"], second);
    assert_eq!(server().ask(PATH, &with(&json!({ "prompt": [ids] })))["choices"][0]["text"], second);
}

#[test]
fn a_text_ends_before_its_stop_string_and_the_others_go_on() {
    let whole = server().ask(PATH, &body())["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = whole.chars().skip(8).take(3).collect();
    let start = whole.find(&stop).unwrap();
    let stopped = server().ask(PATH, &with(&json!({ "stop": [stop] })));
    assert_eq!(stopped["choices"][0]["text"], whole[..start]);
    assert_eq!(
        (&stopped["choices"][0]["finish_reason"], &stopped["choices"][0]["matched_stop"]),
        (&json!("stop"), &json!(stop))
    );
    let sampled = with(&json!({ "n": 4, "temperature": 1, "seed": 3, "max_tokens": 40 }));
    let free = server().ask(PATH, &sampled);
    let mut stopping = sampled.clone();
    stopping["stop"] = json!("\n");
    let stopped = server().ask(PATH, &stopping);
    for (free, stopped) in
        free["choices"].as_array().unwrap().iter().zip(stopped["choices"].as_array().unwrap())
    {
        let text = free["text"].as_str().unwrap();
        assert_eq!(stopped["text"], text.split('\n').next().unwrap());
    }
    server().wait_idle();
}

#[test]
fn logprobs_are_of_the_tokens_and_of_the_prompt_where_it_is_echoed() {
    let answer = server().ask(PATH, &with(&json!({ "logprobs": 2, "echo": true, "max_tokens": 4 })));
    let choice = &answer["choices"][0];
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    let logprobs = &choice["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), prompt + 4);
    let text: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(choice["text"], text);
    assert!(logprobs["token_logprobs"][0].is_null());
    for place in 1..tokens.len() {
        assert!(logprobs["token_logprobs"][place].as_f64().unwrap() <= 0.0, "{logprobs}");
    }
    // Greedy: each generated token is the most probable.
    for place in prompt..tokens.len() {
        let top = logprobs["top_logprobs"][place].as_object().unwrap();
        let most = top.values().map(|value| value.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(logprobs["token_logprobs"][place].as_f64().unwrap(), most);
    }
}

#[test]
fn the_same_seed_is_the_same_text_and_another_is_not() {
    let draw = |seed: i64| {
        server().ask(PATH, &with(&json!({ "temperature": 1, "seed": seed })))["choices"][0]["text"].clone()
    };
    assert_eq!(draw(-5), draw(-5));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn a_second_request_finds_the_first_ones_prefix() {
    let prompt =
        "def long_function_name(first, second, third):\n    return first + second + third\n".repeat(4);
    let body = with(&json!({ "prompt": prompt, "max_tokens": 2, "cache_salt": "own" }));
    server().ask(PATH, &body);
    let again = server().ask(PATH, &body);
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() >= 32, "{again}");
    let mut other = body.clone();
    other["cache_salt"] = json!("another");
    assert_eq!(server().ask(PATH, &other)["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

#[test]
fn what_cannot_be_honoured_is_refused_by_its_name() {
    let refused = |fields: Value, param: &str| server().refused(PATH, &with(&fields), param);
    assert_eq!(refused(json!({ "colour": 1 }), "colour")["code"], "unknown_field");
    for (fields, param) in [
        (json!({ "suffix": "x" }), "suffix"),
        (json!({ "best_of": 2 }), "best_of"),
        (json!({ "ebnf": "root ::= x" }), "ebnf"),
        (json!({ "skip_special_tokens": false }), "skip_special_tokens"),
        (json!({ "no_stop_trim": true }), "no_stop_trim"),
        (json!({ "min_tokens": 3 }), "min_tokens"),
        (json!({ "temperature": -1 }), "temperature"),
        (json!({ "temperature": "hot" }), "temperature"),
        (json!({ "top_p": -0.1 }), "top_p"),
        (json!({ "top_k": -2 }), "top_k"),
        (json!({ "top_k": 1.5 }), "top_k"),
        (json!({ "min_p": 2 }), "min_p"),
        (json!({ "presence_penalty": 3 }), "presence_penalty"),
        (json!({ "repetition_penalty": 0 }), "repetition_penalty"),
        (json!({ "logit_bias": { "x": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "5": 101 } }), "logit_bias"),
        (json!({ "logit_bias": { "4096": 1 } }), "logit_bias"),
        (json!({ "logprobs": 21 }), "logprobs"),
        (json!({ "prompt": [4096] }), "prompt"),
        (json!({ "prompt": "" }), "prompt"),
        (json!({ "prompt": [] }), "prompt"),
        (json!({ "regex": "a", "json_schema": "{}" }), "regex"),
    ] {
        refused(fields, param);
    }
    let unknown = server().post(PATH, &with(&json!({ "model": "other" })));
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
    let defaults = json!({ "echo": false, "suffix": null, "no_stop_trim": false, "skip_special_tokens": true, "best_of": 1 });
    server().ask(PATH, &with(&defaults));
}

#[test]
fn a_text_obeys_its_regex_and_its_schema() {
    let text =
        |fields: Value| server().ask(PATH, &with(&fields))["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!(["yes", "no"].contains(&&*text(json!({ "regex": "yes|no" }))));
    let schema = json!({
        "type": "object", "properties": { "n": { "type": "integer" } }, "required": ["n"], "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema } });
    let value: Value =
        serde_json::from_str(&text(json!({ "response_format": format, "max_tokens": 60 }))).unwrap();
    assert!(value["n"].is_i64());
}
