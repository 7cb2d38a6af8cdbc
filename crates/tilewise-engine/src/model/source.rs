//! Where a model comes from.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{ModelConfig, Weights, files, hub};
use crate::cache::keys::NAME_BYTES;
use crate::tokenizer::{SpecialTokens, Tokenizer, TokenizerFiles};
use crate::{Error, Result};

/// A model inside the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedModel {
    /// Its name in messages.
    pub name: &'static str,
    /// `config.json`.
    pub config: &'static str,
    /// `generation_config.json`.
    pub generation_config: &'static str,
    /// `model.safetensors`.
    pub weights: &'static [u8],
    /// `tokenizer.json`.
    pub tokenizer: &'static [u8],
    /// `tokenizer_config.json`.
    pub tokenizer_config: &'static str,
}

/// Where configuration, weights and tokenizer are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder as Hugging Face lays it out.
    Folder(PathBuf),
    /// Random weights for the `config.json` of a folder, which may hold nothing else.
    Dummy(PathBuf),
    /// Bytes inside the program.
    Embedded(EmbeddedModel),
}

impl ModelSource {
    /// What to call it in messages.
    pub fn name(&self) -> String {
        match self {
            Self::Folder(folder) | Self::Dummy(folder) => {
                self.repository().unwrap_or_else(|| folder.display().to_string())
            }
            Self::Embedded(model) => model.name.to_owned(),
        }
    }

    /// `org/name`, where the folder is a snapshot in a Hugging Face cache.
    pub fn repository(&self) -> Option<String> {
        match self {
            Self::Folder(folder) | Self::Dummy(folder) => hub::repository_of(folder),
            Self::Embedded(_) => None,
        }
    }

    /// The model's name in the keys of cached chunks: that of its folder, with what keys cannot carry replaced.
    pub(crate) fn key_name(&self) -> String {
        let name = match self {
            Self::Folder(folder) | Self::Dummy(folder) => {
                let whole = folder.canonicalize().unwrap_or_else(|_| folder.clone());
                let name = || whole.file_name().map(|name| name.to_string_lossy().into_owned());
                self.repository().map(|name| name.replace('/', "_")).or_else(name)
            }
            Self::Embedded(model) => Some(model.name.to_owned()),
        };
        let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| "model".to_owned());
        let carried = |c: char| if c == '@' || c.is_control() { '_' } else { c };
        let mut bytes = 0;
        let fits = |c: &char| {
            bytes += c.len_utf8();
            bytes <= NAME_BYTES
        };
        name.chars().map(carried).take_while(fits).collect()
    }

    /// The sizes, and the tokens that end a text: those of `config.json`, of `generation_config.json` and the tokenizer's
    /// `eos_token`.
    ///
    /// # Errors
    /// As [`ModelConfig::from_json`], and [`Error::File`] for a file that cannot be read.
    pub fn config(&self) -> Result<ModelConfig> {
        let (mut config, end) = match self {
            Self::Folder(folder) | Self::Dummy(folder) => {
                let folder = &**folder;
                let path = folder.join("config.json");
                if folder.is_dir() && !files::is_there(&path) {
                    return Err(files::not_a_model(folder, "has no config.json"));
                }
                let mut config =
                    ModelConfig::from_json(&path.display().to_string(), &files::read_text(&path)?)?;
                let path = folder.join("generation_config.json");
                if let Some(json) = files::read_optional(&path)? {
                    config = config.with_generation_config(&path.display().to_string(), &json)?;
                }
                let json =
                    |name: &str| Ok::<_, Error>(parse(files::read_optional(&folder.join(name))?.as_deref()));
                let (tokens, map) = (json("tokenizer_config.json")?, json("special_tokens_map.json")?);
                let tokenizer = || std::fs::read(folder.join("tokenizer.json")).ok();
                let end = SpecialTokens::read(&tokens, &map).end_id(&tokens, tokenizer);
                (config, end)
            }
            Self::Embedded(model) => {
                let config = ModelConfig::from_json("config.json", model.config)?;
                let config =
                    config.with_generation_config("generation_config.json", model.generation_config)?;
                let tokens = parse(Some(model.tokenizer_config));
                let special = SpecialTokens::read(&tokens, &Value::Null);
                let end = special.end_id(&tokens, || Some(model.tokenizer.to_vec()));
                (config, end)
            }
        };
        end.into_iter().for_each(|id| config.add_eos_id(id));
        Ok(config)
    }

    /// The sizes and the weights, which fit together: an output matrix that is not the embedding is used, also where the
    /// configuration says that the embedding is it, with a note.
    ///
    /// # Errors
    /// As [`ModelSource::config`], [`ModelSource::weights`] and [`Weights::check`].
    pub fn open(&self) -> Result<(ModelConfig, Weights)> {
        let (mut config, weights) = (self.config()?, self.weights()?);
        if config.tie_word_embeddings && weights.has_own_head(&config) {
            config.tie_word_embeddings = false;
            let why = "lm_head.weight differs from the embedding and is used, though config.json has \
                       tie_word_embeddings";
            config.notes.push(format!("{}: {why}", self.name()));
        }
        weights.check(&config)?;
        Ok((config, weights))
    }

    /// The weights, mapped but not read.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn weights(&self) -> Result<Weights> {
        match self {
            Self::Folder(folder) => Weights::open(folder),
            Self::Dummy(_) => Ok(Weights::dummy()),
            Self::Embedded(model) => Weights::from_bytes("model.safetensors", model.weights),
        }
    }

    /// The tokenizer with its chat template.
    ///
    /// # Errors
    /// As [`Tokenizer::from_files`], and [`Error::File`] for a file that cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match self {
            Self::Folder(folder) | Self::Dummy(folder) => read_tokenizer(folder),
            Self::Embedded(model) => {
                Tokenizer::from_bytes(model.tokenizer, Some(model.tokenizer_config), None)
            }
        }
    }

    /// Whether there is a tokenizer, be it a broken one.
    pub fn has_tokenizer(&self) -> bool {
        match self {
            Self::Folder(folder) | Self::Dummy(folder) => files::is_there(&folder.join("tokenizer.json")),
            Self::Embedded(_) => true,
        }
    }
}

fn read_tokenizer(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    if !files::is_there(&path) {
        let others = ["tokenizer.model", "vocab.json", "tiktoken.model"];
        let other = others.into_iter().find(|name| files::is_there(&folder.join(name)));
        let why = match other {
            Some(other) => format!(
                "is not there, but {other}: load the tokenizer with transformers and save it with save_pretrained"
            ),
            None => "is not there, and text needs it; put the model's own beside its config.json".to_owned(),
        };
        return Err(Error::file(path.display().to_string(), why));
    }
    let tokenizer = files::read(&path)?;
    let optional = |name: &str| files::read_optional(&folder.join(name));
    let (config, special) = (optional("tokenizer_config.json")?, optional("special_tokens_map.json")?);
    let (template, template_json) = (optional("chat_template.jinja")?, optional("chat_template.json")?);
    Tokenizer::from_files(&TokenizerFiles {
        place: &format!("{}/", folder.display()),
        tokenizer: &tokenizer,
        config: config.as_deref(),
        special_tokens: special.as_deref(),
        template: template.as_deref(),
        template_json: template_json.as_deref(),
    })
}

/// A file of the tokenizer's; one that cannot be parsed is told where the tokenizer is loaded.
fn parse(json: Option<&str>) -> Value {
    json.and_then(|json| serde_json::from_str(json.trim_start_matches('\u{feff}')).ok()).unwrap_or_default()
}
