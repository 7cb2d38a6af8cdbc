//! Traces, as a collector gets them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::common::{LONG, Running, start};

/// A collector that passes on what it is sent.
fn collector() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, (tell, told)) = (listener.local_addr().unwrap(), channel());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut line, mut length) = (String::new(), 0);
            reader.read_line(&mut line).unwrap();
            assert_eq!(line, "POST /v1/traces HTTP/1.1\r\n");
            while line != "\r\n" {
                line.clear();
                reader.read_line(&mut line).unwrap();
                length =
                    line.strip_prefix("content-length: ").map_or(length, |text| text.trim().parse().unwrap());
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
            if tell.send(serde_json::from_slice(&body).unwrap()).is_err() {
                return;
            }
        }
    });
    (format!("http://{address}"), told)
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let attributes = span["attributes"].as_array().unwrap();
    let found = attributes.iter().find(|attribute| attribute["key"] == key);
    &found.unwrap_or_else(|| panic!("{key} is not in {span}"))["value"]
}

/// The spans that a server has sent when it has ended.
fn spans(mut server: Running, told: &Receiver<Value>) -> Vec<Value> {
    server.stop();
    server.ended().unwrap();
    let mut spans = Vec::new();
    while let Ok(traces) = told.recv_timeout(std::time::Duration::from_millis(100)) {
        let resource = &traces["resourceSpans"][0];
        assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "demo");
        spans.extend(resource["scopeSpans"][0]["spans"].as_array().unwrap().clone());
    }
    spans
}

#[track_caller]
fn named<'a>(spans: &'a [Value], name: &str) -> &'a Value {
    spans.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("{spans:?}"))
}

fn time(span: &Value, name: &str) -> u64 {
    span[name].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_requests_span_and_its_generations_are_in_the_trace_that_it_came_with() {
    let (address, told) = collector();
    let server = start(|config, _| config.otlp_endpoint = Some(address));
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let body = json!({ "prompt": "def f(", "max_tokens": 3, "ignore_eos": true }).to_string();
    let post = |traceparent: &str| {
        let headers = [("content-type", "application/json"), ("traceparent", traceparent)];
        assert_eq!(server.send("POST", "/v1/completions", &headers, body.as_bytes()).whole().status, 200);
    };
    post(&format!("00-{trace}-{parent}-01"));
    post(&format!("00-{}-{parent}-00", trace.replace('4', "5")));
    let spans = spans(server, &told);
    assert!(spans.iter().all(|span| span["traceId"] == trace), "{spans:?}");
    let (request, generation) = (named(&spans, "POST /v1/completions"), named(&spans, "generate"));
    assert_eq!((&request["parentSpanId"], &request["kind"]), (&json!(parent), &json!(2)));
    assert_eq!(attribute(request, "http.response.status_code"), &json!({ "intValue": "200" }));
    assert_eq!(generation["parentSpanId"], request["spanId"]);
    assert_eq!(attribute(request, "gen_ai.usage.output_tokens"), &json!({ "intValue": "3" }));
    assert_eq!(attribute(generation, "gen_ai.usage.output_tokens"), &json!({ "intValue": "3" }));
    assert!(
        attribute(generation, "gen_ai.server.time_to_first_token")["doubleValue"].as_f64().unwrap() > 0.0
    );
    assert!(time(generation, "startTimeUnixNano") < time(generation, "endTimeUnixNano"));
    assert!(time(request, "startTimeUnixNano") <= time(generation, "startTimeUnixNano"));
}

#[test]
fn the_span_of_a_stream_ends_with_its_last_byte_or_when_its_client_goes() {
    for goes in [false, true] {
        let (address, told) = collector();
        let server = start(|config, _| config.otlp_endpoint = Some(address));
        let body = json!({ "prompt": "def f(", "max_tokens": 900, "ignore_eos": true, "stream": true });
        let mut stream = server.open("/v1/completions", &body);
        stream.chunk().unwrap();
        if goes {
            drop(stream);
            server.wait_idle();
        } else {
            stream.whole();
        }
        let spans = spans(server, &told);
        let (request, generation) = (named(&spans, "POST /v1/completions"), named(&spans, "generate"));
        let end = "endTimeUnixNano";
        assert!(time(request, end) >= time(generation, end), "{spans:?}");
        let of =
            |span, key: &str| attribute(span, key)["intValue"].as_str().unwrap().parse::<usize>().unwrap();
        for key in ["gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "tilewise.cached_tokens"] {
            assert_eq!(of(request, key), of(generation, key), "{key}");
        }
        let outcome = if goes { "cancelled" } else { "done" };
        assert_eq!(attribute(generation, "tilewise.outcome"), &json!({ "stringValue": outcome }));
        assert_eq!(of(request, "gen_ai.usage.output_tokens") == 900, !goes);
    }
}

#[test]
fn a_collector_that_is_not_there_harms_nobody() {
    let mut server = start(|config, _| config.otlp_endpoint = Some("http://127.0.0.1:1".to_owned()));
    server.ask("/v1/completions", &json!({ "prompt": "def f(", "max_tokens": 3 }));
    server.stop();
    let began = std::time::Instant::now();
    server.ended().unwrap();
    assert!(began.elapsed() < LONG / 4);
}
