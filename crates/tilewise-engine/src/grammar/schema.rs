//! JSON schemas as clients write them, made ready for the parser.

use serde_json::{Map, Value, json};

/// Remainders that a schema may tell apart.
const MOST_REMAINDERS: u64 = 20_000;

/// Formats of strings that are enforced; all others are annotations.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Keywords whose values are data, not schemas.
const DATA: [&str; 5] = ["const", "enum", "default", "example", "examples"];

/// Keywords whose values are schemas by names of their own.
const NAMED: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];

/// The keyword by which a schema sets the parser's own options.
const OPTIONS: &str = "x-guidance";

/// A schema whose texts end: between two tokens stands what `json.dumps` of Python writes, and nothing else. White space
/// that is free is legal for ever, and a model that has begun with it often goes on.
///
/// Keywords that cannot be enforced are ignored unless `strict`; then the parser refuses them by name. Options of the
/// schema's own come first.
pub(super) fn prepared(schema: &Value, strict: bool) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => Value::Object(Map::new()),
        other => other.clone(),
    };
    if strict {
        drop_annotations(&mut schema);
    }
    if let Some(fields) = schema.as_object_mut() {
        let spaced =
            || json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        let options = fields.entry(OPTIONS).or_insert_with(spaced);
        if let Some(options) = options.as_object_mut() {
            options.entry("lenient").or_insert(Value::Bool(!strict));
        }
    }
    schema
}

/// Leaves out formats that nobody enforces.
fn drop_annotations(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(drop_annotations),
        Value::Object(fields) => {
            let is_annotation =
                fields.get("format").and_then(Value::as_str).is_some_and(|name| !FORMATS.contains(&name));
            if is_annotation {
                fields.remove("format");
            }
            for (name, value) in fields.iter_mut().filter(|(name, _)| !DATA.contains(&name.as_str())) {
                match value.as_object_mut().filter(|_| NAMED.contains(&name.as_str())) {
                    Some(schemas) => schemas.values_mut().for_each(drop_annotations),
                    None => drop_annotations(value),
                }
            }
        }
        _ => {}
    }
}

/// Refuses multiples of large numbers: the grammar has a state for each remainder, and a million of them take ten seconds.
///
/// # Errors
/// What is wrong, as the end of a sentence that names the schema.
pub fn check_multiples(schema: &Value) -> Result<(), String> {
    match common_multiple(schema, 1) {
        Some(_) => Ok(()),
        None => Err(format!("multipleOf must divide a number up to {MOST_REMAINDERS}")),
    }
}

/// The least common multiple of all `multipleOf` in a schema and `so_far`, whatever the place of their decimal point; `None`
/// above the limit.
fn common_multiple(schema: &Value, so_far: u64) -> Option<u64> {
    match schema {
        Value::Array(values) => {
            values.iter().try_fold(so_far, |so_far, value| common_multiple(value, so_far))
        }
        Value::Object(fields) => fields.iter().try_fold(so_far, |so_far, (name, value)| match value {
            Value::Number(number) if name == "multipleOf" => {
                let digits: u64 =
                    number.to_string().replace('.', "").parse().ok().filter(|&digits| digits > 0)?;
                let multiple = so_far.checked_mul(digits / greatest_divisor(so_far, digits))?;
                (multiple <= MOST_REMAINDERS).then_some(multiple)
            }
            value => common_multiple(value, so_far),
        }),
        _ => Some(so_far),
    }
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}
