//! Tokens with a part to play: `bos_token`, `eos_token` and their like.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// Their texts by their names.
#[derive(Debug, Default)]
pub(crate) struct SpecialTokens(BTreeMap<&'static str, String>);

/// The names that templates know.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];

impl SpecialTokens {
    /// Reads a `tokenizer_config.json`, and a `special_tokens_map.json` for what that does not say.
    pub(crate) fn read(config: &Value, map: &Value) -> Self {
        let text = |value: &Value| match value.get("content") {
            Some(content) => content.as_str().map(str::to_owned),
            None => value.as_str().map(str::to_owned),
        };
        let token = |name| [config, map].iter().find_map(|file| text(file.get(name)?));
        Self(NAMES.into_iter().filter_map(|name| Some((name, token(name)?))).collect())
    }

    /// Names and texts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(&name, text)| (name, text.as_str()))
    }

    /// The id of `eos_token`, from the files in which it may stand; `tokenizer` is read only if it does not stand in
    /// `config`.
    pub(crate) fn end_id(&self, config: &Value, tokenizer: impl FnOnce() -> Option<Vec<u8>>) -> Option<u32> {
        let end = self.0.get("eos_token")?;
        let listed = config.get("added_tokens_decoder").and_then(Value::as_object);
        let mut listed = listed.into_iter().flatten();
        let found = listed.find(|(_, token)| token.get("content").and_then(Value::as_str) == Some(end));
        match found {
            Some((id, _)) => id.parse().ok(),
            None => id_of(end, &tokenizer()?),
        }
    }
}

/// The id of a token in a `tokenizer.json`, of which little is kept.
fn id_of(text: &str, tokenizer: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
        #[serde(default)]
        model: Model,
    }
    #[derive(Default, Deserialize)]
    struct Model {
        #[serde(default)]
        vocab: Vocabulary,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Vocabulary {
        Ids(BTreeMap<String, u32>),
        Other(IgnoredAny),
    }
    impl Default for Vocabulary {
        fn default() -> Self {
            Self::Other(IgnoredAny)
        }
    }
    let file: File = serde_json::from_slice(tokenizer).ok()?;
    let added = file.added_tokens.iter().find(|token| token.content == text).map(|token| token.id);
    added.or_else(|| match &file.model.vocab {
        Vocabulary::Ids(ids) => ids.get(text).copied(),
        Vocabulary::Other(_) => None,
    })
}
