//! Text from tokens as they come.

use super::Tokenizer;
use crate::Result;

/// Turns tokens into text one by one.
///
/// A character may take several tokens, and a token may end inside one. Text is held back until its
/// characters are whole, so that the pieces concatenated are the decoded text. What was returned stays: where a tokenizer
/// spells characters by byte tokens, and a later byte makes no character with those before it, that byte alone is replaced.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// Tokens whose text is not complete, after some that are context: decoders treat the start of a text
    /// apart.
    ids: Vec<u32>,
    /// Tokens at the front of `ids` that are context.
    context: usize,
    /// Bytes of the text of `ids` that were returned before.
    returned: usize,
    /// Bytes that byte tokens began a character with.
    bytes: Vec<u8>,
}

/// What bytes that are no character, or not yet, are decoded to.
const REPLACEMENT: char = '\u{fffd}';

impl Detokenizer {
    /// The text that is certain once `id` has come; often empty.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        if let Some(byte) = tokenizer.fallback_byte(id) {
            return self.push_byte(tokenizer, id, byte);
        }
        let cut = self.take_cut_character();
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids)?;
        // Only replaced bytes at the end can still change; some decoders replace whole runs of bytes.
        let whole = text.trim_end_matches(REPLACEMENT);
        let piece = whole.get(self.returned..).unwrap_or_default();
        let is_whole = whole.len() == text.len() && !piece.is_empty();
        let piece = cut + piece;
        self.returned = self.returned.max(whole.len());
        if is_whole {
            self.keep_as_context(tokenizer, self.context)?;
        }
        Ok(piece)
    }

    /// The text that was held back, when no more tokens come.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`].
    pub fn finish(mut self, tokenizer: &Tokenizer) -> Result<String> {
        Ok(self.held(tokenizer)? + &self.take_cut_character())
    }

    /// A byte token: decoders read runs of them, and replace the whole run where it is no text, also what was returned of
    /// it. So bytes are made characters here, and serve as context for the tokens that follow.
    fn push_byte(&mut self, tokenizer: &Tokenizer, id: u32, byte: u8) -> Result<String> {
        let mut piece = self.held(tokenizer)?;
        self.ids.push(id);
        self.keep_as_context(tokenizer, self.context)?;
        self.bytes.push(byte);
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    piece.push_str(text);
                    self.bytes.clear();
                    return Ok(piece);
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    piece.push_str(&String::from_utf8_lossy(&self.bytes[..valid]));
                    // Without a length, the bytes may still become a character.
                    let bad = error.error_len().unwrap_or(0);
                    piece.extend(std::iter::repeat_n(REPLACEMENT, bad));
                    self.bytes.drain(..valid + bad);
                    if bad == 0 {
                        return Ok(piece);
                    }
                }
            }
        }
    }

    /// Replaces the bytes of a character that does not go on.
    fn take_cut_character(&mut self) -> String {
        let cut = std::iter::repeat_n(REPLACEMENT, self.bytes.len()).collect();
        self.bytes.clear();
        cut
    }

    /// The text of `ids` that was not returned.
    fn held(&self, tokenizer: &Tokenizer) -> Result<String> {
        if self.ids.len() == self.context {
            return Ok(String::new());
        }
        Ok(tokenizer.decode(&self.ids)?.get(self.returned..).unwrap_or_default().to_owned())
    }

    /// Lets all tokens but the `first` ones be context, whose text was returned.
    fn keep_as_context(&mut self, tokenizer: &Tokenizer, first: usize) -> Result<()> {
        self.ids.drain(..first);
        self.context = self.ids.len();
        self.returned = tokenizer.decode(&self.ids)?.len();
        Ok(())
    }
}
