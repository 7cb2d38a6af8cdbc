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
}

impl OutputReader {
    pub(super) fn new(reasoning: Option<ReasoningReader>, calls: Option<CallReader>) -> Self {
        Self { reasoning, calls }
    }

    /// One that takes all text as said.
    pub fn plain() -> Self {
        Self { reasoning: None, calls: None }
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
        if let Some(reader) = &mut self.calls {
            said.content.push_str(&reader.finish());
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
                let (content, calls) = reader.push(text);
                Said { content, calls, ..Said::default() }
            }
            None => Said { content: text.to_owned(), ..Said::default() },
        }
    }
}
