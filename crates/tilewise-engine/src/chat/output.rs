//! What a model's text says, thinks and calls.

use super::calls::{CallPart, CallReader};
use super::reasoning::ReasoningReader;

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// It is thought.
    Thought(String),
    /// It is said.
    Words(String),
    /// It is a part of a call.
    Call(CallPart),
}

/// What a piece of text turned out to be, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said(pub Vec<Piece>);

impl Said {
    /// Whether it is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that is said.
    pub fn content(&self) -> String {
        let words =
            |piece: &Piece| if let Piece::Words(words) = piece { words.clone() } else { String::new() };
        self.0.iter().map(words).collect()
    }

    /// All that is thought.
    pub fn reasoning(&self) -> String {
        let thought =
            |piece: &Piece| if let Piece::Thought(thought) = piece { thought.clone() } else { String::new() };
        self.0.iter().map(thought).collect()
    }

    /// All that is called.
    pub fn calls(&self) -> impl Iterator<Item = &CallPart> {
        self.0.iter().filter_map(|piece| if let Piece::Call(part) = piece { Some(part) } else { None })
    }

    fn thought(text: String) -> Self {
        Self(if text.is_empty() { Vec::new() } else { vec![Piece::Thought(text)] })
    }

    fn words(text: String) -> Self {
        Self(if text.is_empty() { Vec::new() } else { vec![Piece::Words(text)] })
    }
}

/// Sorts a completion's text into what is said, thought and called, piece by piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputReader {
    reasoning: Option<ReasoningReader>,
    calls: Option<CallReader>,
    /// White space behind what was said: models write it before calls, and it is dropped there.
    blank: String,
}

impl OutputReader {
    pub(super) fn new(reasoning: Option<ReasoningReader>, calls: Option<CallReader>) -> Self {
        Self { reasoning, calls, blank: String::new() }
    }

    /// One that takes all text as said.
    pub fn plain() -> Self {
        Self::new(None, None)
    }

    /// What a piece adds.
    pub fn push(&mut self, text: &str) -> Said {
        match &mut self.reasoning {
            Some(reader) => {
                let (thought, text) = reader.push(text);
                let mut said = Said::thought(thought);
                said.0.extend(self.sort(&text).0);
                said
            }
            None => self.sort(text),
        }
    }

    /// What the last piece adds, and what was held back.
    pub fn finish(&mut self, text: &str) -> Said {
        let mut said = self.push(text);
        if let Some(reader) = &mut self.reasoning {
            let (thought, text) = reader.finish();
            said.0.extend(Said::thought(thought).0);
            said.0.extend(self.sort(&text).0);
        }
        let rest = self.calls.as_mut().map(CallReader::finish).unwrap_or_default();
        said.0.extend(self.trimmed(rest).0);
        if !self.has_calls() {
            said.0.extend(Said::words(std::mem::take(&mut self.blank)).0);
        }
        said
    }

    /// Whether the text so far ends inside the reasoning.
    pub fn is_reasoning(&self) -> bool {
        self.reasoning.as_ref().is_some_and(ReasoningReader::is_inside)
    }

    /// Whether calls were found, and all of them whole.
    pub fn has_calls(&self) -> bool {
        self.calls.as_ref().is_some_and(CallReader::has_calls)
    }

    /// Whether the one call that may be made was made: nothing that follows counts.
    pub fn is_over(&self) -> bool {
        self.calls.as_ref().is_some_and(CallReader::is_over)
    }

    /// Finds calls in what is no reasoning.
    fn sort(&mut self, text: &str) -> Said {
        match &mut self.calls {
            Some(reader) => {
                let pieces = reader.push(text);
                self.trimmed(pieces)
            }
            None => Said::words(text.to_owned()),
        }
    }

    /// Pieces without the white space that may still stand before a call.
    fn trimmed(&mut self, pieces: Vec<Piece>) -> Said {
        let mut all = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Words(words) => {
                    self.blank.push_str(&words);
                    let end = self.blank.trim_end().len();
                    let rest = self.blank.split_off(end);
                    all.extend(Said::words(std::mem::replace(&mut self.blank, rest)).0);
                }
                Piece::Call(part) => {
                    self.blank.clear();
                    all.push(Piece::Call(part));
                }
                thought @ Piece::Thought(_) => all.push(thought),
            }
        }
        Said(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> OutputReader {
        OutputReader::new(None, Some(CallReader::new(vec!["f".to_owned()], false)))
    }

    #[test]
    fn white_space_before_a_call_is_not_said_and_before_words_is() {
        let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
        for (text, content) in [
            (format!("\n\n{call}"), ""),
            (format!("say\n{call}\n"), "say"),
            (format!("say\n{call}\nmore\n"), "saymore"),
            ("\n\nsay \n".to_owned(), "\n\nsay \n"),
            (" \n".to_owned(), " \n"),
        ] {
            for cut in 0..=text.len() {
                let mut reader = reader();
                let mut said = reader.push(&text[..cut]).content();
                said.push_str(&reader.finish(&text[cut..]).content());
                assert_eq!(said, content, "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_follows_a_call_that_broke_off_comes_behind_it() {
        let said = reader().finish("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1, b}} x");
        let kinds: Vec<bool> = said.0.iter().map(|piece| matches!(piece, Piece::Call(_))).collect();
        assert_eq!(kinds, [true, false], "{said:?}");
        assert_eq!((said.content().as_str(), said.calls().count()), ("b}} x", 1));
    }
}
