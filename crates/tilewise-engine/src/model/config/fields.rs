//! Fields of a JSON object.

use serde_json::{Map, Value};
use tilewise::DType;

use crate::model::{FAMILIES, Family};
use crate::{Error, Result};

/// Reads fields of a JSON object whose every value may be hostile.
pub(super) struct Fields<'a> {
    pub(super) file: &'a str,
    pub(super) object: &'a Map<String, Value>,
}

impl Fields<'_> {
    pub(super) fn wrong(&self, key: &str, why: impl std::fmt::Display) -> Error {
        Error::file(self.file, format!("{key}: {why}"))
    }

    /// The value of a key that is present and not null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn size(&self, key: &str, max: usize, default: Option<usize>) -> Result<usize> {
        let Some(value) = self.get(key) else {
            return default.ok_or_else(|| self.wrong(key, "is missing"));
        };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n));
        size.ok_or_else(|| self.wrong(key, format!("must be an integer from 1 to {max}, got {value}")))
    }

    pub(super) fn number(&self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|x| range.contains(x)) {
            Some(x) => Ok(Some(x)),
            None => {
                let (low, high) = (range.start(), range.end());
                Err(self.wrong(key, format!("must be a number from {low} to {high}, got {value}")))
            }
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.wrong(key, format!("must be true or false, got {value}")))
            }
        }
    }

    /// The token ids of a key, one or a list. An id that the vocabulary has not can never be drawn: it is left out.
    pub(super) fn token_ids(
        &self,
        key: &str,
        vocab_size: usize,
        notes: &mut Vec<String>,
    ) -> Result<Vec<u32>> {
        let ids: Vec<&Value> = match self.get(key) {
            None => Vec::new(),
            Some(Value::Array(ids)) => ids.iter().collect(),
            Some(id) => vec![id],
        };
        let mut known = Vec::new();
        for value in ids {
            if !value.is_i64() && !value.is_u64() {
                return Err(self.wrong(key, format!("must be token ids, got {value}")));
            }
            match value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .filter(|&id| (id as usize) < vocab_size)
            {
                Some(id) => known.push(id),
                None => notes.push(format!(
                    "{}: {key} {value} is ignored: the vocabulary has {vocab_size} tokens",
                    self.file
                )),
            }
        }
        Ok(known)
    }

    pub(super) fn family(&self) -> Result<&'static Family> {
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
    pub(super) fn refuse_unsupported(&self) -> Result<()> {
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
        if let Some(Value::Array(types)) = self.get("layer_types")
            && let Some(kind) = types.iter().find(|kind| *kind != "full_attention")
        {
            return refuse("layer_types", kind, "this family attends to every earlier token here");
        }
        if let Some(value) = self.get("quantization_config") {
            return refuse("quantization_config", value, "give weights in f32, f16 or bf16");
        }
        Ok(())
    }

    pub(super) fn dtype(&self) -> Result<Option<DType>> {
        let Some(value) = self.get("dtype").or_else(|| self.get("torch_dtype")) else { return Ok(None) };
        let name = value.as_str().map(|name| name.strip_prefix("torch.").unwrap_or(name));
        if name == Some("auto") {
            return Ok(None);
        }
        let dtype = name.and_then(|name| name.parse().ok());
        dtype
            .map(Some)
            .ok_or_else(|| self.wrong("dtype", format!("must be float32, float16 or bfloat16, got {value}")))
    }
}
