//! Text from tokens as they come.

use super::Tokenizer;
use crate::Result;

/// Turns tokens into text one by one.
///
/// A character may take several tokens, and a token may end inside one. Text is held back until its
/// characters are whole, so that the pieces concatenated are the decoded text.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// Tokens whose text is not complete, after some that are context: decoders treat the start of a text
    /// apart.
    ids: Vec<u32>,
    /// Tokens at the front of `ids` that are context.
    context: usize,
    /// Bytes of the text of `ids` that were returned before.
    returned: usize,
}

/// What bytes that are no character, or not yet, are decoded to.
const REPLACEMENT: char = '\u{fffd}';

impl Detokenizer {
    /// The text that is certain once `id` has come; often empty.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids)?;
        // Only replaced bytes at the end can still change; some decoders replace whole runs of bytes.
        let whole = text.trim_end_matches(REPLACEMENT);
        let piece = whole.get(self.returned..).unwrap_or_default().to_owned();
        self.returned = self.returned.max(whole.len());
        if whole.len() == text.len() && !piece.is_empty() {
            self.ids.drain(..self.context);
            self.context = self.ids.len();
            self.returned = tokenizer.decode(&self.ids)?.len();
        }
        Ok(piece)
    }

    /// The text that was held back, when no more tokens come.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`].
    pub fn finish(self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.ids)?;
        Ok(text.get(self.returned..).unwrap_or_default().to_owned())
    }
}
