//! What popular clients send, add and send back.

use serde_json::{Value, json};

use crate::common::{chunks, folder_with, server, start, start_model};

const PATH: &str = "/v1/chat/completions";

fn with(fields: &Value) -> Value {
    let mut body =
        json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 2, "temperature": 0 });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn fields_that_mean_nothing_change_nothing() {
    let plain = server().ask(PATH, &with(&json!({})))["choices"].clone();
    for fields in [
        json!({ "spaces_between_special_tokens": true }),
        json!({ "service_tier": "auto" }),
        json!({ "verbosity": "medium" }),
        json!({ "modalities": ["text"] }),
        json!({ "guided_json": null, "nobody_knows": null }),
        json!({ "max_tokens": 2.0 }),
        json!({ "functions": [], "function_call": "none" }),
        json!({ "prompt_cache_retention": "24h", "store": true, "include": ["x"], "cache_control": { "type": "x" } }),
        json!({ "metadata": { "a": 1, "b": [true] }, "user": "u" }),
        json!({ "top_k": 0, "top_p": 0, "seed": 1_u64 << 63 }),
    ] {
        assert_eq!(server().ask(PATH, &with(&fields))["choices"], plain, "{fields}");
    }
    for options in [json!({ "include_obfuscation": true }), json!({ "continuous_usage_stats": true })] {
        server().stream(PATH, &with(&json!({ "stream_options": options })));
    }
}

#[test]
fn all_tokens_that_there_is_room_for_are_minus_one_or_too_many() {
    let tokens = |fields: Value| {
        let answer = server().ask(PATH, &with(&fields));
        let usage = &answer["usage"];
        let total = usage["total_tokens"].as_u64().unwrap();
        (answer["choices"][0]["finish_reason"].clone(), total)
    };
    for fields in [json!({ "max_tokens": -1 }), json!({ "max_tokens": 4096 }), json!({ "max_tokens": null })]
    {
        let mut fields = fields;
        fields["ignore_eos"] = json!(true);
        assert_eq!(tokens(fields.clone()), (json!("length"), 1024), "{fields}");
    }
    let strict = start(|config, _| config.strict_max_tokens = true);
    let error = strict.refused(PATH, &with(&json!({ "max_tokens": 4096 })), "messages");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.starts_with("This model's maximum context length is 1024 tokens. However, "),
        "{message}"
    );
}

#[test]
fn clients_know_a_prompt_that_is_too_long_by_the_first_words() {
    for (path, body, param) in [
        ("/v1/completions", json!({ "prompt": vec![300; 1024] }), "prompt"),
        ("/generate", json!({ "input_ids": vec![300; 1024] }), "input_ids"),
        (PATH, json!({ "messages": [{ "role": "user", "content": "a ".repeat(2000) }] }), "messages"),
        ("/v1/responses", json!({ "input": "a ".repeat(2_000_000) }), "input"),
    ] {
        let error = server().refused(path, &body, param);
        assert_eq!(error["code"], "context_length_exceeded");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.starts_with("This model's maximum context length is 1024 tokens. However, "),
            "{message}"
        );
    }
}

#[test]
fn turns_come_back_with_whatever_clients_add() {
    let call = |more: Value| {
        let mut call =
            json!({ "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{}" } });
        call["function"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([call])
    };
    for message in [
        json!({ "role": "assistant", "content": "{}", "parsed": {}, "refusal": null, "annotations": [], "audio": null }),
        json!({ "role": "assistant", "content": null, "tool_calls": call(json!({ "parsed_arguments": {} })) }),
        json!({ "role": "assistant", "tool_calls": call(json!({ "arguments": { "a": 1 } })) }),
        json!({ "role": "user", "content": [{ "type": "text", "text": "x", "cache_control": { "type": "ephemeral" } }] }),
        json!({ "role": "user", "content": "x", "id": 1, "opts": { "visible": false } }),
        json!({ "role": "assistant", "content": "x", "reasoning": "hm", "reasoning_details": null, "thinking_blocks": null }),
        json!({ "role": "function", "name": "f", "content": "1" }),
    ] {
        let user = json!({ "role": "user", "content": "x" });
        server().ask(PATH, &with(&json!({ "messages": [user, message, user] })));
    }
}

#[test]
fn what_the_model_cannot_read_is_refused_by_its_type() {
    for kind in ["image_url", "input_audio", "file", "video_url"] {
        let content = json!([{ "type": "text", "text": "what is this" }, { "type": kind, (kind): {} }]);
        let error = server().refused(
            PATH,
            &with(&json!({ "messages": [{ "role": "user", "content": content }] })),
            "messages[0].content",
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(kind) && !message.contains("untagged"), "{message}");
    }
}

#[test]
fn the_models_sampling_parameters_are_the_defaults_unless_told_otherwise() {
    let config =
        json!({ "do_sample": true, "temperature": 0.6, "top_k": 1, "top_p": 0.95, "eos_token_id": [0, 2] });
    let model = folder_with(&[("generation_config.json", &config.to_string())]);
    let texts = |server: &crate::common::Running, fields: Value| {
        let mut body =
            json!({ "messages": [{ "role": "user", "content": "Write a function" }], "max_tokens": 16 });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let text = |_| server.ask(PATH, &body)["choices"][0]["message"]["content"].to_string();
        (0..6).map(text).collect::<std::collections::BTreeSet<_>>().len()
    };
    let server = start_model(&model.source, |_, _| {});
    assert_eq!(texts(&server, json!({})), 1, "the most probable token is taken");
    assert!(texts(&server, json!({ "top_k": -1, "temperature": 1.5, "top_p": 1 })) > 1);
    let info = server.get("/model_info").json();
    assert_eq!(info["preferred_sampling_params"], json!({ "temperature": 0.6, "top_k": 1, "top_p": 0.95 }));
    let plain = start_model(&model.source, |config, _| config.model_defaults = false);
    assert!(texts(&plain, json!({})) > 1);
    assert_eq!(plain.get("/model_info").json()["preferred_sampling_params"], json!({}));
}

#[test]
fn usage_comes_with_each_part_of_a_stream_where_that_is_asked_for() {
    let options = json!({ "include_usage": true, "continuous_usage_stats": true });
    for (path, prompt) in [(PATH, json!({})), ("/v1/completions", json!({ "prompt": "x", "messages": null }))]
    {
        let mut body = with(&prompt);
        body["stream_options"] = options.clone();
        let chunks = chunks(&server().stream(path, &body));
        let counts: Vec<u64> =
            chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap()).collect();
        assert!(counts.is_sorted() && *counts.last().unwrap() == 2, "{path}: {counts:?}");
    }
}

#[test]
fn legacy_logprobs_name_parts_of_characters_and_what_is_in_the_text() {
    let ask = |fields: Value| {
        let mut body =
            json!({ "prompt": "def add(a, b):", "max_tokens": 40, "temperature": 0, "logprobs": 3 });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let whole = server().ask("/v1/completions", &body)["choices"][0].clone();
        let mut parts = (String::new(), Vec::new(), Vec::new());
        for chunk in chunks(&server().stream("/v1/completions", &body)) {
            let choice = &chunk["choices"][0];
            parts.0 += choice["text"].as_str().unwrap();
            parts.1.extend(choice["logprobs"]["tokens"].as_array().into_iter().flatten().cloned());
            parts.2.extend(choice["logprobs"]["text_offset"].as_array().into_iter().flatten().cloned());
        }
        assert_eq!((&json!(parts.0), &json!(parts.1)), (&whole["text"], &whole["logprobs"]["tokens"]));
        assert_eq!(json!(parts.2), whole["logprobs"]["text_offset"]);
        whole
    };
    let choice = ask(json!({ "regex": "Hi 👩 你" }));
    let logprobs = &choice["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    assert!(tokens.iter().any(|token| token.as_str().unwrap().starts_with("bytes:\\x")), "{tokens:?}");
    assert!(!logprobs["tokens"].to_string().contains('\u{fffd}'), "{tokens:?}");
    for (token, top) in tokens.iter().zip(logprobs["top_logprobs"].as_array().unwrap()) {
        let top = top.as_object().unwrap();
        assert!(
            top.contains_key(token.as_str().unwrap()) && (3..=4).contains(&top.len()),
            "{token}: {top:?}"
        );
    }
    let offsets: Vec<u64> =
        logprobs["text_offset"].as_array().unwrap().iter().map(|offset| offset.as_u64().unwrap()).collect();
    let characters = choice["text"].as_str().unwrap().chars().count() as u64;
    assert!(offsets.is_sorted() && *offsets.last().unwrap() < characters, "{offsets:?} of {characters}");
    // Neither the tokens of a stop string nor the one that ends the text are in it.
    let stopped = ask(json!({ "regex": "one two three", "stop": " two" }));
    let text: String =
        stopped["logprobs"]["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!((stopped["text"].as_str().unwrap(), text.as_str()), ("one", "one"));
}

#[test]
fn an_incomplete_character_at_the_end_is_dropped() {
    let body = json!({ "prompt": "x", "regex": "👩👩", "temperature": 0, "max_tokens": 2 });
    let whole = server().ask("/v1/completions", &body)["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!("👩👩".starts_with(&whole), "{whole:?}");
}

#[test]
fn no_more_than_one_call_is_made_where_that_is_asked_for() {
    let call = |value: u32| {
        format!("<tool_call>\\n\\{{\"name\": \"f\", \"arguments\": \\{{\"a\": {value}\\}}\\}}\\n</tool_call>")
    };
    let twice = format!("{}\\n{}", call(1), call(2));
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": {} } });
    for (parallel, calls) in [(json!(null), 2), (json!(true), 2), (json!(false), 1)] {
        let body = with(&json!({
            "tools": [tool], "parallel_tool_calls": parallel, "regex": twice, "max_tokens": 120,
        }));
        let choice = server().ask(PATH, &body)["choices"][0].clone();
        assert_eq!(choice["message"]["tool_calls"].as_array().unwrap().len(), calls, "{choice}");
        assert_eq!(choice["finish_reason"], "tool_calls");
        let streamed = chunks(&server().stream(PATH, &body));
        let named = |chunk: &&Value| chunk["choices"][0]["delta"]["tool_calls"][0]["id"].is_string();
        assert_eq!(streamed.iter().filter(named).count(), calls);
    }
    server().wait_idle();
}

#[test]
fn special_tokens_of_an_echoed_prompt_have_no_logprobs() {
    let body = json!({ "prompt": "<|im_start|>user\nhi", "echo": true, "logprobs": 1, "max_tokens": 2, "temperature": 0 });
    let choice = server().ask("/v1/completions", &body)["choices"][0].clone();
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    let text: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(choice["text"], text);
    assert_eq!(choice["logprobs"]["text_offset"][0], 0);
}
