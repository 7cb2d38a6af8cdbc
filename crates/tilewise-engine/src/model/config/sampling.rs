//! How a model's makers want its tokens to be drawn.

use serde_json::Value;

use super::fields::Fields;

/// What `generation_config.json` says of drawing tokens, for requests that do not say it themselves.
///
/// A value that is there is one that [`crate::SamplingParams::validate`] takes, and means the same there.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Divides the logits; 0, which is greedy, where the file says `"do_sample": false`.
    pub temperature: Option<f32>,
    /// Keeps the fewest most probable tokens whose probabilities reach this sum.
    pub top_p: Option<f32>,
    /// Keeps this many of the most probable tokens; `None` also where the file says 0, which keeps all.
    pub top_k: Option<usize>,
    /// Keeps the tokens whose probability is at least this much of the largest.
    pub min_p: Option<f32>,
    /// Divides the logits above zero, and multiplies the others, of tokens that the text has.
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// Reads them; a value that means nothing is left out and said in `notes`, since the model runs without it.
    pub(super) fn read(fields: &Fields<'_>, notes: &mut Vec<String>) -> Self {
        let mut number = |key: &str, expected: &str, is_valid: fn(f32) -> bool| {
            let value = fields.get(key)?;
            let number = value.as_f64().map(|x| x as f32).filter(|&x| is_valid(x));
            if number.is_none() {
                notes.push(ignored(fields.file, key, expected, value));
            }
            number
        };
        let temperature = number("temperature", "finite and at least 0", |x| x.is_finite() && x >= 0.0);
        let top_p = number("top_p", "above 0 and at most 1", |x| x > 0.0 && x <= 1.0);
        let min_p = number("min_p", "from 0 to 1", |x| (0.0..=1.0).contains(&x));
        let penalty = number("repetition_penalty", "from 0.000001 to 1000000", |x| (1e-6..=1e6).contains(&x));
        let is_greedy = fields.get("do_sample") == Some(&Value::Bool(false));
        Self {
            temperature: if is_greedy { Some(0.0) } else { temperature },
            top_p,
            top_k: top_k(fields, notes),
            min_p,
            repetition_penalty: penalty,
        }
    }
}

/// `top_k`, where 0 and -1 are written to mean all tokens.
fn top_k(fields: &Fields<'_>, notes: &mut Vec<String>) -> Option<usize> {
    let value = fields.get("top_k")?;
    match value.as_f64() {
        Some(x) if x == 0.0 || x == -1.0 => None,
        Some(x) if x.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(&x) => Some(x as usize),
        _ => {
            notes.push(ignored(fields.file, "top_k", "an integer of at least 0", value));
            None
        }
    }
}

fn ignored(file: &str, key: &str, expected: &str, value: &Value) -> String {
    format!("{file}: {key} is ignored: it must be {expected}, got {value}")
}
