//! What the server tells of itself.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use tilewise_engine::KvBudget;
use tilewise_engine::cache::tiers::TierConfig;

use crate::common::{server, start};

#[test]
fn a_router_finds_what_it_asks_a_worker_for() {
    let models = server().get("/v1/models").json();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["owned_by"]),
        (&json!("demo"), &json!("sglang"))
    );
    for path in ["/model_info", "/get_model_info"] {
        let info = server().get(path).json();
        assert_eq!(info["model_type"], "qwen3");
        assert_eq!(info["architectures"], json!(["Qwen3ForCausalLM"]));
        assert_eq!((&info["is_generation"], &info["model_path"]), (&json!(true), &json!("demo")));
    }
    for path in ["/server_info", "/get_server_info"] {
        let info = server().get(path).json();
        assert_eq!((&info["context_length"], &info["max_total_num_tokens"]), (&json!(1024), &json!(8192)));
        assert_eq!(
            (&info["tp_size"], &info["dp_size"], &info["max_running_requests"]),
            (&json!(1), &json!(1), &json!(64))
        );
    }
    assert_eq!(server().get("/health_generate").status, 200);
    let loads: openai_protocol::worker::WorkerLoadResponse =
        serde_json::from_slice(&server().get("/v1/loads").body).unwrap();
    assert_eq!(loads.loads[0].max_total_num_tokens, 8192);
    assert_eq!(server().get("/get_load").json()[0]["dp_rank"], 0);
}

#[test]
fn a_model_is_found_by_its_name() {
    let list = server().get("/v1/models").json();
    assert_eq!(server().get("/v1/models/").json(), list);
    assert_eq!(server().get("/v1/models/demo").json(), list["data"][0]);
    assert_eq!(server().get("/v1/models/org/other").status, 404);
}

#[test]
fn texts_become_tokens_and_come_back() {
    let text = "def add(a, b): return a + b  # ü";
    let tokens = server().ask("/tokenize", &json!({ "prompt": text }));
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    assert_eq!(server().ask("/detokenize", &json!({ "tokens": tokens["tokens"] }))["text"], text);
    let both = server().ask("/tokenize", &json!({ "prompt": [text, "x"] }));
    assert_eq!((&both["tokens"][0], &both["count"][1]), (&tokens["tokens"], &json!(1)));
    assert_eq!(server().ask("/detokenize", &json!({ "tokens": both["tokens"] }))["text"], json!([text, "x"]));
    server().refused("/detokenize", &json!({ "tokens": [4096] }), "tokens");
}

#[test]
fn embeddings_are_refused_by_the_models_name() {
    let error = server().refused("/v1/embeddings", &json!({ "model": "demo", "input": "x" }), "model");
    assert!(error["message"].as_str().unwrap().contains("demo"), "{error}");
    assert_eq!(server().post("/v1/embeddings", &json!({ "model": "other", "input": "x" })).status, 404);
}

#[test]
fn metrics_count_what_was_served_in_the_names_of_both_engines() {
    let server = start(|_, _| {});
    server.ask("/v1/completions", &json!({ "prompt": "def f(", "max_tokens": 5, "ignore_eos": true }));
    server.post("/v1/completions", &json!({ "prompt": "def f(", "max_tokens": 0 }));
    let text = server.get("/metrics").text();
    for line in [
        "sglang:num_running_reqs{model_name=\"demo\"} 0",
        "vllm:num_requests_waiting{model_name=\"demo\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"demo\"} 0",
        "sglang:generation_tokens_total{model_name=\"demo\"} 5",
        "vllm:time_to_first_token_seconds_count{model_name=\"demo\"} 1",
        "sglang:inter_token_latency_seconds_count{model_name=\"demo\"} 4",
        "tilewise:http_responses_total{route=\"/v1/completions\",status=\"200\"} 1",
        "tilewise:http_responses_total{route=\"/v1/completions\",status=\"400\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[test]
fn metrics_say_which_tier_had_the_tokens_of_a_prompt() {
    let server = start(|_, engine| {
        engine.tiers = vec![TierConfig::Host { bytes: 64 << 20 }];
        engine.kv = KvBudget::Tokens(2048);
    });
    let body = json!({ "prompt": (500..1100).collect::<Vec<u32>>(), "max_tokens": 1 });
    let cached =
        || server.ask("/v1/completions", &body)["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached(), 0);
    let on_the_device = cached().as_u64().unwrap();
    assert_eq!(server.send("POST", "/flush_cache", &[], b"").status, 200);
    // Two chunks of 256 tokens.
    assert_eq!(cached(), 512);
    let text = server.get("/metrics").text();
    let tokens = |tier: &str| {
        let name = format!("tilewise:cached_tokens_total{{model_name=\"demo\",tier=\"{tier}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("{name}\n{text}"))
    };
    assert_eq!(tokens("device"), on_the_device.to_string());
    assert_eq!(["host", "disk", "resp", "object"].map(tokens), ["512", "0", "0", "0"]);
}

#[test]
fn a_flushed_cache_has_no_prefix() {
    let server = start(|_, _| {});
    let body = json!({ "prompt": (500..600).collect::<Vec<u32>>(), "max_tokens": 1 });
    let cached =
        || server.ask("/v1/completions", &body)["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached(), 0);
    assert!(cached().as_u64().unwrap() >= 64);
    assert_eq!(server.send("POST", "/flush_cache", &[], b"").status, 200);
    assert_eq!(cached(), 0);
}

#[test]
fn the_description_names_every_endpoint_and_its_errors() {
    let description = server().get("/openapi.json").json();
    let paths = description["paths"].as_object().unwrap();
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/generate",
        "/tokenize",
    ] {
        let post = &paths[path]["post"];
        for status in ["400", "401", "404", "408", "413", "415", "429", "503"] {
            assert!(post["responses"][status].is_object(), "{path} {status}");
        }
        assert!(post["requestBody"]["content"]["application/json"]["schema"].is_object(), "{path}");
    }
    let schemas = description["components"]["schemas"].as_object().unwrap();
    assert_eq!(schemas["ChatRequest"]["additionalProperties"], json!(false));
    let mut named = BTreeSet::new();
    references(&description, &mut named);
    for name in named {
        assert!(schemas.contains_key(&name), "{name} is not described");
    }
}

#[test]
fn the_description_says_where_the_bounds_of_this_model_are() {
    let description = server().get("/openapi.json").json();
    for (place, bound) in [
        ("CompletionRequest/required", json!(["prompt"])),
        ("CompletionRequest/properties/max_tokens/maximum", json!(1023)),
        ("CompletionRequest/properties/stop/anyOf/1/minLength", json!(1)),
        ("CompletionRequest/properties/stop/anyOf/2/maxItems", json!(64)),
        ("CompletionRequest/properties/logit_bias/additionalProperties/maximum", json!(100)),
        ("SamplingParams/properties/max_new_tokens/maximum", json!(1023)),
        ("Prompt/anyOf/1/items/maximum", json!(4095)),
        ("Prompt/anyOf/2/maxItems", json!(128)),
        ("ChatRequest/properties/model/enum/0", json!("demo")),
        ("AbortRequest/oneOf/0/properties/rid/minLength", json!(1)),
    ] {
        let found = description.pointer(&format!("/components/schemas/{place}"));
        assert_eq!(found, Some(&bound), "{place}");
    }
    let path = "/v1/completions";
    server().ask(path, &json!({ "prompt": [4095], "max_tokens": 1, "stop": vec!["x"; 64] }));
    server().refused(path, &json!({ "prompt": [4096] }), "prompt");
    server().refused(path, &json!({ "prompt": "x", "stop": vec!["x"; 65] }), "stop");
    server().refused(path, &json!({ "prompt": "x", "repetition_penalty": 1e-7 }), "repetition_penalty");
    server().refused("/abort_request", &json!({ "rid": "" }), "rid");
    server().refused("/abort_request", &json!({ "rid": "x", "abort_all": true }), "rid");
}

/// Names of schemas that are referred to.
fn references(value: &Value, named: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            let reference = fields.get("$ref").and_then(Value::as_str);
            named.extend(
                reference.and_then(|text| text.strip_prefix("#/components/schemas/")).map(str::to_owned),
            );
            fields.values().for_each(|value| references(value, named));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, named)),
        _ => {}
    }
}

#[test]
fn the_page_comes_whole_and_from_here_alone() {
    let page = server().get("/");
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    // Its parts, and what these import, are all served.
    let mut parts = vec!["page.css".to_owned(), "text.css".to_owned(), "page.js".to_owned()];
    let mut seen = 0;
    while let Some(part) = parts.get(seen).cloned() {
        let answer = server().get(&format!("/{part}"));
        assert_eq!(answer.status, 200, "{part}");
        assert!(answer.header("content-security-policy").unwrap().contains("default-src 'none'"));
        let text = answer.text();
        let imported = text.split("from \"./").skip(1).filter_map(|rest| rest.split('"').next());
        let new: Vec<String> =
            imported.filter(|name| !parts.iter().any(|part| part == name)).map(str::to_owned).collect();
        parts.extend(new);
        seen += 1;
    }
    assert!(parts.len() > 10, "{parts:?}");
    assert!(parts[..3].iter().all(|part| page.text().contains(part.as_str())));
    assert!(!page.text().replace("http://www.w3.org", "").contains("http"), "{}", page.text());
    assert_eq!(server().get("/nowhere").status, 404);
    assert_eq!(server().send("GET", "/generate", &[], b"").status, 405);
}
