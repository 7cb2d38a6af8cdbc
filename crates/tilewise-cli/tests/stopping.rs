//! `tilewise serve` when it is told to end, and when nobody takes its log.
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{demo, path};
use serde_json::json;

/// More than anything here takes, but for a machine that does much else.
const LONG: Duration = Duration::from_secs(60);

/// A server that runs, and where.
struct Served {
    child: Child,
    address: String,
}

fn serve(args: &[&str], log: impl Into<Stdio>) -> Served {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilewise"));
    command.args(["serve", "--port", &address.port().to_string(), "--threads", "1", "--kv-tokens", "16384"]);
    command.args(args).stdout(Stdio::null()).stderr(log).env_remove("TILEWISE_API_KEY");
    Served { child: command.spawn().unwrap(), address: address.to_string() }
}

impl Served {
    fn connect(&self) -> TcpStream {
        let start = Instant::now();
        loop {
            match TcpStream::connect(&self.address) {
                Ok(stream) => return stream,
                Err(error) => assert!(start.elapsed() < LONG, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn send(&self, request: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let head = "content-type: application/json\r\nhost: localhost\r\nconnection: close";
        write!(stream, "{request} HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            .unwrap();
        stream
    }

    fn ask(&self, request: &str, body: &str) -> String {
        let mut answer = String::new();
        self.send(request, body).read_to_string(&mut answer).unwrap();
        answer
    }

    fn ready(self) -> Self {
        let start = Instant::now();
        while !self.ask("GET /health", "").starts_with("HTTP/1.1 200") {
            assert!(start.elapsed() < LONG);
            std::thread::sleep(Duration::from_millis(20));
        }
        self
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Waits for its end.
    fn end(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if start.elapsed() > limit {
                let _ = self.child.kill();
                panic!("it lives after {limit:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Completions that take longer than any test.
fn endless() -> String {
    json!({ "prompt": "def f(", "n": 32, "max_tokens": 900, "ignore_eos": true, "stream": true }).to_string()
}

#[test]
fn a_terminal_that_closes_breaks_no_stream() {
    let mut served = serve(&[], Stdio::null()).ready();
    let body =
        json!({ "prompt": "def f(", "max_tokens": 300, "ignore_eos": true, "stream": true }).to_string();
    let mut stream = BufReader::new(served.send("POST /v1/completions", &body));
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    // The shell says so, and so does the system.
    served.signal("HUP");
    served.signal("HUP");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("data: [DONE]"), "{answer}");
    assert_eq!(served.end(LONG).code(), Some(0));
}

#[test]
fn who_had_the_hangup_ignored_keeps_it_so() {
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' HUP; exec \"$0\" serve --port 0 --threads 1"])
        .arg(env!("CARGO_BIN_EXE_tilewise"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split("http://").nth(1).unwrap().split(';').next().unwrap().to_owned();
    let mut served = Served { child, address };
    served.signal("HUP");
    std::thread::sleep(Duration::from_millis(300));
    assert!(served.ask("GET /health", "").starts_with("HTTP/1.1 200"));
    served.signal("TERM");
    assert_eq!(served.end(LONG).code(), Some(0));
}

#[test]
fn who_says_so_twice_does_not_wait() {
    for (name, number) in [("INT", 2), ("TERM", 15)] {
        let mut served = serve(&[], Stdio::null()).ready();
        let mut stream = served.send("POST /v1/completions", &endless());
        stream.read_exact(&mut [0; 64]).unwrap();
        served.signal(name);
        std::thread::sleep(Duration::from_millis(300));
        assert!(served.child.try_wait().unwrap().is_none(), "it waits for the stream");
        served.signal(name);
        assert_eq!(served.end(Duration::from_secs(10)).code(), Some(128 + number));
    }
}

#[test]
fn a_model_that_is_being_loaded_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(demo().join(name), folder.path().join(name)).unwrap();
    }
    // Gigabytes, which are never all made.
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 400, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 4096, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "eos_token_id": 0,
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut served = serve(&["--model", path(folder.path()), "--load-format", "dummy"], Stdio::null());
    assert!(served.ask("GET /health", "").starts_with("HTTP/1.1 503"), "it is loading");
    served.signal("TERM");
    assert_eq!(served.end(Duration::from_secs(20)).code(), Some(0));
}

#[test]
fn a_log_that_nobody_takes_holds_up_nobody() {
    let body = json!({ "prompt": "x", "max_tokens": 2, "stream": true }).to_string();
    for what in ["a full disk", "a closed pipe", "a pipe that nobody reads"] {
        let log = if what == "a full disk" {
            Stdio::from(File::create("/dev/full").unwrap())
        } else {
            Stdio::piped()
        };
        let mut served = serve(&["--log-format", "json"], log).ready();
        if what == "a closed pipe" {
            drop(served.child.stderr.take());
        }
        // More lines than a pipe holds.
        for _ in 0..600 {
            assert!(served.ask("GET /v1/models", "").starts_with("HTTP/1.1 200"), "{what}");
        }
        assert!(served.ask("POST /v1/completions", &body).contains("data: [DONE]"), "{what}");
        let metrics = served.ask("GET /metrics", "");
        let lost = metrics.lines().find_map(|line| line.strip_prefix("tilewise:log_lines_lost_total "));
        let lost: u64 = lost.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap();
        assert!(lost > 0 || what == "a pipe that nobody reads", "{what}: {lost}");
        served.signal("TERM");
        assert_eq!(served.end(LONG).code(), Some(0), "{what}");
    }
}
