//! `/generate`

use serde_json::{Value, json};

use crate::common::{chunks, server};

const PATH: &str = "/generate";

fn body() -> Value {
    json!({ "text": "def add(a, b):", "sampling_params": { "max_new_tokens": 24, "temperature": 0 } })
}

fn with(fields: &Value) -> Value {
    let mut body = body();
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn an_answer_says_how_it_came_about() {
    let answer = server().ask(PATH, &body());
    let completion = json!({ "prompt": "def add(a, b):", "max_tokens": 24, "temperature": 0 });
    let text = server().ask("/v1/completions", &completion)["choices"][0]["text"].clone();
    assert_eq!(answer["text"], text);
    let info = &answer["meta_info"];
    assert_eq!(info["finish_reason"], json!({ "type": "length", "length": 24 }));
    assert_eq!(
        (&info["completion_tokens"], answer["output_ids"].as_array().unwrap().len()),
        (&json!(24), 24)
    );
    assert!(
        info["prompt_tokens"].as_u64().unwrap() > 3 && info["e2e_latency"].as_f64().unwrap() > 0.0,
        "{info}"
    );
    assert!(info["cached_tokens"].is_u64() && info["id"].is_string(), "{info}");
    let ids = server().ask("/tokenize", &json!({ "prompt": "def add(a, b):" }))["tokens"].clone();
    let by_ids =
        server().ask(PATH, &json!({ "input_ids": ids, "sampling_params": body()["sampling_params"] }));
    assert_eq!(by_ids["text"], text);
}

#[test]
fn a_stream_tells_the_text_so_far_and_ends_with_the_whole() {
    let whole = server().ask(PATH, &body());
    let chunks = chunks(&server().stream(PATH, &body()));
    let texts: Vec<&str> = chunks.iter().map(|chunk| chunk["text"].as_str().unwrap()).collect();
    assert!(texts.len() > 3 && texts.windows(2).all(|pair| pair[1].starts_with(pair[0])), "{texts:?}");
    assert_eq!(*texts.last().unwrap(), whole["text"].as_str().unwrap());
    let last = &chunks.last().unwrap()["meta_info"];
    assert_eq!(last["finish_reason"], whole["meta_info"]["finish_reason"]);
    assert!(chunks[0]["meta_info"]["finish_reason"].is_null());
}

#[test]
fn a_stop_string_is_told_as_matched() {
    let whole = server().ask(PATH, &body())["text"].as_str().unwrap().to_owned();
    let stop: String = whole.chars().skip(8).take(3).collect();
    let params = json!({ "max_new_tokens": 24, "temperature": 0, "stop": stop });
    let stopped = server().ask(PATH, &with(&json!({ "sampling_params": params })));
    assert_eq!(stopped["text"], whole[..whole.find(&stop).unwrap()]);
    assert_eq!(stopped["meta_info"]["finish_reason"], json!({ "type": "stop", "matched": stop }));
    let id = server().ask(PATH, &body())["output_ids"][3].clone();
    let params = json!({ "max_new_tokens": 24, "temperature": 0, "stop_token_ids": [id] });
    let stopped = server().ask(PATH, &with(&json!({ "sampling_params": params })));
    assert_eq!(stopped["meta_info"]["finish_reason"], json!({ "type": "stop", "matched": id }));
}

#[test]
fn logprobs_are_of_the_answer_and_of_the_prompt_from_where_it_is_asked() {
    let more = json!({ "return_logprob": true, "logprob_start_len": 2, "top_logprobs_num": 2, "return_text_in_logprobs": true });
    let answer = server().ask(PATH, &with(&more));
    let info = &answer["meta_info"];
    let prompt = info["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(info["input_token_logprobs"].as_array().unwrap().len(), prompt - 2);
    assert_eq!(info["output_token_logprobs"].as_array().unwrap().len(), 24);
    assert_eq!(info["output_token_logprobs"][0][1], answer["output_ids"][0]);
    assert_eq!(info["output_top_logprobs"][0].as_array().unwrap().len(), 2);
    let text: String = info["output_token_logprobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one[2].as_str().unwrap())
        .collect();
    assert_eq!(answer["text"], text);
}

#[test]
fn a_stream_tells_each_token_once() {
    let more = with(&json!({
        "return_logprob": true, "logprob_start_len": 1, "top_logprobs_num": 2, "return_text_in_logprobs": true,
    }));
    let whole = server().ask(PATH, &more);
    let chunks = chunks(&server().stream(PATH, &more));
    let all = |of: &dyn Fn(&Value) -> &Value| -> Vec<Value> {
        chunks.iter().filter_map(|chunk| of(chunk).as_array()).flatten().cloned().collect()
    };
    assert_eq!(json!(all(&|chunk| &chunk["output_ids"])), whole["output_ids"]);
    for field in
        ["input_token_logprobs", "input_top_logprobs", "output_token_logprobs", "output_top_logprobs"]
    {
        assert_eq!(json!(all(&|chunk| &chunk["meta_info"][field])), whole["meta_info"][field], "{field}");
    }
    let told = chunks.iter().filter(|chunk| chunk["meta_info"]["input_token_logprobs"].is_array());
    assert_eq!(told.count(), 1);
}

#[test]
fn several_prompts_are_answered_by_a_list() {
    let both = server().ask(PATH, &with(&json!({ "text": ["def add(a, b):", "import "] })));
    assert_eq!(both[0]["text"], server().ask(PATH, &body())["text"]);
    assert_eq!(both[1]["text"], server().ask(PATH, &with(&json!({ "text": "import " })))["text"]);
}

#[test]
fn what_cannot_be_honoured_is_refused_by_its_name() {
    for (fields, param) in [
        (json!({ "colour": 1 }), "colour"),
        (json!({ "text": null }), "text"),
        (json!({ "input_ids": [1] }), "text"),
        (json!({ "image_data": "http://127.0.0.1/" }), "image_data"),
        (json!({ "background": true }), "background"),
        (json!({ "sampling_params": { "max_new_tokens": -2 } }), "max_new_tokens"),
        (json!({ "sampling_params": { "max_new_tokens": "x" } }), "sampling_params.max_new_tokens"),
        (json!({ "sampling_params": { "colour": 1 } }), "sampling_params.colour"),
        (json!({ "sampling_params": { "max_new_tokens": 0 } }), "max_new_tokens"),
        (json!({ "logprob_start_len": -2 }), "logprob_start_len"),
    ] {
        server().refused(PATH, &with(&fields), param);
    }
    let defaults = json!({
        "model": null, "return_text_in_logprobs": false, "log_metrics": true, "background": false, "no_logs": false,
        "return_bytes": false, "return_entropy": false, "return_hidden_states": false,
    });
    server().ask(PATH, &with(&defaults));
}
