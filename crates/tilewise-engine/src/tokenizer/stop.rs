//! Text up to the first stop string.

use super::{Detokenizer, Tokenizer};
use crate::Result;

/// Passes text on until a stop string is complete in it, however the text is cut into pieces.
///
/// The text ends before the stop string that is complete first; of several that are complete at the same place, before the
/// longest. Text that may still become a stop string is held back.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    /// The end of the text so far that some stop string begins with.
    held: String,
}

impl StopStrings {
    /// Ends a text before the first of these; empty ones stop nothing.
    pub fn new(mut strings: Vec<String>) -> Self {
        strings.retain(|string| !string.is_empty());
        Self { strings, held: String::new() }
    }

    /// The text that is certain once `piece` has come, and the stop string, if it ends there.
    pub fn push(&mut self, piece: &str) -> (String, Option<String>) {
        self.held.push_str(piece);
        let place =
            |string: &String| self.held.find(string.as_str()).map(|start| (start + string.len(), start));
        let first = self.strings.iter().filter_map(|string| Some((place(string)?, string))).min();
        let (certain, stop) = match first {
            Some(((_, start), string)) => (start, Some(string.clone())),
            None => (self.start_of_candidate(), None),
        };
        let rest = self.held.split_off(certain);
        let text = std::mem::replace(&mut self.held, if stop.is_some() { String::new() } else { rest });
        (text, stop)
    }

    /// The text that was held back, when no more comes.
    pub fn finish(self) -> String {
        self.held
    }

    /// The first place from which on the text may become a stop string.
    fn start_of_candidate(&self) -> usize {
        let begins = |rest: &str| self.strings.iter().any(|string| string.starts_with(rest));
        let places = self.held.char_indices().map(|(place, _)| place);
        places.into_iter().find(|&place| begins(&self.held[place..])).unwrap_or(self.held.len())
    }
}

/// Turns tokens into text up to a stop string.
#[derive(Debug, Default)]
pub struct TextStream {
    detokenizer: Detokenizer,
    stops: StopStrings,
}

/// What a token adds to a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text that is certain now; often empty.
    pub text: String,
    /// The stop string that this token completed: the text is over, and whoever asked for it aborts the request.
    pub stop: Option<String>,
}

impl TextStream {
    /// A text that ends before the first of `stop`, as [`StopStrings`] has it.
    pub fn new(stop: Vec<String>) -> Self {
        Self { detokenizer: Detokenizer::default(), stops: StopStrings::new(stop) }
    }

    /// What `id` adds.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<Piece> {
        let (text, stop) = self.stops.push(&self.detokenizer.push(tokenizer, id)?);
        Ok(Piece { text, stop })
    }

    /// What was held back, when no more tokens come; with a stop string, if that was in it.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`].
    pub fn finish(mut self, tokenizer: &Tokenizer) -> Result<Piece> {
        let (mut text, stop) = self.stops.push(&self.detokenizer.finish(tokenizer)?);
        text.push_str(&self.stops.finish());
        Ok(Piece { text, stop })
    }
}
