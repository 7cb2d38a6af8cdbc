//! Runs the command and reads what it says.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::process::{Command, Output};

use serde_json::Value;

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

/// A command that must fail with one sentence on stderr that says `words`, and nothing on stdout.
#[track_caller]
pub(crate) fn refused(args: &[&str], code: i32, words: &[&str]) {
    let output = tilewise(args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}: {}", text(&output.stdout));
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("tilewise: "), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: {stderr:?} does not say {word:?}");
    }
}
