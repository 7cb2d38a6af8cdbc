//! `tilewise serve`: starts in one command, serves, and ends when it is told to.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use common::{demo_with, path, refused};

/// A server that runs, and where.
struct Served {
    child: Child,
    address: String,
    line: String,
}

fn serve(args: &[&str], key: Option<&str>) -> Served {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilewise"));
    command.args(["serve", "--port", "0", "--threads", "1", "--kv-tokens", "4096"]).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).envs(key.map(|key| ("TILEWISE_API_KEY", key)));
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address =
        line.split("http://").nth(1).unwrap_or_else(|| panic!("{line:?}")).split(';').next().unwrap();
    Served { address: address.to_owned(), child, line }
}

impl Served {
    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let body = r#"{"prompt":"def f(","max_tokens":8,"ignore_eos":true}"#;
        let length = body.len();
        let head = "content-type: application/json\r\nhost: localhost\r\nconnection: close";
        write!(stream, "{request}\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Tells it to end; what it wrote to stderr.
    fn terminate(mut self) -> String {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let mut logs = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut logs).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{logs}");
        logs
    }
}

#[test]
fn the_embedded_model_is_served_by_one_command_and_ends_well() {
    let served = serve(&["--log-format", "json"], None);
    assert!(
        served.line.contains("tilewise-demo on ") && served.line.contains("its page is http://"),
        "{}",
        served.line
    );
    for polled in ["/health", "/metrics", "/v1/loads"] {
        assert!(served.ask(&format!("GET {polled} HTTP/1.1")).starts_with("HTTP/1.1 200"), "{polled}");
    }
    let answer = served.ask("POST /v1/completions HTTP/1.1\r\nx-request-id: mine");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"completion_tokens\":8"), "{answer}");
    let logs = served.terminate();
    let lines: Vec<serde_json::Value> =
        logs.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // What is polled is not written down.
    assert_eq!(lines.iter().filter(|line| line["message"] == "answered").count(), 1, "{logs}");
    let of = |message: &str| {
        lines.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("{logs}"))
    };
    assert_eq!((&of("answered")["request"], &of("answered")["status"]), (&"mine".into(), &200.into()));
    assert_eq!(
        (&of("generated")["request"], &of("generated")["completion_tokens"]),
        (&"mine".into(), &8.into())
    );
}

#[test]
fn the_key_comes_from_the_environment_too() {
    let served = serve(&["--served-model-name", "mine"], Some("secret"));
    assert!(served.ask("GET /v1/models HTTP/1.1").starts_with("HTTP/1.1 401"));
    let answer = served.ask("GET /v1/models HTTP/1.1\r\nauthorization: Bearer secret");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"id\":\"mine\""), "{answer}");
    let logs = served.terminate();
    assert!(!logs.contains("secret"), "{logs}");
}

#[test]
fn the_models_sampling_is_told_at_the_start() {
    let config = r#"{ "eos_token_id": [0, 2], "temperature": 0.7, "top_p": 0.8 }"#;
    let folder = demo_with(&[("generation_config.json", config)]);
    let told = |flags: &[&str]| {
        let args = [&["--log-format", "json", "--model", path(folder.path())], flags].concat();
        let logs = serve(&args, None).terminate();
        logs.lines().any(|line| line.contains("temperature 0.7") && line.contains("top_p 0.8"))
    };
    assert!(told(&[]));
    assert!(!told(&["--sampling-defaults", "none"]));
}

#[test]
fn what_would_be_unsafe_or_means_nothing_is_refused() {
    refused(&["serve", "--host", "0.0.0.0"], 2, &["--host 0.0.0.0", "--api-key", "--insecure"]);
    let others = ["token ids", "--insecure"];
    refused(
        &["serve", "--kv-events", "tcp://0.0.0.0:0"],
        2,
        &[&["--kv-events tcp://0.0.0.0:0"], &others[..]].concat(),
    );
    let replay = ["serve", "--kv-events", "tcp://127.0.0.1:0", "--kv-events-replay", "tcp://*:0"];
    refused(&replay, 2, &[&["--kv-events-replay tcp://*:0"], &others[..]].concat());
    refused(&["serve", "--disk-cache", "x", "--disk-cache-mode", "777"], 2, &["--disk-cache-mode", "600"]);
    refused(&["serve", "--tool-call-parser", "none-such"], 2, &["none-such"]);
    refused(&["serve", "--max-requests", "0"], 2, &["at least 1"]);
    refused(&["serve", "--model", "/nowhere"], 1, &["/nowhere", "no such folder"]);
}

/// The flags of a text that `serve` is said to take.
fn flags(text: &str) -> Vec<&str> {
    let is_flag = |c: char| c.is_ascii_lowercase() || c == '-';
    let words = text.split(|c: char| !is_flag(c));
    words.filter(|word| word.starts_with("--") && word.len() > 3).collect()
}

#[test]
fn what_operators_are_told_of_flags_is_so() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let help = common::run(&["serve", "--help"]);
    let known = flags(&help);
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let page = read("docs/operating.md");
    let asked = flags(&page);
    assert!(asked.len() > 15, "{asked:?}");
    let unit = read("deploy/tilewise.service");
    let start = unit.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
    let container = read("deploy/Containerfile");
    let command = container.lines().find(|line| line.starts_with("CMD ")).unwrap();
    for flag in asked.into_iter().chain(flags(start)).chain(flags(command)) {
        assert!(known.contains(&flag), "{flag}");
    }
    // A stop takes longer than what is drained.
    let seconds = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    assert!(seconds.parse::<u64>().unwrap() > 60);
    for line in ["DynamicUser=yes", "NoNewPrivileges=yes", "ProtectSystem=strict"] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
    assert!(container.lines().any(|line| line == "USER 10001"));
}
