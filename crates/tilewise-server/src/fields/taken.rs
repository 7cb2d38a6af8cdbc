//! Fields that clients and routers send and that mean nothing here: which values of them are harmless.

use serde_json::{Value, json};

/// The values of a field that are taken, besides null.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Taken {
    /// Any: it says something to others.
    Any,
    /// None: what it asks for cannot be done here, whatever the value.
    Null,
    /// Only this switch.
    Only(bool),
    /// Only 0.
    Zero,
    /// Only an empty list.
    Empty,
    /// Only these words, or a list of them.
    Words(&'static [&'static str]),
}

use Taken::{Any, Empty, Null, Only, Words, Zero};

/// All of them, whichever endpoint they are sent to.
const TAKEN: [(&str, Taken); 62] = [
    // What OpenAI's SDKs and popular clients send.
    ("user", Any),
    ("metadata", Any),
    ("store", Any),
    ("include", Any),
    ("service_tier", Any),
    ("verbosity", Any),
    ("prompt_cache_key", Any),
    ("prompt_cache_retention", Any),
    ("safety_identifier", Any),
    ("cache_control", Any),
    ("include_obfuscation", Any),
    ("max_tool_calls", Any),
    ("modalities", Words(&["text"])),
    ("functions", Empty),
    ("function_call", Words(&["none", "auto"])),
    ("truncation", Words(&["disabled"])),
    ("background", Only(false)),
    ("audio", Null),
    ("prediction", Null),
    ("web_search_options", Null),
    ("conversation", Null),
    ("previous_response_id", Null),
    ("suffix", Null),
    // What vLLM's and SGLang's clients and routers add.
    ("spaces_between_special_tokens", Any),
    ("log_metrics", Any),
    ("no_logs", Any),
    ("priority", Any),
    ("custom_labels", Any),
    ("stream_interval", Any),
    ("truncate_prompt_tokens", Null),
    ("add_generation_prompt", Only(true)),
    ("echo_prompt", Only(false)),
    ("include_stop_str_in_output", Only(false)),
    ("skip_special_tokens", Only(true)),
    ("stream_reasoning", Only(true)),
    ("no_stop_trim", Only(false)),
    ("return_hidden_states", Only(false)),
    ("return_bytes", Only(false)),
    ("return_entropy", Only(false)),
    ("use_beam_search", Only(false)),
    ("min_tokens", Zero),
    ("min_new_tokens", Zero),
    ("ebnf", Null),
    ("structural_tag", Null),
    ("stop_regex", Null),
    ("lora_path", Null),
    ("lora_id", Null),
    ("session_params", Null),
    ("custom_params", Null),
    ("custom_logit_processor", Null),
    ("token_ids_logprob", Null),
    ("input_embeds", Null),
    ("image_data", Null),
    ("video_data", Null),
    ("audio_data", Null),
    ("bootstrap_host", Null),
    ("bootstrap_port", Null),
    ("bootstrap_room", Null),
    ("bootstrap_pair_key", Null),
    ("data_parallel_rank", Null),
    ("conversation_id", Null),
    ("prompt_logprobs", Null),
];

/// Whether a field that the endpoint has no use for can be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It means nothing.
    Harmless,
    /// It asks for what cannot be done here; what is wrong, as the end of a sentence that begins with its name.
    Unsupported(String),
    /// Nobody knows it.
    Unknown,
}

impl Taken {
    fn takes(self, value: &Value) -> bool {
        match self {
            Any => true,
            Null => value.is_null(),
            Only(switch) => *value == Value::Bool(switch),
            Zero => value.as_f64() == Some(0.0),
            Empty => value.as_array().is_some_and(Vec::is_empty),
            Words(words) => {
                let is_one = |value: &Value| value.as_str().is_some_and(|word| words.contains(&word));
                is_one(value) || value.as_array().is_some_and(|values| values.iter().all(is_one))
            }
        }
    }

    /// What to send instead.
    fn advice(self) -> String {
        match self {
            Any | Null => "is not supported: leave it out or send null".to_owned(),
            Only(switch) => format!("is supported as {switch} alone"),
            Zero => "is not supported: leave it out or send 0".to_owned(),
            Empty => "is not supported: leave it out or send an empty list".to_owned(),
            Words(words) => format!("is supported as {} alone", words.join(" or ")),
        }
    }

    /// The values as a schema.
    fn schema(self) -> Value {
        match self {
            Any => json!({}),
            Null => json!({ "type": "null" }),
            Only(switch) => json!({ "enum": [switch, null] }),
            Zero => json!({ "enum": [0, null] }),
            Empty => json!({ "enum": [[], null] }),
            Words(words) => {
                let alone = words.iter().map(|&word| word.into());
                let listed = words.iter().map(|&word| json!([word]));
                let all: Vec<Value> = alone.chain(listed).chain([Value::Null]).collect();
                json!({ "enum": all })
            }
        }
    }
}

/// Whether a field that an endpoint does not read can be taken.
pub(crate) fn verdict(name: &str, value: &Value) -> Verdict {
    if value.is_null() {
        return Verdict::Harmless;
    }
    match TAKEN.iter().find(|(known, _)| *known == name) {
        None => Verdict::Unknown,
        Some((_, taken)) if taken.takes(value) => Verdict::Harmless,
        Some((_, taken)) => Verdict::Unsupported(taken.advice()),
    }
}

/// The description of all of them, by patterns of their names: they are many.
pub(crate) fn patterns() -> Value {
    let mut groups: Vec<(Taken, Vec<&str>)> = Vec::new();
    for (name, taken) in TAKEN {
        match groups.iter_mut().find(|(group, _)| *group == taken) {
            Some((_, names)) => names.push(name),
            None => groups.push((taken, vec![name])),
        }
    }
    let pattern = |(taken, names): (Taken, Vec<&str>)| (format!("^({})$", names.join("|")), taken.schema());
    groups.into_iter().map(pattern).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_what_means_nothing_are_harmless_and_the_rest_is_not() {
        for (name, value, harmless) in [
            ("colour", json!(null), true),
            ("user", json!({ "a": [1] }), true),
            ("functions", json!([]), true),
            ("functions", json!([1]), false),
            ("function_call", json!("none"), true),
            ("function_call", json!({ "name": "f" }), false),
            ("modalities", json!(["text"]), true),
            ("modalities", json!(["text", "audio"]), false),
            ("skip_special_tokens", json!(true), true),
            ("skip_special_tokens", json!(false), false),
            ("min_tokens", json!(0), true),
            ("min_tokens", json!(1), false),
            ("ebnf", json!("root ::= x"), false),
        ] {
            assert_eq!(verdict(name, &value) == Verdict::Harmless, harmless, "{name}: {value}");
        }
        assert_eq!(verdict("colour", &json!(1)), Verdict::Unknown);
    }

    #[test]
    fn no_field_stands_twice() {
        let mut names = TAKEN.map(|(name, _)| name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
