//! What nobody should send: it is refused or ends cleanly, all pages are free afterwards, and others are served.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Incoming, LONG, Running, folder, folder_with, request, server, start, start_model};

const PATH: &str = "/v1/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

/// The server serves and holds nothing.
#[track_caller]
fn unharmed(server: &Running) {
    server.ask(PATH, &json!({ "prompt": "def f(", "max_tokens": 2 }));
    server.wait_idle();
}

#[track_caller]
fn refused(fields: &Value, param: &str) {
    let mut body = json!({ "prompt": "def f(", "max_tokens": 4 });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    server().refused(PATH, &body, param);
}

#[test]
fn a_body_of_100_megabytes_is_refused_unread() {
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        100 << 20
    );
    let answer = server().raw(head.as_bytes());
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    // Without its length, it is refused once it has grown too long.
    let mut stream = server().connect();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = [format!("{:x}\r\n", 1 << 20).into_bytes(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    let mut sent = 0;
    while sent < 100 && stream.write_all(&chunk).is_ok() {
        sent += 1;
    }
    assert!(sent < 100, "all of it was taken");
    // The answer is lost where the system has thrown it away with the connection.
    if let Ok(answer) = Incoming::read(stream) {
        assert_eq!(answer.status, 413);
    }
    unharmed(server());
}

#[test]
fn ten_thousand_headers_or_a_long_one_are_too_many() {
    let many: String = (0..10_000).map(|index| format!("x-{index}: 1\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(200 << 10));
    for headers in [many, long] {
        let mut stream = server().connect();
        // The server answers before all is sent.
        let _ =
            stream.write_all(format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").as_bytes());
        if let Ok(answer) = Incoming::read(stream) {
            assert_eq!(answer.status, 431);
        }
    }
    let some: String = (0..200).map(|index| format!("x-{index}: 1\r\n")).collect();
    let answer = server().raw(format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{some}\r\n").as_bytes());
    assert_eq!(answer.status, 431);
    unharmed(server());
}

#[test]
fn a_body_that_drips_is_not_waited_for() {
    let server = start(|config, _| config.limits.body_time = Duration::from_millis(100));
    let bytes = request("POST", PATH, &[JSON], b"{\"prompt\":\"x\"}");
    let mut stream = server.connect();
    stream.write_all(&bytes[..bytes.len() - 3]).unwrap();
    let answer = Incoming::read(stream).unwrap().whole();
    assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
    unharmed(&server);
}

#[test]
fn a_head_that_drips_is_not_waited_for() {
    let server = start(|config, _| config.limits.head_time = Duration::from_millis(100));
    let mut stream = server.connect();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: ").unwrap();
    let mut rest = Vec::new();
    // An answer, or none; but an end.
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    unharmed(&server);
}

/// A stream of many megabytes.
fn flood() -> Value {
    json!({
        "messages": [{ "role": "user", "content": "x" }], "n": 8, "max_tokens": 900, "ignore_eos": true, "stream": true,
        "logprobs": true, "top_logprobs": 20,
    })
}

#[test]
fn a_client_that_does_not_read_loses_its_request_and_not_its_neighbours() {
    let server = start(|_, _| {});
    let other = json!({ "prompt": "import ", "max_tokens": 60, "temperature": 0 });
    let alone = server.ask(PATH, &other)["choices"][0]["text"].clone();
    let mut slow = server.open("/v1/chat/completions", &flood());
    slow.chunk().unwrap();
    let unread =
        || server.get("/metrics").text().contains("tilewise:unread_requests_total{model_name=\"demo\"} 1");
    let start = Instant::now();
    while !unread() {
        assert!(start.elapsed() < LONG, "it was read");
        assert_eq!(server.ask(PATH, &other)["choices"][0]["text"], alone);
    }
    server.wait_idle();
    let events = slow.whole().events();
    assert!(events[events.len() - 2].contains("slow_client"), "{}", events[events.len() - 2]);
    unharmed(&server);
}

#[test]
fn a_connection_that_takes_nothing_is_closed() {
    let server = start(|config, _| config.limits.write_time = Duration::from_millis(100));
    let mut slow = server.open("/v1/chat/completions", &flood());
    slow.chunk().unwrap();
    server.wait_for("the flood", |load| load["num_running_reqs"] == 8);
    server.wait_idle();
    std::thread::sleep(Duration::from_millis(300));
    let end = loop {
        match slow.chunk() {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(end.is_err(), "the stream came whole");
    unharmed(&server);
}

#[test]
fn json_that_is_deep_is_refused() {
    let deep = format!("{{\"prompt\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_schema = format!(
        "{{\"prompt\":\"x\",\"response_format\":{{\"type\":\"json_schema\",\"json_schema\":{{\"schema\":{}1{}}}}}}}",
        "{\"not\":".repeat(100_000),
        "}".repeat(100_000)
    );
    for body in [deep, deep_schema] {
        assert_eq!(server().send("POST", PATH, &[JSON], body.as_bytes()).status, 400);
    }
    // Within a text, depth is the grammar's affair.
    let schema = format!("{}true{}", "{\"not\":".repeat(5000), "}".repeat(5000));
    refused(&json!({ "json_schema": schema }), "json_schema");
    unharmed(server());
}

#[test]
fn bytes_that_are_no_text_are_refused_and_nul_is_a_character() {
    for body in [
        &b"{\"prompt\":\"\xff\xfe\"}"[..],
        b"\x00",
        b"{\"prompt\":\"\xed\xa0\x80\"}",
        b"",
        b"{",
        b"[]",
        b"null",
    ] {
        let answer = server().send("POST", PATH, &[JSON], body).whole();
        assert_eq!(answer.status, 400, "{body:?}: {}", answer.text());
    }
    assert_eq!(server().send("POST", PATH, &[JSON], b"{\"prompt\":\"a\\ud800\"}").status, 400);
    server().ask(PATH, &json!({ "prompt": "a\u{0}b", "max_tokens": 2, "stop": ["\u{0}"] }));
    unharmed(server());
}

#[test]
fn a_prompt_of_one_token_more_than_the_context_is_refused() {
    let prompt = |tokens: usize| json!({ "prompt": vec![300; tokens], "max_tokens": 1 });
    let error = server().refused(PATH, &prompt(1025), "prompt");
    assert_eq!(error["code"], "context_length_exceeded");
    server().refused(PATH, &prompt(1024), "prompt");
    server().ask(PATH, &prompt(1023));
    let words = json!({ "messages": [{ "role": "user", "content": "a ".repeat(2000) }] });
    let error = server().refused("/v1/chat/completions", &words, "messages");
    assert_eq!(error["code"], "context_length_exceeded");
    unharmed(server());
}

#[test]
fn numbers_out_of_range_are_refused() {
    for tokens in
        ["0", "-2", "9223372036854775808", "1e30", "1.5", "18446744073709551616", "1e999", "\"4\"", "true"]
    {
        let body = format!("{{\"prompt\":\"x\",\"max_tokens\":{tokens}}}");
        let answer = server().send("POST", PATH, &[JSON], body.as_bytes()).whole();
        assert_eq!(answer.status, 400, "{tokens}: {}", answer.text());
    }
    for n in [0_i64, -1, 129, 1_000_000, i64::MAX] {
        refused(&json!({ "n": n }), "n");
    }
    refused(&json!({ "temperature": 1e39 }), "temperature");
    refused(&json!({ "top_k": -2 }), "top_k");
    refused(&json!({ "top_k": i64::MIN }), "top_k");
    let multiple =
        json!({ "prompt": "x", "json_schema": "{\"type\":\"integer\",\"multipleOf\":60}", "max_tokens": 4 });
    server().ask(PATH, &multiple);
    server().ask(PATH, &json!({ "prompt": "x", "seed": i64::MIN, "max_tokens": 1, "top_k": i64::MAX }));
    unharmed(server());
}

#[test]
fn lists_that_are_long_are_refused() {
    let strings: Vec<String> = (0..10_000).map(|index| format!("stop {index}")).collect();
    refused(&json!({ "stop": strings }), "stop");
    refused(&json!({ "stop": "x".repeat(5000) }), "stop");
    refused(&json!({ "stop": [""] }), "stop");
    refused(&json!({ "stop_token_ids": vec![1; 10_000] }), "stop_token_ids");
    let biases: serde_json::Map<String, Value> = (0..4000).map(|id| (id.to_string(), json!(1))).collect();
    refused(&json!({ "logit_bias": biases }), "logit_bias");
    refused(&json!({ "prompt": vec!["x"; 1000] }), "prompt");
    let turns = vec![json!({ "role": "user", "content": "" }); 10_000];
    server().refused("/v1/chat/completions", &json!({ "messages": turns }), "messages");
    unharmed(server());
}

#[test]
fn grammars_that_are_none_or_explode_are_refused_in_time() {
    let start = Instant::now();
    refused(&json!({ "regex": "(" }), "regex");
    refused(&json!({ "regex": "x".repeat(100_000) }), "regex");
    refused(&json!({ "json_schema": "{" }), "json_schema");
    refused(&json!({ "json_schema": "3" }), "json_schema");
    refused(&json!({ "json_schema": "{\"type\":\"nonsense\"}" }), "json_schema");
    refused(&json!({ "json_schema": "{\"$ref\":\"http://127.0.0.1:1/schema\"}" }), "json_schema");
    refused(&json!({ "json_schema": "{\"$ref\":\"file:///etc/passwd\"}" }), "json_schema");
    for multiple in ["1000003", "0.1000003", "1e-30", "0", "-5"] {
        let schema = format!("{{\"type\":\"number\",\"multipleOf\":{multiple}}}");
        refused(&json!({ "json_schema": schema }), "json_schema");
    }
    refused(
        &json!({ "json_schema": "{\"allOf\":[{\"multipleOf\":997},{\"multipleOf\":991}]}" }),
        "json_schema",
    );
    let wide: Value = (0..1500).map(|index| (format!("p{index}"), json!({ "type": "string" }))).collect();
    // The last is required: what is drawn first cannot be the whole object.
    let wide = json!({ "type": "object", "properties": wide, "required": ["p1499"] }).to_string();
    let error = server().refused(PATH, &json!({ "prompt": "x", "json_schema": wide }), "json_schema");
    assert_eq!(error["code"], "invalid_grammar");
    let endless = "{\"$defs\":{\"a\":{\"$ref\":\"#/$defs/a\"}},\"$ref\":\"#/$defs/a\"}";
    refused(&json!({ "json_schema": endless }), "json_schema");
    let error = server().refused(
        PATH,
        &json!({ "prompt": "x", "json_schema": format!("{{\"minimum\":-1{}}}", "0".repeat(300)) }),
        "json_schema",
    );
    assert!(!error["message"].as_str().unwrap().contains("backtrace"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    unharmed(server());
}

#[test]
fn a_regex_that_backtracks_elsewhere_costs_nothing_here() {
    let start = Instant::now();
    for regex in [
        "(a+)+b",
        "(a|a)*c",
        "(.*)*(.*)*(.*)*x",
        "(?:(?:a?){30}a{30})",
        "a{100000000}",
        "((((a{100}){100}){100}){100}){100}",
    ] {
        let body = json!({ "prompt": "a", "regex": regex, "max_tokens": 20 });
        assert!([200, 400].contains(&server().post(PATH, &body).status), "{regex}");
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    unharmed(server());
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    for bomb in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ] {
        let model = folder(bomb);
        let server = start_model(&model.source, |_, _| {});
        let start = Instant::now();
        let body = json!({ "messages": [{ "role": "user", "content": "x" }] });
        server.refused("/v1/chat/completions", &body, "messages");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        unharmed(&server);
    }
}

#[test]
fn a_long_text_is_refused_in_time() {
    let texts = [" ".repeat(3 << 20), "a".repeat(3 << 20), "a1 \n".repeat(700 << 10)];
    let start = Instant::now();
    for text in &texts {
        for (path, body, param) in [
            (PATH, json!({ "prompt": text }), "prompt"),
            (
                "/v1/chat/completions",
                json!({ "messages": [{ "role": "user", "content": text }] }),
                "messages",
            ),
            ("/v1/responses", json!({ "input": text }), "input"),
        ] {
            assert_eq!(server().refused(path, &body, param)["code"], "context_length_exceeded");
        }
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    // Somewhat too long ones are cut into tokens before that is known.
    server().refused(PATH, &json!({ "prompt": "a1 \n".repeat(2000) }), "prompt");
    unharmed(server());
}

#[test]
fn errors_name_no_path_of_this_machine() {
    for body in [
        json!({ "prompt": "x", "regex": "(" }),
        json!({ "prompt": [99999] }),
        json!({ "model": "x", "prompt": "x" }),
    ] {
        let text = server().post(PATH, &body).text();
        assert!(
            !text.contains("/work") && !text.contains("/src/") && !text.contains("models/demo"),
            "{text}"
        );
    }
}

#[test]
fn names_and_salts_are_short_and_visible() {
    for field in ["rid", "request_id", "cache_salt", "extra_key"] {
        for name in ["", "a b", "a\nb", "\u{e9}", &"x".repeat(129), &"x".repeat(1 << 20)] {
            refused(&json!({ field: name }), field);
        }
        let most = "~".repeat(128);
        server().ask(PATH, &json!({ "prompt": "def f(", "max_tokens": 1, field: most }));
    }
    unharmed(server());
}

#[test]
fn a_regular_expression_that_explodes_holds_up_nobody() {
    refused(&json!({ "regex": "x".repeat(4097) }), "regex");
    let classes = |count: usize| -> String {
        (0..count).map(|index| format!("[^{}]*", char::from(b'a' + (index % 26) as u8))).collect()
    };
    let hostile =
        [classes(800), "(a?){1000}a{1000}".to_owned(), format!("({})+", "[0-9a-f]{1,200}".repeat(20))];
    std::thread::scope(|scope| {
        for regex in &hostile {
            scope.spawn(move || {
                let body = json!({ "prompt": "x", "regex": regex, "max_tokens": 2 });
                let answer = server().post(PATH, &body);
                assert!([200, 400].contains(&answer.status), "{}", answer.text());
            });
        }
        std::thread::sleep(Duration::from_millis(50));
        let start = Instant::now();
        server().ask(PATH, &json!({ "prompt": "x", "regex": "[0-9]", "max_tokens": 2 }));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    });
    unharmed(server());
}

#[test]
fn answers_and_variables_are_bounded_before_anything_is_made() {
    let chat = |fields: &Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    let most = json!({ "n": 128, "max_tokens": 8000, "logprobs": true, "top_logprobs": 20 });
    let config = include_str!("../../../../models/demo/config.json");
    let mut config: Value = serde_json::from_str(config).unwrap();
    config["max_position_embeddings"] = 40960.into();
    let model = folder_with(&[("config.json", &config.to_string())]);
    let server = start_model(&model.source, |_, _| {});
    server.refused("/v1/chat/completions", &chat(&most), "top_logprobs");
    let long = "x".repeat(17 << 10);
    let long = json!({ "chat_template_kwargs": { "x": long } });
    server.refused("/v1/chat/completions", &chat(&long), "chat_template_kwargs");
    // A text that cannot fit is refused without being cut into tokens whole.
    let start = Instant::now();
    let text = "def f(a, b):\n    return a + b\n".repeat(120_000);
    let answer = server.post(PATH, &json!({ "prompt": text, "max_tokens": 1 }));
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    unharmed(&server);
}

#[test]
fn texts_to_count_wait_in_bounds() {
    let text = "word ".repeat(100_000);
    let codes: Vec<u16> = std::thread::scope(|scope| {
        let ask = || server().post("/tokenize", &json!({ "prompt": text })).status;
        let asks: Vec<_> = (0..96).map(|_| scope.spawn(ask)).collect();
        asks.into_iter().map(|ask| ask.join().unwrap()).collect()
    });
    assert!(codes.iter().all(|code| [200, 429].contains(code)), "{codes:?}");
    assert!(codes.contains(&200) && codes.contains(&429), "{codes:?}");
    unharmed(server());
}

#[test]
fn requests_that_servers_read_differently_are_refused() {
    let status = |head: &str, headers: &[u8]| {
        let request = [head.as_bytes(), b"\r\nconnection: close\r\n", headers, b"\r\n"].concat();
        server().raw(&request).status
    };
    let (get, json) = ("GET /health HTTP/1.1", "content-type: application/json\r\n");
    assert_eq!(status(get, b""), 400, "there is no host");
    assert_eq!(status("GET /health HTTP/1.0", b""), 200);
    assert_eq!(status(get, b"host: \xff\xfe\r\n"), 403, "the host is no name of this machine");
    assert_eq!(status(get, b"host: localhost\r\norigin: http://\xff\r\n"), 403);
    for site in ["cross-site", "same-site"] {
        let headers = format!("host: localhost\r\nsec-fetch-site: {site}\r\n");
        assert_eq!(status(get, headers.as_bytes()), 403, "{site}");
        assert_eq!(status(get, format!("{headers}sec-fetch-mode: navigate\r\n").as_bytes()), 200, "{site}");
    }
    assert_eq!(status(get, b"host: localhost\r\nsec-fetch-site: same-origin\r\n"), 200);
    for coding in ["gzip, chunked", "gzip", "identity"] {
        let headers = format!("host: localhost\r\n{json}transfer-encoding: {coding}\r\n\r\n0\r\n");
        let got = status(&format!("POST {PATH} HTTP/1.1"), headers.as_bytes());
        assert!([400, 501].contains(&got), "{coding}: {got}");
    }
    let long = format!("{} /health HTTP/1.1", "X".repeat(10_000));
    assert!([400, 405].contains(&status(&long, b"host: localhost\r\n")));
    unharmed(server());
}
