//! Tool calls in a text, as Qwen3 writes them: `<tool_call>`, an object with `name` and `arguments`, `</tool_call>`.
//!
//! The router's own parsers are not used: they bring a number library under the LGPL.

use serde::Deserialize;
use serde_json::Value;

/// The router's name for this form.
pub(crate) const SYNTAX: &str = "qwen";

pub(crate) const OPEN: &str = "<tool_call>";
pub(crate) const CLOSE: &str = "</tool_call>";

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// JSON as text.
    pub(crate) arguments: String,
}

/// Takes calls out of a text, piece by piece.
///
/// What is no call of a function that there is stays in the text, tags and all.
#[derive(Debug, Clone)]
pub(crate) struct CallReader {
    /// Functions that there are.
    names: Vec<String>,
    /// The end of the text so far that may be, or may become, a call.
    held: String,
    /// Whether a call was just taken: line breaks behind it are no part of the text.
    is_after_call: bool,
}

#[derive(Deserialize)]
struct Written {
    name: String,
    #[serde(default)]
    arguments: Value,
}

impl CallReader {
    pub(crate) fn new(names: Vec<String>) -> Self {
        Self { names, held: String::new(), is_after_call: false }
    }

    /// The text that is certain once `piece` has come, and the calls that are complete.
    pub(crate) fn push(&mut self, piece: &str) -> (String, Vec<Call>) {
        self.held.push_str(piece);
        let (mut text, mut calls) = (String::new(), Vec::new());
        while let Some(start) = self.held.find(OPEN) {
            self.pass_on(start, &mut text);
            let Some(end) = self.held.find(CLOSE) else { return (text, calls) };
            let rest = self.held.split_off(end + CLOSE.len());
            let tagged = std::mem::replace(&mut self.held, rest);
            match self.read(&tagged[OPEN.len()..end]) {
                Some(call) => {
                    calls.push(call);
                    self.is_after_call = true;
                }
                None => text.push_str(&tagged),
            }
        }
        let certain = self.start_of_tag();
        self.pass_on(certain, &mut text);
        (text, calls)
    }

    /// The text that was held back, when no more comes.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = String::new();
        self.pass_on(self.held.len(), &mut text);
        text
    }

    /// Moves so many bytes of what is held to the text.
    fn pass_on(&mut self, bytes: usize, text: &mut String) {
        let rest = self.held.split_off(bytes);
        let passed = std::mem::replace(&mut self.held, rest);
        let passed = if self.is_after_call { passed.trim_start_matches('\n') } else { &passed };
        self.is_after_call &= passed.is_empty();
        text.push_str(passed);
    }

    /// The place from which on what is held may become a tag.
    fn start_of_tag(&self) -> usize {
        let places = self.held.char_indices().map(|(place, _)| place);
        places.into_iter().find(|&place| OPEN.starts_with(&self.held[place..])).unwrap_or(self.held.len())
    }

    /// A call of a function that there is.
    fn read(&self, text: &str) -> Option<Call> {
        let Written { name, arguments } = serde_json::from_str(text).ok()?;
        let arguments = match arguments {
            Value::Null => "{}".to_owned(),
            Value::String(text) => text,
            value => value.to_string(),
        };
        self.names.contains(&name).then_some(Call { name, arguments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole text and the calls, however the text is cut into pieces of `size`.
    fn read(text: &str, size: usize) -> (String, Vec<Call>) {
        let mut reader = CallReader::new(vec!["f".to_owned()]);
        let (mut rest, mut calls) = (String::new(), Vec::new());
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(size) {
            let (text, more) = reader.push(&piece.iter().collect::<String>());
            rest.push_str(&text);
            calls.extend(more);
        }
        (rest + &reader.finish(), calls)
    }

    #[test]
    fn calls_are_taken_out_however_the_text_is_cut() {
        let call = |arguments: &str| Call { name: "f".to_owned(), arguments: arguments.to_owned() };
        let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": \"ü</\"}}\n</tool_call>";
        for (text, rest, calls) in [
            ("no call < at <tool all", "no call < at <tool all", vec![]),
            (one, "", vec![call("{\"b\":1,\"a\":\"ü</\"}")]),
            (&format!("say {one}\n{one} end"), "say  end", vec![call("{\"b\":1,\"a\":\"ü</\"}"); 2]),
            ("<tool_call>{\"name\":\"f\"}</tool_call>", "", vec![call("{}")]),
            ("<tool_call>{\"name\":\"g\"}</tool_call>", "<tool_call>{\"name\":\"g\"}</tool_call>", vec![]),
            ("<tool_call>nonsense</tool_call>x", "<tool_call>nonsense</tool_call>x", vec![]),
            ("<tool_call>{\"name\":\"f\"", "<tool_call>{\"name\":\"f\"", vec![]),
            ("x<tool_cal", "x<tool_cal", vec![]),
        ] {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(read(text, size), (rest.to_owned(), calls.clone()), "{text:?} by {size}");
            }
        }
    }
}
