//! What a configuration says of rotary positions, in any of the places where it may say it.

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::{Error, Result};

/// Keys of a rope object that are read, or that only scalings read which are refused.
const KNOWN: &[&str] = &[
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "high_freq_factor",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_type",
    "truncate",
    "type",
];

/// Scalings that divide wavelengths by a factor, so that a factor of 1 changes nothing.
const SCALINGS: &[&str] = &["linear", "dynamic", "yarn", "llama3"];

/// The kind of layer that is built, as `layer_types` names it.
const LAYER: &str = "full_attention";

/// The base of the rotary wavelengths. The objects `rope_parameters` and `rope_scaling` come before the key at the top, as
/// in transformers; a value that is set aside is said in `notes`.
///
/// # Errors
/// [`Error::File`] for a value that means nothing, [`Error::Unsupported`] that names what would change the result.
pub(super) fn theta(fields: &Fields<'_>, notes: &mut Vec<String>) -> Result<f64> {
    let mut found: Vec<(String, f64)> = Vec::new();
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = fields.get(key) else { continue };
        let Value::Object(object) = value else {
            return Err(fields.wrong(key, format!("must be an object, got {value}")));
        };
        let (path, object) = of_layer(fields, key, object)?;
        let rope = Rope { fields: Fields { file: fields.file, object }, path };
        rope.refuse_unsupported()?;
        found.extend(rope.fields.number("rope_theta", 1.0..=1e12)?.map(|theta| (rope.path, theta)));
    }
    found.extend(fields.number("rope_theta", 1.0..=1e12)?.map(|theta| ("the top".to_owned(), theta)));
    let Some((place, theta)) = found.first() else { return Ok(10_000.0) };
    if let Some((other, aside)) = found.iter().find(|(_, other)| other != theta) {
        let file = fields.file;
        notes.push(format!("{file}: rope_theta is {theta} in {place}; {aside} in {other} is ignored"));
    }
    Ok(*theta)
}

/// The object for layers of full attention, with its path, where there is one per layer type.
fn of_layer<'a>(
    fields: &Fields<'_>,
    key: &str,
    object: &'a Map<String, Value>,
) -> Result<(String, &'a Map<String, Value>)> {
    let by_layer = !object.is_empty() && object.values().all(|value| value.is_object() || value.is_null());
    if !by_layer {
        return Ok((key.to_owned(), object));
    }
    if let Some(Value::Object(layer)) = object.get(LAYER) {
        return Ok((format!("{key}.{LAYER}"), layer));
    }
    let types = object.keys().cloned().collect::<Vec<_>>().join(", ");
    Err(Error::unsupported(
        format!("{key} for {types}"),
        format!("{} asks for it; layers of {LAYER} are built", fields.file),
    ))
}

struct Rope<'a> {
    fields: Fields<'a>,
    /// The object's name in errors.
    path: String,
}

impl Rope<'_> {
    /// Refuses what would change the result.
    fn refuse_unsupported(&self) -> Result<()> {
        let refuse = |key: &str, value: &Value, why: &str| {
            let (path, file) = (&self.path, self.fields.file);
            Err(Error::unsupported(format!("{path}.{key} = {value}"), format!("{file} asks for it; {why}")))
        };
        let unknown =
            self.fields.object.iter().find(|(key, value)| !value.is_null() && !KNOWN.contains(&key.as_str()));
        if let Some((key, value)) = unknown {
            return refuse(key, value, "this key of rotary positions is not known here");
        }
        let is_one = |key: &str| self.fields.get(key).is_none_or(|value| value.as_f64() == Some(1.0));
        for (key, why) in [
            ("partial_rotary_factor", "only whole heads are rotated"),
            ("attention_factor", "attention is not scaled by positions here"),
        ] {
            if !is_one(key) {
                return refuse(key, &self.fields.object[key], why);
            }
        }
        const UNSCALED: &str = "only unscaled rotary positions are built";
        let kind = ["rope_type", "type"].into_iter().find_map(|key| Some((key, self.fields.get(key)?)));
        let is_scaling = kind.is_some_and(|(_, kind)| SCALINGS.iter().any(|scaling| kind == scaling));
        match kind {
            Some((key, kind)) if kind != "default" => {
                let changes_nothing = is_scaling && self.fields.get("factor").is_some() && is_one("factor");
                if changes_nothing { Ok(()) } else { refuse(key, kind, UNSCALED) }
            }
            _ if is_one("factor") => Ok(()),
            _ => refuse("factor", &self.fields.object["factor"], UNSCALED),
        }
    }
}
