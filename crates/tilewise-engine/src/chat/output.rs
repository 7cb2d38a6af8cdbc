//! What a model's text says, thinks and calls.

use super::calls::{CallPart, CallReader};
use super::reasoning::ReasoningReader;

/// What a piece of text turned out to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// What is said.
    pub content: String,
    /// What is thought.
    pub reasoning: String,
    /// What is called.
    pub calls: Vec<CallPart>,
}

impl Said {
    /// Whether it is nothing.
    pub fn is_empty(&self) -> bool {
        self.content.is_empty() && self.reasoning.is_empty() && self.calls.is_empty()
    }

    fn append(&mut self, more: Self) {
        self.content.push_str(&more.content);
        self.reasoning.push_str(&more.reasoning);
        self.calls.extend(more.calls);
    }
}

/// Sorts a completion's text into what is said, thought and called, piece by piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputReader {
    reasoning: Option<ReasoningReader>,
    calls: Option<CallReader>,
    /// White space that nothing was said after: models write it before calls, and it is dropped there.
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
                let (reasoning, text) = reader.push(text);
                Said { reasoning, ..self.sort(&text) }
            }
            None => self.sort(text),
        }
    }

    /// What the last piece adds, and what was held back.
    pub fn finish(&mut self, text: &str) -> Said {
        let mut said = self.push(text);
        if let Some(reader) = &mut self.reasoning {
            let (reasoning, text) = reader.finish();
            said.append(Said { reasoning, ..self.sort(&text) });
        }
        let rest = self.calls.as_mut().map(CallReader::finish).unwrap_or_default();
        if !self.has_calls() {
            said.content.push_str(&std::mem::take(&mut self.blank));
        }
        said.content.push_str(&rest);
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
                let (content, calls) = reader.push(text);
                let is_blank = content.trim().is_empty();
                self.blank.push_str(&content);
                let content = if is_blank { String::new() } else { std::mem::take(&mut self.blank) };
                if !calls.is_empty() {
                    self.blank.clear();
                }
                Said { content, calls, ..Said::default() }
            }
            None => Said { content: text.to_owned(), ..Said::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_before_a_call_is_not_said_and_before_words_is() {
        let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
        for (text, content) in [
            (format!("\n\n{call}"), ""),
            (format!("say\n{call}\n"), "say"),
            ("\n\nsay \n".to_owned(), "\n\nsay \n"),
            (" \n".to_owned(), " \n"),
        ] {
            for cut in 0..=text.len() {
                let mut reader = OutputReader::new(None, Some(CallReader::new(vec!["f".to_owned()], false)));
                let mut said = reader.push(&text[..cut]).content;
                said.push_str(&reader.finish(&text[cut..]).content);
                assert_eq!(said, content, "{text:?} cut at {cut}");
            }
        }
    }
}
