//! What the compiler and clippy do not check: where things may stand, and how long they are.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::source::Source;

/// Lines that a file and a function should stay below.
const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;

/// A rule of the house.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// `unsafe` lives in the backends and in the file mapping.
    Unsafe,
    /// Only the command line reads the environment.
    Environment,
    /// Intrinsics live in one folder.
    Intrinsics,
    /// A promise to come back names an issue.
    Unfinished,
    /// Sections are modules, not banners.
    Banner,
    /// A dispatch rule or a document cites a record that is not there.
    Record,
    /// The README shows a command that does not exist.
    Command,
    /// A file or function is long.
    Size,
}

impl Rule {
    /// Whether breaking it fails the check.
    pub(crate) fn is_hard(self) -> bool {
        self != Self::Size
    }
}

/// One place where a rule is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) rule: Rule,
    path: String,
    /// From 1.
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.rule.is_hard() { "error" } else { "note" };
        write!(f, "{}:{}: {kind}: {}", self.path, self.line, self.what)
    }
}

/// Checks a whole repository.
pub(crate) fn tidy(root: &Path) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut files = Vec::new();
    collect(&root.join("crates"), &mut files)?;
    files.sort();
    for file in files {
        let path = relative(root, &file);
        let text = std::fs::read_to_string(&file)?;
        findings.extend(check_source(&path, &text));
        findings.extend(missing_records(root, &path, &text));
    }
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        if let Ok(text) = std::fs::read_to_string(root.join(document)) {
            findings.extend(missing_records(root, document, &text));
            findings.extend(unknown_commands(root, document, &text));
        }
    }
    Ok(findings)
}

/// All Rust files below a folder.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

/// Checks one Rust file by itself.
fn check_source(path: &str, text: &str) -> Vec<Finding> {
    let source = Source::new(text);
    let mut findings = Vec::new();
    for (index, (line, code)) in source.lines.iter().zip(&source.code).enumerate() {
        let found = placed(path, code).into_iter().chain(unfinished(line, code)).chain(banner(line));
        let finding = |(rule, what)| Finding { rule, path: path.to_owned(), line: index + 1, what };
        findings.extend(found.map(finding));
    }
    findings.extend(sizes(path, &source));
    findings
}

/// What stands in the wrong file.
fn placed(path: &str, code: &str) -> Vec<(Rule, String)> {
    const UNSAFE: [&str; 2] = ["crates/tilewise/src/backend/", "crates/tilewise/src/file.rs"];
    const ENVIRONMENT: [&str; 2] = ["crates/tilewise-cli/src/env.rs", "crates/tilewise-cli/src/main.rs"];
    const INTRINSICS: [&str; 1] = ["crates/tilewise/src/backend/cpu/simd/"];
    let within = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
    // A development tool has no other way to its arguments.
    let is_tool =
        path.starts_with("crates/xtask/") || path.contains("/tests/") || path.ends_with("/tests.rs");
    let mut found = Vec::new();
    if has_word(code, "unsafe") && !within(&UNSAFE) {
        found.push((Rule::Unsafe, "`unsafe` outside the backends and file.rs".to_owned()));
    }
    // Constants of the target are no reading of the environment.
    let environment = code.replace("std::env::consts", "");
    if ["std::env", "env::var", "env::vars", "env::args"].iter().any(|name| has_word(&environment, name))
        && !within(&ENVIRONMENT)
        && !is_tool
    {
        found.push((Rule::Environment, "the environment is read outside the command line".to_owned()));
    }
    if ["std::arch", "core::arch", "core_arch"].iter().any(|name| has_word(code, name))
        && !within(&INTRINSICS)
    {
        found.push((Rule::Intrinsics, "intrinsics outside backend/cpu/simd".to_owned()));
    }
    found
}

/// Whether `code` contains `word` with no identifier character right before or after it.
fn has_word(code: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_name) && !code[at + word.len()..].starts_with(is_name))
}

/// A marker of unfinished work whose line names no issue (`#12`).
fn unfinished(line: &str, code: &str) -> Option<(Rule, String)> {
    // Split, so that this file does not find itself.
    let marker =
        [concat!("TO", "DO"), concat!("FIX", "ME")].into_iter().find(|marker| has_word(line, marker))?;
    let comment = !has_word(code, marker);
    let issue = line.split('#').skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    (comment && line.contains("//") && !issue)
        .then(|| (Rule::Unfinished, format!("{marker} without an issue number (#12)")))
}

/// A comment made of ornaments.
fn banner(line: &str) -> Option<(Rule, String)> {
    let comment = line.trim_start().strip_prefix("//")?;
    let mut run = (0, '\0');
    for c in comment.chars() {
        run = if c == run.1 { (run.0 + 1, c) } else { (1, c) };
        if run.0 >= 5 && "-=*#~_─═".contains(c) {
            return Some((Rule::Banner, "a banner comment".to_owned()));
        }
    }
    None
}

/// The file, and the functions in it, that are too long. Braces are counted, macros and all.
fn sizes(path: &str, source: &Source) -> Vec<Finding> {
    let note = |line, what| Finding { rule: Rule::Size, path: path.to_owned(), line, what };
    let mut findings = Vec::new();
    if source.lines.len() > FILE_LINES {
        findings.push(note(1, format!("{} lines, more than {FILE_LINES}", source.lines.len())));
    }
    for (first, last) in functions(&source.code) {
        let lines = last - first + 1;
        if lines > FUNCTION_LINES {
            findings
                .push(note(first + 1, format!("a function of {lines} lines, more than {FUNCTION_LINES}")));
        }
    }
    findings
}

/// First and last lines of functions with bodies, inner ones too, counted from 0.
fn functions(code: &[String]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    // Functions whose body has begun, with the depth around them; and the line of one that has not.
    let (mut open, mut depth, mut declared) = (Vec::new(), 0usize, None);
    for (index, line) in code.iter().enumerate() {
        for (at, c) in line.char_indices() {
            match c {
                'f' if line[at..].starts_with("fn ")
                    && has_word(&line[at.saturating_sub(1)..at + 3], "fn") =>
                {
                    declared = Some(index);
                }
                ';' => declared = None,
                '{' => {
                    open.extend(declared.take().map(|first| (first, depth)));
                    depth += 1;
                }
                '}' => {
                    depth = depth.saturating_sub(1);
                    if let Some((first, _)) = open.pop_if(|(_, around)| *around == depth) {
                        found.push((first, index));
                    }
                }
                _ => {}
            }
        }
    }
    found
}

/// Cited files of `bench/records/` that do not exist.
fn missing_records(root: &Path, path: &str, text: &str) -> Vec<Finding> {
    let missing = |(index, line): (usize, &str)| {
        let names: Vec<String> = records(line).filter(|name| !root.join(name).is_file()).collect();
        let finding = move |name| Finding {
            rule: Rule::Record,
            path: path.to_owned(),
            line: index + 1,
            what: format!("cites {name}, which does not exist"),
        };
        names.into_iter().map(finding)
    };
    text.lines().enumerate().flat_map(missing).collect()
}

/// The records that a line names: dates and machines, so that a pattern such as `<date>` is none.
fn records(line: &str) -> impl Iterator<Item = String> + '_ {
    const FOLDER: &str = concat!("bench/", "records/");
    line.match_indices(FOLDER).filter_map(|(at, _)| {
        let name: String =
            line[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || "-_./".contains(*c)).collect();
        let dated = name[FOLDER.len()..].starts_with(|c: char| c.is_ascii_digit());
        (dated && name.ends_with(".csv")).then_some(name)
    })
}

/// Commands of the binary that a document shows in code blocks and that the command line does not declare.
fn unknown_commands(root: &Path, path: &str, text: &str) -> Vec<Finding> {
    let Ok(arguments) = std::fs::read_to_string(root.join("crates/tilewise-cli/src/args/mod.rs")) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(command) = shown_command(line).filter(|command| !names_command(&arguments, command)) {
            let what = format!("shows `tilewise {command}`, which the command line does not have");
            findings.push(Finding { rule: Rule::Command, path: path.to_owned(), line: index + 1, what });
        }
    }
    findings
}

/// The subcommand of a line that runs the binary.
fn shown_command(line: &str) -> Option<&str> {
    let line = line.trim();
    let rest = line
        .strip_prefix("cargo run --release -- ")
        .or_else(|| line.strip_prefix("./target/release/tilewise "))
        .or_else(|| line.strip_prefix("tilewise "))?;
    let command = rest.split_whitespace().next()?;
    command.chars().all(|c| c.is_ascii_lowercase() || c == '-').then_some(command)
}

/// Whether a source file has a variant `BenchOneBatch` for `bench-one-batch`.
fn names_command(source: &str, command: &str) -> bool {
    let word = |word: &str| {
        let mut chars = word.chars();
        chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect::<String>()
    };
    has_word(source, &command.split('-').map(word).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<Rule> {
        check_source(path, text).into_iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn tidy_finds_no_violation_in_this_tree() {
        let findings = tidy(&crate::root()).unwrap();
        let hard: Vec<String> =
            findings.iter().filter(|finding| finding.rule.is_hard()).map(Finding::to_string).collect();
        assert!(hard.is_empty(), "{}", hard.join("\n"));
    }

    #[test]
    fn unsafe_code_has_its_places() {
        let text = "fn f() { unsafe { g() } }";
        assert_eq!(rules("crates/tilewise-engine/src/a.rs", text), [Rule::Unsafe]);
        assert_eq!(rules("crates/tilewise/src/kv.rs", text), [Rule::Unsafe]);
        assert_eq!(rules("crates/tilewise/src/backend/cpu/gemm.rs", text), []);
        assert_eq!(rules("crates/tilewise/src/file.rs", text), []);
        assert_eq!(rules("crates/tilewise-cli/src/main.rs", "#![forbid(unsafe_code)] // unsafe"), []);
    }

    #[test]
    fn the_environment_is_read_by_the_command_line_alone() {
        let text = "let home = std::env::var(name);";
        assert_eq!(rules("crates/tilewise/src/lib.rs", text), [Rule::Environment]);
        assert_eq!(rules("crates/tilewise-cli/src/env.rs", text), []);
        assert_eq!(rules("crates/tilewise/src/lib.rs", "use std::env;"), [Rule::Environment]);
        assert_eq!(rules("crates/tilewise/tests/laws.rs", text), []);
        assert_eq!(rules("crates/tilewise/src/lib.rs", "const N: &str = env!(\"CARGO_PKG_NAME\");"), []);
    }

    #[test]
    fn intrinsics_have_one_folder() {
        let text = "use std::arch::x86_64::*;";
        assert_eq!(rules("crates/tilewise/src/backend/cpu/gemm.rs", text), [Rule::Intrinsics]);
        assert_eq!(rules("crates/tilewise/src/backend/cpu/simd/avx2.rs", text), []);
    }

    #[test]
    fn unfinished_work_names_an_issue_and_banners_are_found() {
        let marker = concat!("TO", "DO");
        assert_eq!(rules("crates/a.rs", &format!("// {marker}: later")), [Rule::Unfinished]);
        assert_eq!(rules("crates/a.rs", &format!("// {marker}(#12): later")), []);
        assert_eq!(rules("crates/a.rs", "// ------- helpers -------"), [Rule::Banner]);
        assert_eq!(rules("crates/a.rs", "/// | a | b |\n/// |---|---|"), []);
    }

    #[test]
    fn long_files_and_functions_are_noted() {
        let body = "    g();\n".repeat(69);
        assert_eq!(rules("crates/a.rs", &format!("fn f() {{\n{body}}}\n")), [Rule::Size]);
        let closure = format!("fn f() {{\n{}}}\n", "    if a { b(\"}\") }\n".repeat(60));
        assert_eq!(rules("crates/a.rs", &closure), []);
        assert_eq!(rules("crates/a.rs", &"// a\n".repeat(501)), [Rule::Size]);
        assert_eq!(functions(&Source::new("trait A { fn a(&self); }\nfn b() {\n}\n").code), [(1, 2)]);
    }

    #[test]
    fn records_are_dated_files() {
        let line = "see bench/records/2026-11-23-zen3.csv, bench/records/<date>.csv and bench/records/.";
        assert_eq!(records(line).collect::<Vec<_>>(), ["bench/records/2026-11-23-zen3.csv"]);
    }

    #[test]
    fn commands_are_known_by_their_variant() {
        assert_eq!(
            shown_command("cargo run --release -- bench-one-batch --batch 1"),
            Some("bench-one-batch")
        );
        assert_eq!(shown_command("cargo test --workspace"), None);
        assert!(names_command("enum Command { BenchOneBatch(Args) }", "bench-one-batch"));
        assert!(!names_command("enum Command { BenchOneBatch(Args) }", "bench"));
    }
}
