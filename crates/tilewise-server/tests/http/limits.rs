//! Who is let in, and how much at once.

use std::time::Duration;

use serde_json::json;

use crate::common::{server, start};

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn a_request_beyond_the_limit_is_told_to_come_back_before_the_first_byte() {
    let server = start(|config, _| config.limits.completions = 3);
    let long = json!({ "prompt": "def f(", "max_tokens": 900, "ignore_eos": true, "stream": true });
    let (first, second) = (server.open("/v1/completions", &long), server.open("/v1/completions", &long));
    assert_eq!((first.status, second.status), (200, 200));
    let two = server.post("/v1/completions", &json!({ "prompt": "x", "n": 2, "stream": true }));
    assert_eq!((two.status, two.header("retry-after")), (429, Some("1")));
    assert_eq!(two.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(server.post("/v1/completions", &json!({ "prompt": "x" })).status, 200);
    server.refused("/v1/completions", &json!({ "prompt": "x", "n": 4 }), "n");
    drop((first, second));
    server.wait_idle();
    server.ask("/v1/completions", &json!({ "prompt": "x", "n": 3 }));
}

#[test]
fn a_stream_in_a_long_prefill_is_kept_alive() {
    let server = start(|config, engine| {
        config.limits.keep_alive = Duration::from_millis(20);
        engine.max_batch_tokens = 4;
    });
    let prompt: Vec<usize> = (0..600).map(|index| 300 + index % 1000).collect();
    for path in ["/v1/completions", "/generate", "/v1/chat/completions"] {
        let words = "a = b + c\n".repeat(100);
        let mut body = match path {
            "/generate" => json!({ "input_ids": prompt, "sampling_params": { "max_new_tokens": 2 } }),
            "/v1/completions" => json!({ "prompt": prompt, "max_tokens": 2 }),
            _ => json!({ "messages": [{ "role": "user", "content": words }], "max_tokens": 2 }),
        };
        body["stream"] = json!(true);
        let text = server.open(path, &body).whole().text();
        assert!(text.contains(": keep-alive\n\n"), "{path}: {text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{path}: {text}");
        server.send("POST", "/flush_cache", &[], b"");
    }
}

#[test]
fn without_the_key_nothing_is_served_but_what_shows_nothing() {
    let server = start(|config, _| config.api_key = Some("secret-key".to_owned()));
    for path in ["/", "/page.js", "/markdown.js", "/page.css", "/health", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for path in ["/v1/models", "/metrics", "/v1/loads", "/server_info", "/model_info", "/nowhere"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    let wrong = [
        ("authorization", "Bearer secret-kez"),
        ("authorization", "Bearer "),
        ("authorization", "secret-key"),
    ];
    for header in wrong {
        let answer = server.send("POST", "/generate", &[JSON, header], br#"{"text":"x"}"#).whole();
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{header:?}");
        assert_eq!(answer.json()["error"]["type"], "authentication_error");
    }
    let header = ("authorization", "Bearer secret-key");
    assert_eq!(server.send("POST", "/generate", &[JSON, header], br#"{"text":"x"}"#).status, 200);
    // A key is a guard enough for other names.
    let request = b"GET /health HTTP/1.1\r\nhost: example.org\r\nconnection: close\r\n\r\n";
    assert_eq!(server.raw(request).status, 200);
}

#[test]
fn pages_of_other_sites_are_not_served() {
    let post = |headers: &[(&str, &str)]| server().send("POST", "/flush_cache", headers, b"").status;
    assert_eq!(post(&[("origin", "http://evil.example")]), 403);
    assert_eq!(post(&[("origin", "null")]), 403);
    assert_eq!(post(&[("origin", "http://localhost")]), 200);
    let rebound = b"POST /flush_cache HTTP/1.1\r\nhost: evil.example:80\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(server().raw(rebound).status, 403);
    let form = server().send("POST", "/generate", &[("content-type", "text/plain")], br#"{"text":"x"}"#);
    assert_eq!(form.status, 415);
}

#[test]
fn a_request_keeps_the_name_that_it_comes_with() {
    let name = |given: &[(&str, &str)]| {
        server().send("GET", "/health", given, b"").header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(name(&[("x-request-id", "mine-7")]), "mine-7");
    let (first, second) = (name(&[]), name(&[("x-request-id", &"x".repeat(200))]));
    assert!(first.starts_with("req-") && second.starts_with("req-") && first != second);
}
