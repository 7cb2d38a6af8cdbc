//! Texts that have to obey something.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Running, start};

const PATH: &str = "/v1/completions";

/// One that takes long to compile: whether a name may match several of its patterns is asked of all of them.
fn large_schema() -> String {
    let word = |index: u64| format!("{:016x}", index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let pattern = |index| {
        let word = word(index);
        (format!("^{word}.*$"), json!({ "type": "string", "pattern": format!("^.*{word}.*$") }))
    };
    let patterns: Value = (1..=240).map(pattern).collect();
    json!({ "type": "object", "patternProperties": patterns }).to_string()
}

/// The longest silence of streams that are read one after another until `is_over`.
fn longest_silence(server: &Running, is_over: impl Fn() -> bool) -> Duration {
    let body = json!({
        "prompt": "def add(a, b):", "max_tokens": 900, "temperature": 0, "ignore_eos": true, "stream": true,
    });
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    while !is_over() {
        let mut stream = server.open(PATH, &body);
        while !is_over() && stream.chunk().unwrap().is_some() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    }
    longest
}

#[test]
fn streams_go_on_while_a_large_schema_is_compiled() {
    let server = start(|_, _| {});
    let body = json!({ "prompt": "x", "json_schema": large_schema(), "max_tokens": 1 });
    let (silence, took) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let began = Instant::now();
            server.ask(PATH, &body);
            began.elapsed()
        });
        (longest_silence(&server, || asked.is_finished()), asked.join().unwrap())
    });
    assert!(took > Duration::from_secs(1), "{took:?} is too short to be noticed");
    assert!(silence < took / 3, "silence for {silence:?} of {took:?}");
}
