//! Clients that go away: what they asked for is given up, and nobody else notices.

use std::io::Write;

use serde_json::{Value, json};

use crate::common::{Running, request, server, start};

/// Tokens that the engine has generated.
fn generated(server: &Running) -> u64 {
    let metrics = server.get("/metrics").text();
    let line = metrics.lines().find(|line| line.starts_with("tilewise:engine_tokens_total{")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn long() -> Value {
    json!({ "prompt": "def add(a, b):", "max_tokens": 900, "temperature": 0, "ignore_eos": true })
}

/// About this many tokens.
fn prompt(tokens: usize) -> Vec<usize> {
    (0..tokens).map(|index| 300 + index * 7 % 2000).collect()
}

#[test]
fn a_client_that_goes_in_decode_frees_its_pages_and_harms_nobody() {
    let server = start(|_, _| {});
    let other = json!({ "prompt": "import ", "max_tokens": 60, "temperature": 0 });
    let alone = server.ask("/v1/completions", &other)["choices"][0]["text"].clone();
    let before = generated(&server);
    for stream in [true, false] {
        let mut body = long();
        body["stream"] = json!(stream);
        let mut connection = server.connect();
        let bytes = request(
            "POST",
            "/v1/completions",
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        );
        connection.write_all(&bytes).unwrap();
        server.wait_for("a token", |load| load["num_running_reqs"] == 1);
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| server.ask("/v1/completions", &other)["choices"][0]["text"].clone());
            drop(connection);
            assert_eq!(beside.join().unwrap(), alone);
        });
        server.wait_idle();
    }
    // Both would have made 900.
    let more = generated(&server) - before;
    assert!(more < 1000, "{more}");
}

#[test]
fn a_client_that_goes_in_prefill_frees_its_pages_before_a_token() {
    let server = start(|_, engine| engine.max_batch_tokens = 8);
    for stream in [true, false] {
        let body = json!({ "prompt": prompt(1000), "max_tokens": 8, "stream": stream, "ignore_eos": true });
        let mut connection = server.connect();
        let bytes = request(
            "POST",
            "/v1/completions",
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        );
        connection.write_all(&bytes).unwrap();
        server.wait_for("the prefill", |load| load["num_running_reqs"] == 1);
        drop(connection);
        server.wait_idle();
    }
    assert_eq!(generated(&server), 0);
}

#[test]
fn a_client_that_goes_before_its_head_or_body_is_whole_leaves_nothing() {
    for part in ["POST /v1/comp", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-le"] {
        server().connect().write_all(part.as_bytes()).unwrap();
    }
    let bytes = request(
        "POST",
        "/v1/completions",
        &[("content-type", "application/json")],
        long().to_string().as_bytes(),
    );
    server().connect().write_all(&bytes[..bytes.len() - 5]).unwrap();
    assert_eq!(server().get("/health").status, 200);
}

#[test]
fn a_request_is_aborted_by_its_name_and_says_so() {
    let server = start(|_, _| {});
    for (name, field) in [("mine", "rid"), ("", "")] {
        let mut body = long();
        if !field.is_empty() {
            body[field] = json!(name);
        }
        std::thread::scope(|scope| {
            let running = scope.spawn(|| server.ask("/v1/completions", &body));
            server.wait_for("it to run", |load| load["num_running_reqs"] == 1);
            assert_eq!(server.ask("/abort_request", &json!({ "rid": "another" }))["aborted"], 0);
            let by = if field.is_empty() { json!({ "abort_all": true }) } else { json!({ "rid": name }) };
            assert_eq!(server.ask("/abort_request", &by)["aborted"], 1);
            let answer = running.join().unwrap();
            assert_eq!(answer["choices"][0]["finish_reason"], "abort");
            assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() < 900);
        });
        server.wait_idle();
    }
    server.refused("/abort_request", &json!({}), "rid");
}
