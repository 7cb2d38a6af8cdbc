//! Texts under a grammar: what ends by itself obeys it, whatever the model would rather say.

mod common;

use std::path::PathBuf;
use std::sync::OnceLock;

use common::{Outcome, gpus, open, open_on, run_all, run_completions, run_one, small};
use serde_json::{Value, json};
use tilewise_engine::model::ModelSource;
use tilewise_engine::tokenizer::Tokenizer;
use tilewise_engine::{
    Engine, Error, FinishReason, GenerateRequest, Grammar, GrammarCompiler, SamplingParams,
};

fn demo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

fn tokenizer() -> Tokenizer {
    ModelSource::Folder(demo()).tokenizer().unwrap()
}

fn request(seed: u64, max_new_tokens: usize, grammar: &Grammar) -> GenerateRequest {
    let mut request = GenerateRequest::new(tokenizer().encode("x = ", true).unwrap(), max_new_tokens);
    request.sampling = SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() };
    request.grammar = Some(compiler().compile(grammar).unwrap());
    request
}

fn compiler() -> &'static GrammarCompiler {
    static COMPILER: OnceLock<GrammarCompiler> = OnceLock::new();
    COMPILER.get_or_init(|| GrammarCompiler::new(&ModelSource::Folder(demo())))
}

/// Whether the request ended because its text is complete.
fn is_complete(outcome: &Outcome) -> bool {
    matches!(outcome.reason, Some(FinishReason::Stop(_) | FinishReason::Grammar))
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "kind": { "enum": ["list", "tree"] },
            "size": { "type": "integer", "minimum": 0, "maximum": 999 },
            "items": {
                "type": "array", "minItems": 1, "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {
                        "ok": { "type": "boolean" },
                        "at": { "type": "array", "items": { "type": "integer", "maximum": 9, "minimum": -9 },
                                "minItems": 2, "maxItems": 2 }
                    },
                    "required": ["ok"], "additionalProperties": false
                }
            }
        },
        "required": ["name", "kind", "items"], "additionalProperties": false,
        // The demo model would rather write spaces than come to an end.
        "x-guidance": { "whitespace_flexible": false }
    })
}

fn keys_are(object: &Value, required: &[&str], optional: &[&str]) -> bool {
    let known = |key: &String| required.contains(&key.as_str()) || optional.contains(&key.as_str());
    object.as_object().is_some_and(|o| o.keys().all(known) && required.iter().all(|key| o.contains_key(*key)))
}

/// What [`schema`] says, in Rust.
fn is_valid(value: &Value) -> bool {
    let within = |value: &Value, range: std::ops::RangeInclusive<i64>| {
        value.as_i64().is_some_and(|x| range.contains(&x))
    };
    let at =
        |at: &Value| at.as_array().is_some_and(|at| at.len() == 2 && at.iter().all(|x| within(x, -9..=9)));
    let item = |item: &Value| {
        keys_are(item, &["ok"], &["at"]) && item["ok"].is_boolean() && item.get("at").is_none_or(at)
    };
    keys_are(value, &["name", "kind", "items"], &["size"])
        && value["name"].as_str().is_some_and(|name| name.chars().count() <= 12)
        && (value["kind"] == "list" || value["kind"] == "tree")
        && value.get("size").is_none_or(|size| within(size, 0..=999))
        && value["items"]
            .as_array()
            .is_some_and(|items| (1..=3).contains(&items.len()) && items.iter().all(item))
}

#[test]
fn a_schema_of_nested_objects_holds_over_two_hundred_seeds() {
    let (mut engine, tokenizer) = (open(&demo(), &small()).unwrap(), tokenizer());
    let requests: Vec<_> = (0..200).map(|seed| request(seed, 150, &Grammar::JsonSchema(schema()))).collect();
    let outcomes = run_all(&mut engine, &requests);
    let complete: Vec<_> = outcomes.iter().enumerate().filter(|(_, outcome)| is_complete(outcome)).collect();
    let mut texts = std::collections::BTreeSet::new();
    for (seed, outcome) in &complete {
        let text = tokenizer.decode(&outcome.tokens).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("seed {seed}: {e}: {text}"));
        assert!(is_valid(&value), "seed {seed}: {text}");
        texts.insert(text);
    }
    for (seed, outcome) in outcomes.iter().enumerate().filter(|(_, outcome)| !is_complete(outcome)) {
        assert_eq!(outcome.reason, Some(FinishReason::Length), "seed {seed}");
    }
    assert!(complete.len() > 100 && texts.len() > 100, "{} complete, {} differ", complete.len(), texts.len());
}

#[test]
fn every_completion_of_a_request_obeys_its_grammar_by_itself() {
    let (mut engine, tokenizer) = (open(&demo(), &small()).unwrap(), tokenizer());
    let mut request = request(3, 40, &Grammar::Regex("[a-z]{3,5}=[0-9]{2};".to_owned()));
    let alone = run_one(&mut engine, &request);
    request.n = 6;
    let completions = run_completions(&mut engine, &[request]).remove(0);
    assert_eq!(completions[0].tokens, alone.tokens);
    let mut texts = std::collections::BTreeSet::new();
    for (index, outcome) in completions.iter().enumerate() {
        assert!(is_complete(outcome), "completion {index}: {:?}", outcome.reason);
        let text = tokenizer.decode(&outcome.tokens).unwrap();
        let (name, number) = text.split_once('=').unwrap_or_else(|| panic!("completion {index}: {text}"));
        assert!(
            (3..=5).contains(&name.len()) && number.len() == 3 && number.ends_with(';'),
            "{index}: {text}"
        );
        texts.insert(text);
    }
    assert!(texts.len() > 1, "{texts:?}");
}

#[test]
fn a_regular_expression_and_a_lark_grammar_hold() {
    let (mut engine, tokenizer) = (open(&demo(), &small()).unwrap(), tokenizer());
    let date = Grammar::Regex("[0-9]{4}-(0[1-9]|1[0-2])".to_owned());
    let sum = Grammar::Lark("start: NUMBER (\"+\" NUMBER){2}\nNUMBER: /[1-9][0-9]{0,3}/".to_owned());
    for seed in 0..20 {
        let outcome = run_one(&mut engine, &request(seed, 60, &date));
        let text = tokenizer.decode(&outcome.tokens).unwrap();
        let (year, month) = text.split_once('-').unwrap_or_else(|| panic!("seed {seed}: {text}"));
        assert!(
            is_complete(&outcome) && year.len() == 4 && year.parse::<u32>().is_ok(),
            "seed {seed}: {text}"
        );
        assert!(month.len() == 2 && (1..=12).contains(&month.parse::<u32>().unwrap()), "seed {seed}: {text}");
        let outcome = run_one(&mut engine, &request(seed, 60, &sum));
        let text = tokenizer.decode(&outcome.tokens).unwrap();
        let numbers: Vec<u32> = text.split('+').map(|x| x.parse().unwrap()).collect();
        assert!(is_complete(&outcome) && numbers.len() == 3, "seed {seed}: {text}");
    }
}

/// A request with a grammar between others, which have none.
fn mixed() -> Vec<GenerateRequest> {
    let mut requests: Vec<_> = (0..3).map(|seed| request(seed, 25, &Grammar::JsonSchema(schema()))).collect();
    let mut plain = request(7, 20, &Grammar::Regex("a".to_owned()));
    plain.grammar = None;
    plain.sampling.logprobs = true;
    requests.insert(1, plain);
    requests[2].sampling.logprobs = true;
    requests[3].sampling.repetition_penalty = 1.2;
    requests
}

fn assert_independent(name: &str, mut open: impl FnMut() -> Engine) {
    let requests = mixed();
    let mut engine = open();
    let alone: Vec<Outcome> = requests.iter().map(|request| run_one(&mut engine, request)).collect();
    assert_eq!(run_all(&mut open(), &requests), alone, "{name}");
    assert!(alone[1].tokens.len() == alone[1].logprob_bits.len() && !alone[2].logprob_bits.is_empty());
}

#[test]
fn a_grammar_changes_no_bit_of_its_neighbours_and_they_none_of_its() {
    assert_independent("cpu", || open(&demo(), &small()).unwrap());
    for gpu in gpus().iter().filter(|gpu| !gpu.software) {
        assert_independent(&gpu.name, || open_on(&gpu.device, &demo(), &small()).unwrap());
    }
    // A processor that plays a GPU is held to the grammar alone.
    for gpu in gpus() {
        let mut engine = open_on(&gpu.device, &demo(), &small()).unwrap();
        let outcome = run_one(&mut engine, &request(3, 12, &Grammar::Regex("[0-9]{3}".to_owned())));
        let text = tokenizer().decode(&outcome.tokens).unwrap();
        assert!(text.len() == 3 && text.parse::<u32>().is_ok(), "{}: {text:?}", gpu.name);
    }
}

#[test]
fn preemption_keeps_the_place_in_the_grammar() {
    let config = tilewise_engine::EngineConfig {
        page_size: 16,
        kv: tilewise_engine::KvBudget::Tokens(12 * 16),
        ..small()
    };
    let requests: Vec<_> = (0..8).map(|seed| request(seed, 60, &Grammar::JsonSchema(schema()))).collect();
    let want = run_all(&mut open(&demo(), &small()).unwrap(), &requests);
    let mut engine = open(&demo(), &config).unwrap();
    assert_eq!(run_all(&mut engine, &requests), want);
    assert!(engine.stats().preemptions > 0, "the pool was large enough for all");
}

#[test]
fn a_grammar_that_cannot_be_compiled_is_refused() {
    for bad in [
        Grammar::Regex("(".to_owned()),
        Grammar::Lark("start: missing".to_owned()),
        Grammar::Lark(String::new()),
        Grammar::JsonSchema(json!({ "type": "no such type" })),
        Grammar::JsonSchema(json!({ "$ref": "#/nowhere" })),
    ] {
        let what = format!("{bad:?}");
        let error = compiler().compile(&bad).err().unwrap_or_else(|| panic!("{what} is taken"));
        assert!(matches!(error, Error::Grammar(_)), "{what}: {error}");
    }
}

#[test]
fn a_grammar_of_another_models_tokens_is_refused_and_nothing_is_queued() {
    let folder = common::model_folder(&common::tiny_config(), safetensors::tensor::Dtype::F32);
    let mut engine = open(folder.path(), &small()).unwrap();
    let mut request = request(0, 5, &Grammar::Regex("a".to_owned()));
    request.prompt = vec![1];
    let error = engine.submit(request).unwrap_err();
    assert!(matches!(error, Error::Value { name: "grammar", .. }), "{error}");
    assert!(!engine.has_work());
}

#[test]
fn the_end_of_text_ends_a_grammar_even_where_it_is_ignored() {
    let mut engine = open(&demo(), &small()).unwrap();
    let mut request = request(0, 40, &Grammar::Regex("[ab]{2,5}".to_owned()));
    request.ignore_eos = true;
    let outcome = run_one(&mut engine, &request);
    let text = tokenizer().decode(&outcome.tokens).unwrap();
    assert_eq!(outcome.reason, Some(FinishReason::Grammar), "{text:?}");
    assert!((2..=5).contains(&text.len()) && text.chars().all(|c| "ab".contains(c)), "{text:?}");
}

#[test]
fn a_model_without_a_tokenizer_refuses_grammars_by_name() {
    let folder = common::model_folder(&common::tiny_config(), safetensors::tensor::Dtype::F32);
    let compiler = GrammarCompiler::new(&ModelSource::Folder(folder.path().to_owned()));
    let error = compiler.compile(&Grammar::Regex("a".to_owned())).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}
