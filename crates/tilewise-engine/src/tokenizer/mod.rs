//! Text to token ids and back.

mod added;
mod chat;
mod detokenizer;
mod special;
mod stop;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;

use serde_json::Value;

pub use chat::{ChatInput, ChatMessage, ChatTemplate};
pub use detokenizer::Detokenizer;
pub(crate) use special::SpecialTokens;
pub use stop::{Piece, StopStrings, TextStream};

use crate::{Error, Result};

/// The files that a tokenizer is read from; all but `tokenizer.json` may be missing.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizerFiles<'a> {
    /// What stands before the files' names in errors, such as `folder/`.
    pub place: &'a str,
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`.
    pub config: Option<&'a str>,
    /// `special_tokens_map.json`, which says what `tokenizer_config.json` leaves out.
    pub special_tokens: Option<&'a str>,
    /// `chat_template.jinja`, which comes before the other places of a chat template.
    pub template: Option<&'a str>,
    /// `chat_template.json`, which comes before `tokenizer_config.json`.
    pub template_json: Option<&'a str>,
}

/// A model's tokenizer, with its chat template if it has one.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `Err` says why the template there is cannot be used: plain prompts do without it.
    chat: Option<Result<ChatTemplate, String>>,
    /// Tokens that are single bytes, where the decoder reads them so.
    fallback_bytes: HashMap<u32, u8>,
    notes: Vec<String>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, and special tokens and chat template from a `tokenizer_config.json`;
    /// `template`, a `chat_template.jinja`, comes before the one in there.
    ///
    /// # Errors
    /// As [`Tokenizer::from_files`].
    #[expect(clippy::needless_pass_by_value, reason = "callers have a template of their own to give")]
    pub fn from_bytes(json: &[u8], config: Option<&str>, template: Option<String>) -> Result<Self> {
        let template = template.as_deref();
        Self::from_files(&TokenizerFiles { tokenizer: json, config, template, ..TokenizerFiles::default() })
    }

    /// Reads a tokenizer as a model's folder has it. Texts are neither cut nor padded, whatever `tokenizer.json` says: that
    /// is about training. A chat template that cannot be used refuses chats only.
    ///
    /// # Errors
    /// [`Error::File`] that names the file that cannot be parsed.
    pub fn from_files(files: &TokenizerFiles<'_>) -> Result<Self> {
        let name = |file: &str| format!("{}{file}", files.place);
        let json = |file: &str, text: Option<&str>| match text {
            None => Ok(Value::Null),
            Some(text) => serde_json::from_str(text.trim_start_matches('\u{feff}'))
                .map_err(|e| Error::file(name(file), format!("cannot be parsed: {e}"))),
        };
        let config = json("tokenizer_config.json", files.config)?;
        let special = SpecialTokens::read(&config, &json("special_tokens_map.json", files.special_tokens)?);
        let mut notes = Vec::new();
        let load = || {
            let mut inner = tokenizers::Tokenizer::from_bytes(files.tokenizer)?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            added::add_listed(&mut inner, &config, &name("tokenizer_config.json"), &mut notes)?;
            Ok(inner)
        };
        let inner = guarded(load).map_err(|why| {
            Error::file(name("tokenizer.json"), format!("cannot be used: {why}; fetch it again"))
        })?;
        let template_json = json("chat_template.json", files.template_json);
        let chat = template_json.and_then(|template_json| {
            let template = match (files.template, &template_json) {
                (Some(template), _) => Value::from(template.trim_start_matches('\u{feff}')),
                (None, Value::Object(object)) if object.contains_key("chat_template") => {
                    object["chat_template"].clone()
                }
                (None, Value::Null) => config.get("chat_template").cloned().unwrap_or_default(),
                (None, other) => other.clone(),
            };
            ChatTemplate::new(&template, &special)
        });
        let chat = chat.map_err(|error| match error {
            Error::Template(why) => why,
            other => other.to_string(),
        });
        Ok(Self { fallback_bytes: fallback_bytes(&inner), inner, chat: chat.transpose(), notes })
    }

    /// What the files say that is set aside, each in a sentence for whoever loads the model.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The ids of a text. Special tokens that are written out in it become what they name.
    ///
    /// `add_special_tokens` adds those that the tokenizer puts around every text; leave it out for a chat,
    /// whose template has written them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special_tokens));
        Ok(encoding.map_err(in_tokenizer)?.get_ids().to_vec())
    }

    /// The text of some ids, without special tokens; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true)).map_err(in_tokenizer)
    }

    /// The byte that a token stands for, where bytes that are in no other token have tokens of their own.
    pub(crate) fn fallback_byte(&self, id: u32) -> Option<u8> {
        self.fallback_bytes.get(&id).copied()
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

    /// Tokens that are no part of a text.
    pub fn special_ids(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect()
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Why the chat template that is there cannot be used.
    pub fn template_error(&self) -> Option<&str> {
        self.chat.as_ref().and_then(|chat| chat.as_ref().err()).map(String::as_str)
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`Error::Template`] if the model has none, or why the one it has cannot be used.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        match &self.chat {
            Some(Ok(template)) => Ok(template),
            Some(Err(why)) => Err(Error::Template(why.clone())),
            None => Err(Error::Template("the model has none; give the prompt as plain text".to_owned())),
        }
    }
}

/// Calls the tokenizers' crate, parts of which panic where a `tokenizer.json` contradicts itself.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match std::panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let words = panic.downcast_ref::<&str>().copied().map(str::to_owned);
            Err(words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default())
        }
    }
}

fn in_tokenizer(why: impl std::fmt::Display) -> Error {
    Error::Tokenizer(format!("tokenizer.json cannot be used: {why}"))
}

/// The tokens `<0x00>` to `<0xFF>`, where the decoder makes bytes of them.
fn fallback_bytes(inner: &tokenizers::Tokenizer) -> HashMap<u32, u8> {
    let decoder = inner.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok());
    if !decoder.is_some_and(|decoder| decoder.contains("\"ByteFallback\"")) {
        return HashMap::new();
    }
    let token = |byte: u8| Some((inner.token_to_id(&format!("<0x{byte:02X}>"))?, byte));
    (0..=u8::MAX).filter_map(token).collect()
}
