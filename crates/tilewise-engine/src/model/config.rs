//! Sizes of a model, from Hugging Face's `config.json`.

use serde_json::{Map, Value};
use tilewise::DType;

use crate::model::{FAMILIES, Family};
use crate::{Error, Result};

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
}

impl ModelConfig {
    /// Reads a configuration; `file` names it in errors.
    ///
    /// # Errors
    /// [`Error::File`] that names the key that is missing or absurd, [`Error::Unsupported`] for an
    /// architecture or
    /// feature that there is no code for.
    pub fn from_json(file: &str, json: &str) -> Result<Self> {
        let object: Map<String, Value> = serde_json::from_str(json).map_err(|e| Error::file(file, e))?;
        let fields = Fields { file, object: &object };
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
            rope_theta: fields.rope_theta()?,
            max_positions: fields.size("max_position_embeddings", 1 << 30, Some(32768))?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: fields.flag("attention_bias")?,
            eos_ids: fields.token_ids("eos_token_id", vocab_size)?,
            dtype: fields.dtype()?,
        })
    }

    /// Takes the end-of-text tokens from Hugging Face's `generation_config.json`, which come before those of
    /// `config.json`, if it names any.
    ///
    /// # Errors
    /// [`Error::File`] if it is not what it should be.
    pub fn with_generation_config(mut self, file: &str, json: &str) -> Result<Self> {
        let object: Map<String, Value> = serde_json::from_str(json).map_err(|e| Error::file(file, e))?;
        let ids = Fields { file, object: &object }.token_ids("eos_token_id", self.vocab_size)?;
        if !ids.is_empty() {
            self.eos_ids = ids;
        }
        Ok(self)
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

/// Reads fields of a JSON object whose every value may be hostile.
struct Fields<'a> {
    file: &'a str,
    object: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn wrong(&self, key: &str, why: impl std::fmt::Display) -> Error {
        Error::file(self.file, format!("{key}: {why}"))
    }

    /// The value of a key that is present and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str, max: usize, default: Option<usize>) -> Result<usize> {
        let Some(value) = self.get(key) else {
            return default.ok_or_else(|| self.wrong(key, "is missing"));
        };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n));
        size.ok_or_else(|| self.wrong(key, format!("must be an integer from 1 to {max}, got {value}")))
    }

    fn number(&self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|x| range.contains(x)) {
            Some(x) => Ok(Some(x)),
            None => {
                let (low, high) = (range.start(), range.end());
                Err(self.wrong(key, format!("must be a number from {low} to {high}, got {value}")))
            }
        }
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.wrong(key, format!("must be true or false, got {value}")))
            }
        }
    }

    fn token_ids(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>> {
        let ids: Vec<&Value> = match self.get(key) {
            None => Vec::new(),
            Some(Value::Array(ids)) => ids.iter().collect(),
            Some(id) => vec![id],
        };
        let id = |value: &Value| {
            let id =
                value.as_u64().filter(|&id| id < vocab_size as u64).and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.wrong(key, format!("must be token ids below {vocab_size}, got {value}")))
        };
        ids.into_iter().map(id).collect()
    }

    fn family(&self) -> Result<&'static Family> {
        let known = || FAMILIES.iter().map(|family| family.architecture).collect::<Vec<_>>().join(", ");
        let Some(Value::Array(names)) = self.get("architectures") else {
            return Err(self.wrong("architectures", format!("must be a list with one of {}", known())));
        };
        let family = FAMILIES.iter().find(|family| names.iter().any(|name| name == family.architecture));
        family.ok_or_else(|| {
            let names = names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Error::unsupported(
                format!("the architecture {names}"),
                format!("{} has none of: {}", self.file, known()),
            )
        })
    }

    /// Refuses what would change the result if it were ignored.
    fn refuse_unsupported(&self) -> Result<()> {
        let refuse = |key: &str, value: &Value, why: &str| {
            Err(Error::unsupported(format!("{key} = {value}"), format!("{} asks for it; {why}", self.file)))
        };
        if let Some(value) = self.get("hidden_act").filter(|value| *value != "silu") {
            return refuse("hidden_act", value, "only silu is built");
        }
        if self.flag("use_sliding_window")? {
            return refuse(
                "use_sliding_window",
                &Value::Bool(true),
                "this family attends to every earlier token here",
            );
        }
        for key in ["rope_scaling", "rope_parameters"] {
            let kind = self.get(key).and_then(|rope| rope.get("rope_type").or_else(|| rope.get("type")));
            if let Some(kind) = kind.filter(|kind| *kind != "default") {
                return refuse(&format!("{key}.rope_type"), kind, "only unscaled rotary positions are built");
            }
            let partial = self.get(key).and_then(|rope| rope.get("partial_rotary_factor"));
            if let Some(factor) = partial.filter(|factor| factor.as_f64() != Some(1.0)) {
                return refuse(
                    &format!("{key}.partial_rotary_factor"),
                    factor,
                    "only whole heads are rotated",
                );
            }
        }
        if let Some(value) = self.get("rope_scaling").filter(|value| value.get("factor").is_some()) {
            return refuse("rope_scaling", value, "only unscaled rotary positions are built");
        }
        if let Some(value) = self.get("quantization_config") {
            return refuse("quantization_config", value, "give weights in f32, f16 or bf16");
        }
        Ok(())
    }

    /// `rope_theta`, which newer files keep under `rope_parameters`.
    fn rope_theta(&self) -> Result<f64> {
        let range = 1.0..=1e12;
        if let Some(Value::Object(object)) = self.get("rope_parameters")
            && let Some(theta) = (Fields { file: self.file, object }).number("rope_theta", range.clone())?
        {
            return Ok(theta);
        }
        Ok(self.number("rope_theta", range)?.unwrap_or(10_000.0))
    }

    fn dtype(&self) -> Result<Option<DType>> {
        let Some(value) = self.get("dtype").or_else(|| self.get("torch_dtype")) else { return Ok(None) };
        let dtype = value.as_str().and_then(|name| name.parse().ok());
        dtype
            .map(Some)
            .ok_or_else(|| self.wrong("dtype", format!("must be float32, float16 or bfloat16, got {value}")))
    }
}
