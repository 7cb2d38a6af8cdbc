//! Runs the command and reads what it says.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) fn tilewise(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tilewise")).args(args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The standard output of a command that must succeed.
#[track_caller]
pub(crate) fn run(args: &[&str]) -> String {
    let output = tilewise(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The lines of JSON that a command prints, and nothing else.
#[track_caller]
pub(crate) fn run_json(args: &[&str]) -> Vec<Value> {
    run(args)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}")))
        .collect()
}

/// What the command itself says on stderr: graphics drivers write lines of their own there.
pub(crate) fn said(output: &Output) -> Vec<String> {
    text(&output.stderr).lines().filter(|line| line.starts_with("tilewise: ")).map(str::to_owned).collect()
}

/// A command that must fail with one sentence on stderr that says `words`, and nothing on stdout.
#[track_caller]
pub(crate) fn refused(args: &[&str], code: i32, words: &[&str]) {
    refusal(args, &tilewise(args), code, words);
}

/// The output of a command that must have failed with one sentence, likewise.
#[track_caller]
pub(crate) fn refusal(args: &[&str], output: &Output, code: i32, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}: {}", text(&output.stdout));
    let [sentence] = said(output).try_into().unwrap_or_else(|_| panic!("{args:?}: {stderr}"));
    for word in words {
        assert!(sentence.contains(word), "{args:?}: {sentence:?} does not say {word:?}");
    }
}

/// What a command says whose stdin is `input`.
pub(crate) fn piped(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tilewise"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that ends early reads only a part of it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// The folder of the demo model.
pub(crate) fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

const FILES: [&str; 5] =
    ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

/// A folder with the demo model, where other files take the place of its own.
pub(crate) fn demo_with(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in FILES {
        std::fs::copy(demo().join(name), folder.path().join(name)).unwrap();
    }
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with nothing but a small `config.json`.
pub(crate) fn tiny_model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 300,
        "max_position_embeddings": 256, "tie_word_embeddings": true, "eos_token_id": 1
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}
