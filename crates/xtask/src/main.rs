//! Repository chores: `cargo xtask tidy`.
#![forbid(unsafe_code)]

mod source;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => run_tidy(),
        other => {
            eprintln!("usage: cargo xtask tidy (got {other:?})");
            ExitCode::from(2)
        }
    }
}

/// Prints all findings; fails if one of them breaks a hard rule.
fn run_tidy() -> ExitCode {
    let findings = match tidy::tidy(&root()) {
        Ok(findings) => findings,
        Err(error) => {
            eprintln!("tidy: {error}");
            return ExitCode::FAILURE;
        }
    };
    findings.iter().for_each(|finding| eprintln!("{finding}"));
    let hard = findings.iter().filter(|finding| finding.rule.is_hard()).count();
    eprintln!(
        "{hard} violations, {} files or functions over the size that the style aims at",
        findings.len() - hard
    );
    if hard == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The repository.
fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
