//! Repository chores: `cargo xtask tidy` and `cargo xtask docs`.
#![forbid(unsafe_code)]

mod docs;
mod source;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => run_tidy(),
        ["docs"] => run_docs(None, false),
        ["docs", "--check"] => run_docs(None, true),
        ["docs", "--check", "--binary", path] => run_docs(Some(path), true),
        _ => {
            eprintln!("usage: cargo xtask tidy | docs [--check [--binary TILEWISE]] (got {words:?})");
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

/// Writes the generated pages; with `check`, fails if one is not what would be written. `binary` is a `tilewise` that is
/// built already.
fn run_docs(binary: Option<&str>, check: bool) -> ExitCode {
    match docs::run(&root(), binary, check) {
        Ok(changed) if check && !changed.is_empty() => {
            eprintln!("out of date, run cargo xtask docs: {}", changed.join(", "));
            ExitCode::FAILURE
        }
        Ok(changed) => {
            changed.iter().for_each(|path| eprintln!("wrote {path}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("docs: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The repository.
fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
