//! Where a model comes from.

use std::path::{Path, PathBuf};

use crate::cache::keys::NAME_BYTES;
use crate::model::{ModelConfig, Weights};
use crate::tokenizer::Tokenizer;
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
            Self::Folder(folder) | Self::Dummy(folder) => folder.display().to_string(),
            Self::Embedded(model) => model.name.to_owned(),
        }
    }

    /// The model's name in the keys of cached chunks: that of its folder, with what keys cannot carry replaced.
    pub(crate) fn key_name(&self) -> String {
        let name = match self {
            Self::Folder(folder) | Self::Dummy(folder) => {
                let whole = folder.canonicalize().unwrap_or_else(|_| folder.clone());
                whole.file_name().map(|name| name.to_string_lossy().into_owned())
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

    /// The sizes.
    ///
    /// # Errors
    /// As [`ModelConfig::from_json`], and [`Error::File`] for a file that cannot be read.
    pub fn config(&self) -> Result<ModelConfig> {
        match self {
            Self::Folder(folder) | Self::Dummy(folder) => {
                let path = folder.join("config.json");
                let config = ModelConfig::from_json(&path.display().to_string(), &read(&path)?)?;
                let path = folder.join("generation_config.json");
                match path.exists() {
                    true => config.with_generation_config(&path.display().to_string(), &read(&path)?),
                    false => Ok(config),
                }
            }
            Self::Embedded(model) => {
                let config = ModelConfig::from_json("config.json", model.config)?;
                config.with_generation_config("generation_config.json", model.generation_config)
            }
        }
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
    /// As [`Tokenizer::from_bytes`], and [`Error::File`] for a file that cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match self {
            Self::Folder(folder) | Self::Dummy(folder) => {
                let path = folder.join("tokenizer.json");
                let json = std::fs::read(&path).map_err(|e| Error::file(path.display().to_string(), e))?;
                let optional = |name: &str| {
                    let path = folder.join(name);
                    if path.exists() { read(&path).map(Some) } else { Ok(None) }
                };
                let template = optional("chat_template.jinja")?;
                Tokenizer::from_bytes(&json, optional("tokenizer_config.json")?.as_deref(), template)
            }
            Self::Embedded(model) => {
                Tokenizer::from_bytes(model.tokenizer, Some(model.tokenizer_config), None)
            }
        }
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::file(path.display().to_string(), e))
}
