//! Text to token ids and back.

mod chat;
mod detokenizer;
mod stop;

use serde_json::Value;

pub use chat::{ChatInput, ChatMessage, ChatTemplate};
pub use detokenizer::Detokenizer;
pub use stop::{Piece, StopStrings, TextStream};

use crate::{Error, Result};

/// A model's tokenizer, with its chat template if it has one.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    chat: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, and special tokens and chat template from a `tokenizer_config.json`;
    /// `template`, a `chat_template.jinja`, comes before the one in there.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] or [`Error::Template`] if they cannot be parsed.
    pub fn from_bytes(json: &[u8], config: Option<&str>, template: Option<String>) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| Error::Tokenizer(format!("tokenizer.json cannot be used: {e}")))?;
        let config = match config {
            None => Value::Null,
            Some(config) => serde_json::from_str(config)
                .map_err(|e| Error::Tokenizer(format!("tokenizer_config.json cannot be parsed: {e}")))?,
        };
        let chat = ChatTemplate::from_config(&config, template)?;
        Ok(Self { inner, chat })
    }

    /// The ids of a text. Special tokens that are written out in it become what they name.
    ///
    /// `add_special_tokens` adds those that the tokenizer puts around every text; leave it out for a chat,
    /// whose template has written them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special_tokens);
        Ok(encoding.map_err(|e| Error::Tokenizer(e.to_string()))?.get_ids().to_vec())
    }

    /// The text of some ids, without special tokens; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| Error::Tokenizer(e.to_string()))
    }

    /// The `tokenizer.json` that it is.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub(crate) fn to_json(&self) -> Result<Value> {
        serde_json::to_value(&self.inner).map_err(|e| Error::Tokenizer(e.to_string()))
    }

    /// What each token adds to a text, by its id; the name of a special one. A token may be a part of a character.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a tokenizer whose tokens are no bytes.
    pub fn token_bytes(&self) -> Result<Vec<Vec<u8>>> {
        /// Marks the names of special tokens: no byte of UTF-8.
        const SPECIAL: u8 = 0xff;
        let bytes = llguidance::token_bytes_from_tokenizer_json(&self.to_json()?);
        let mut words = bytes.map_err(|e| Error::Tokenizer(e.to_string()))?;
        words.iter_mut().filter(|word| word.first() == Some(&SPECIAL)).for_each(|word| {
            word.remove(0);
        });
        Ok(words)
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`Error::Template`] if the model has none.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        let missing = || Error::Template("the model has none; give the prompt as plain text".to_owned());
        self.chat.as_ref().ok_or_else(missing)
    }
}
