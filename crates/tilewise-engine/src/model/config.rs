//! Sizes of a model, from Hugging Face's `config.json`.

mod fields;
mod rope;
mod sampling;

use serde_json::{Map, Value};
use tilewise::DType;

use crate::model::Family;
use crate::{Error, Result};
use fields::Fields;
pub use sampling::SamplingDefaults;

/// The sizes and constants of a decoder.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Builds the model.
    pub family: &'static Family,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Elements of the residual stream.
    pub hidden_size: usize,
    /// Elements between the two products of a feed-forward layer.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_qo_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Added to the mean square in a norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary wavelengths.
    pub rope_theta: f64,
    /// Tokens that a sequence may have.
    pub max_positions: usize,
    /// Whether the embedding is the output matrix too.
    pub tie_word_embeddings: bool,
    /// Whether the attention's products have biases.
    pub attention_bias: bool,
    /// Tokens that end a text.
    pub eos_ids: Vec<u32>,
    /// Element type that the file declares.
    pub dtype: Option<DType>,
    /// How the model's makers want tokens to be drawn.
    pub sampling_defaults: SamplingDefaults,
    /// What the files say that is set aside, each in a sentence for whoever loads the model.
    pub notes: Vec<String>,
}

impl ModelConfig {
    /// Reads a configuration; `file` names it in errors.
    ///
    /// # Errors
    /// [`Error::File`] that names the key that is missing or absurd, [`Error::Unsupported`] for an
    /// architecture or
    /// feature that there is no code for.
    pub fn from_json(file: &str, json: &str) -> Result<Self> {
        let object = parse(file, json)?;
        let fields = Fields { file, object: &object };
        let mut notes = Vec::new();
        let family = fields.family()?;
        fields.refuse_unsupported()?;
        let hidden_size = fields.size("hidden_size", 1 << 20, None)?;
        let num_qo_heads = fields.size("num_attention_heads", 1 << 14, None)?;
        let num_kv_heads = fields.size("num_key_value_heads", 1 << 14, Some(num_qo_heads))?;
        if !num_qo_heads.is_multiple_of(num_kv_heads) {
            let why = format!("{num_kv_heads} does not divide num_attention_heads ({num_qo_heads})");
            return Err(fields.wrong("num_key_value_heads", why));
        }
        let vocab_size = fields.size("vocab_size", 1 << 24, None)?;
        Ok(Self {
            family,
            vocab_size,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", 1 << 22, None)?,
            num_layers: fields.size("num_hidden_layers", 1 << 12, None)?,
            num_qo_heads,
            num_kv_heads,
            head_dim: fields.size("head_dim", 512, Some(hidden_size / num_qo_heads))?,
            rms_norm_eps: fields.number("rms_norm_eps", 0.0..=1.0)?.unwrap_or(1e-6) as f32,
            rope_theta: rope::theta(&fields, &mut notes)?,
            max_positions: fields.size("max_position_embeddings", 1 << 30, Some(32768))?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: fields.flag("attention_bias")?,
            eos_ids: fields.token_ids("eos_token_id", vocab_size, &mut notes)?,
            dtype: fields.dtype()?,
            sampling_defaults: SamplingDefaults::default(),
            notes,
        })
    }

    /// Adds the end-of-text tokens of Hugging Face's `generation_config.json` to those of `config.json`, and takes its
    /// sampling defaults.
    ///
    /// # Errors
    /// [`Error::File`] if it is not what it should be.
    pub fn with_generation_config(mut self, file: &str, json: &str) -> Result<Self> {
        let object = parse(file, json)?;
        let fields = Fields { file, object: &object };
        self.sampling_defaults = SamplingDefaults::read(&fields, &mut self.notes);
        let ids = fields.token_ids("eos_token_id", self.vocab_size, &mut self.notes)?;
        ids.into_iter().for_each(|id| self.add_eos_id(id));
        Ok(self)
    }

    /// Lets a token end texts, if the vocabulary has it.
    pub(crate) fn add_eos_id(&mut self, id: u32) {
        if (id as usize) < self.vocab_size && !self.eos_ids.contains(&id) {
            self.eos_ids.push(id);
        }
    }

    /// The number of weights.
    pub fn num_parameters(&self) -> usize {
        let (q, kv) = (self.num_qo_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        let bias = if self.attention_bias { q + 2 * kv + self.hidden_size } else { 0 };
        let attention = self.hidden_size * (2 * q + 2 * kv) + bias + 2 * self.head_dim;
        let layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size;
        let vocabularies = if self.tie_word_embeddings { 1 } else { 2 };
        vocabularies * self.vocab_size * self.hidden_size + self.num_layers * layer + self.hidden_size
    }

    /// Bytes that one token's keys and values take in all layers.
    pub fn kv_bytes_per_token(&self, dtype: DType) -> usize {
        2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.size()
    }
}

/// The object that a file holds; a mark before UTF-8 is no part of it.
fn parse(file: &str, json: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(json.trim_start_matches('\u{feff}')).map_err(|e| Error::file(file, e))
}
