//! Grammars in the words of the parser.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};

use super::schema::prepared;
use super::{Call, Grammar};
use crate::chat::{CLOSE, OPEN, ReasoningTags};

/// The name of what follows reasoning.
const THEN: &str = "then";

/// The name of what is said where nothing is called.
const WORDS: &str = "words";

/// A grammar for the parser.
pub(super) fn top_level(grammar: &Grammar) -> TopLevelGrammar {
    TopLevelGrammar { grammars: parts(grammar), max_tokens: None }
}

/// A grammar and those that it names; it is the first. Each schema is one of its own, so that its references begin at its
/// own root.
fn parts(grammar: &Grammar) -> Vec<GrammarWithLexer> {
    match grammar {
        Grammar::JsonSchema(schema) => vec![GrammarWithLexer::from_json_schema(prepared(schema, false))],
        Grammar::StrictJsonSchema(schema) => vec![GrammarWithLexer::from_json_schema(prepared(schema, true))],
        Grammar::Regex(regex) => vec![GrammarWithLexer::from_regex(regex)],
        Grammar::Lark(text) => vec![GrammarWithLexer::from_lark(text.clone())],
        Grammar::Calls { functions, several, or } => {
            let mut all = calls(functions, *several, or.is_some());
            all.extend(or.iter().flat_map(|or| named(WORDS, or)));
            all
        }
        Grammar::AfterReasoning { tags, is_open, then } => {
            let mut all = vec![GrammarWithLexer::from_lark(reasoning(*tags, *is_open))];
            all.append(&mut named(THEN, then));
            all
        }
    }
}

/// A grammar under a name, and those that it names.
fn named(name: &str, grammar: &Grammar) -> Vec<GrammarWithLexer> {
    let mut parts = parts(grammar);
    if let Some(first) = parts.first_mut() {
        first.name = Some(name.to_owned());
    }
    parts
}

/// A string of the parser's language.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Any text up to the tag that closes the reasoning, then what follows it.
fn reasoning(tags: ReasoningTags, is_open: bool) -> String {
    let (open, close) = (quoted(tags.open), quoted(tags.close));
    let start = match is_open {
        true => format!("think SPACE? @{THEN}"),
        false => format!("@{THEN} | {open} think SPACE? @{THEN}"),
    };
    format!("start: {start}\nthink[suffix={close}]: /(?s:.*)/\nSPACE: /\\n\\n?/\n")
}

/// One call of one of these functions, or several, as Qwen3 writes them: JSON between tags.
fn calls(functions: &[Call], several: bool, or_words: bool) -> Vec<GrammarWithLexer> {
    let more = if several { " (\"\\n\" call)*" } else { "" };
    let rules = (0..functions.len()).map(|at| format!("f{at}")).collect::<Vec<_>>().join(" | ");
    let words = if or_words { format!(" | @{WORDS}") } else { String::new() };
    let mut text = format!("start: call{more}{words}\ncall: {rules}\n");
    let mut schemas = Vec::new();
    for (at, call) in functions.iter().enumerate() {
        let before = quoted(&format!("{OPEN}\n{{\"name\": {}, \"arguments\": ", json!(call.name)));
        let behind = quoted(&format!("}}\n{CLOSE}"));
        text.push_str(&format!("f{at}: {before} @a{at} {behind}\n"));
        let mut schema = GrammarWithLexer::from_json_schema(prepared(&call.schema, call.strict));
        schema.name = Some(format!("a{at}"));
        schemas.push(schema);
    }
    let mut all = vec![GrammarWithLexer::from_lark(text)];
    all.append(&mut schemas);
    all
}
