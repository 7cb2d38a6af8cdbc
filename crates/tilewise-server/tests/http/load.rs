//! Many clients at once.
#![allow(clippy::print_stdout, reason = "what was measured is told")]

use std::io::Write;
use std::time::Instant;

use serde_json::{Value, json};
use tilewise_engine::{Engine, EngineConfig, Event, GenerateRequest, KvBudget};

use crate::common::{Incoming, Running, chunks, demo, request, start};

const STREAMS: usize = 256;
const TOKENS: usize = 48;

/// Each prompt is another.
fn prompt(index: usize) -> Vec<u32> {
    (0..40).map(|place| (300 + (index * 37 + place * 11) % 3000) as u32).collect()
}

fn engine_config() -> EngineConfig {
    EngineConfig { kv: KvBudget::Tokens(STREAMS * 128), max_running: STREAMS, ..EngineConfig::default() }
}

/// Tokens per second of the engine by itself, and its texts' tokens.
fn alone() -> f64 {
    let device = tilewise::open("cpu", Some(1)).unwrap();
    let mut engine =
        Engine::new(device, &demo(), &engine_config(), &mut tilewise_engine::model::unwatched).unwrap();
    let began = Instant::now();
    for index in 0..STREAMS {
        let mut request = GenerateRequest::new(prompt(index), TOKENS);
        request.ignore_eos = true;
        engine.submit(request).unwrap();
    }
    let mut tokens = 0;
    while engine.has_work() {
        let events = engine.step().unwrap();
        tokens += events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
    }
    assert_eq!(tokens, STREAMS * TOKENS);
    tokens as f64 / began.elapsed().as_secs_f64()
}

/// Asks for all streams, then reads them one after another: nobody is slow, since all of a stream fits its socket.
fn served(server: &Running) -> f64 {
    let began = Instant::now();
    let open = |index| {
        let body = json!({
            "prompt": prompt(index), "max_tokens": TOKENS, "ignore_eos": true, "temperature": 0, "stream": true,
            "stream_options": { "include_usage": true },
        });
        let mut stream = server.connect();
        let json = ("content-type", "application/json");
        stream.write_all(&request("POST", "/v1/completions", &[json], body.to_string().as_bytes())).unwrap();
        stream
    };
    let streams: Vec<_> = (0..STREAMS).map(open).collect();
    let mut tokens = 0;
    for stream in streams {
        let answer = Incoming::read(stream).unwrap();
        assert_eq!(answer.status, 200);
        let chunks: Vec<Value> = chunks(&answer.whole().events());
        tokens += chunks.last().unwrap()["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    }
    assert_eq!(tokens, STREAMS * TOKENS);
    tokens as f64 / began.elapsed().as_secs_f64()
}

#[test]
fn streams_of_256_clients_have_no_error_and_leave_nothing() {
    let server = start(|_, engine| *engine = engine_config());
    let (alone, served) = (alone(), served(&server));
    println!("{STREAMS} streams: {served:.0} token/s served, {alone:.0} by the engine alone");
    server.wait_idle();
}
