//! The models against Hugging Face transformers, by fixtures that `golden/make_golden.py` writes.

#![allow(clippy::print_stdout)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{gpus, model_folder, open, open_on, small};
use safetensors::tensor::Dtype;
use serde_json::Value;
use tilewise::{DType, Device};
use tilewise_engine::{Engine, EngineConfig, Event, GenerateRequest};

struct Fixture {
    name: String,
    json: Value,
}

fn fixtures() -> Vec<Fixture> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "json")).collect();
    files.sort();
    let fixture = |path: &PathBuf| Fixture {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        json: serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap(),
    };
    files.iter().map(fixture).collect()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// Greedy tokens, and the logits that each was taken from.
fn greedy(engine: &mut Engine, prompt: Vec<u32>, new_tokens: usize) -> (Vec<u32>, Vec<Vec<f32>>) {
    engine.submit(GenerateRequest::new(prompt, new_tokens)).unwrap();
    let (mut tokens, mut logits) = (Vec::new(), Vec::new());
    while engine.has_work() {
        let events = engine.step_observed(|_, row| {
            if !row.is_empty() {
                logits.push(row.to_vec());
            }
        });
        tokens.extend(events.unwrap().into_iter().filter_map(|event| match event {
            Event::Token { id, .. } => Some(id),
            _ => None,
        }));
    }
    (tokens, logits)
}

/// The largest difference between two rows of logits; NaN if there is one.
fn worst(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let differences = got.iter().zip(want).map(|(got, want)| (got - want).abs());
    differences.fold(0f32, |worst, x| if x > worst || x.is_nan() { x } else { worst })
}

/// Logits within a tolerance, and the same greedy tokens, on the fixtures. Returns the largest difference.
fn check(
    device: &Arc<dyn Device>,
    fixtures: &[&Fixture],
    (run, file_dtype): (&str, Dtype),
    config: &EngineConfig,
) -> f32 {
    /// What sums in another order may differ by, of logits up to 12: five times the largest seen.
    const TOLERANCE: f32 = 1e-4;
    let mut largest = 0f32;
    for Fixture { name, json } in fixtures {
        let folder = model_folder(&json["config"], file_dtype);
        let mut engine = open_on(device, folder.path(), config).unwrap();
        let want_tokens: Vec<u32> = numbers(&json["runs"][run]["tokens"]);
        let want_logits: Vec<Vec<f32>> = numbers(&json["runs"][run]["logits"]);
        let (tokens, logits) = greedy(&mut engine, numbers(&json["prompt"]), want_tokens.len());
        for (step, (got, want)) in logits.iter().zip(&want_logits).enumerate() {
            let worst = worst(got, want);
            assert!(
                worst <= TOLERANCE,
                "{name}, {run}: step {step} is off by {worst}, {TOLERANCE} is allowed"
            );
            largest = largest.max(worst);
        }
        assert_eq!(tokens, want_tokens, "{name}, {run}");
    }
    largest
}

fn cpu() -> Arc<dyn Device> {
    tilewise::open("cpu", Some(1)).unwrap()
}

#[test]
fn there_are_at_least_five_configurations() {
    assert!(fixtures().len() >= 5);
}

#[test]
fn f32_logits_and_greedy_tokens_equal_transformers() {
    check(&cpu(), &fixtures().iter().collect::<Vec<_>>(), ("f32", Dtype::F32), &small());
}

#[test]
fn bf16_weights_give_transformers_logits_and_greedy_tokens() {
    // The weights are the same numbers as in the reference, and sums are f32 in both.
    let config = EngineConfig { kv_dtype: Some(DType::F32), ..small() };
    check(&cpu(), &fixtures().iter().collect::<Vec<_>>(), ("bf16", Dtype::BF16), &config);
}

#[test]
fn a_bf16_cache_stays_nearer_to_f32_than_transformers_own_bf16_run() {
    for Fixture { name, json } in fixtures() {
        let folder = model_folder(&json["config"], Dtype::BF16);
        let mut engine = open(folder.path(), &small()).unwrap();
        assert_eq!(engine.kv_config().dtype, DType::Bf16);
        let want: Vec<Vec<f32>> = numbers(&json["runs"]["bf16"]["logits"]);
        let (_, logits) = greedy(&mut engine, numbers(&json["prompt"]), 1);
        let (worst, theirs) =
            (worst(&logits[0], &want[0]), json["transformers_bf16_max_abs_diff"].as_f64().unwrap());
        assert!(f64::from(worst) < theirs, "{name}: off by {worst}, transformers by {theirs}");
    }
}

/// All fixtures, or two small ones for a processor that plays a GPU: with an own output matrix, and with biases.
fn for_gpu(fixtures: &[Fixture], software: bool) -> Vec<&Fixture> {
    let small = ["gqa-5-1-dim-80-untied", "gqa-8-4-dim-64-bias"];
    fixtures.iter().filter(|fixture| !software || small.contains(&fixture.name.as_str())).collect()
}

#[test]
fn f32_logits_and_greedy_tokens_on_a_gpu_equal_transformers() {
    let fixtures = fixtures();
    for gpu in gpus() {
        let some = for_gpu(&fixtures, gpu.software);
        let worst = check(&gpu.device, &some, ("f32", Dtype::F32), &small());
        println!("{}: {} of {} models in f32, off by {worst} at most", gpu.name, some.len(), fixtures.len());
    }
}

#[test]
fn bf16_on_a_gpu_stays_nearer_to_f32_than_transformers_own_bf16_run() {
    let fixtures = fixtures();
    for gpu in gpus() {
        for Fixture { name, json } in for_gpu(&fixtures, gpu.software) {
            let folder = model_folder(&json["config"], Dtype::BF16);
            let mut engine = open_on(&gpu.device, folder.path(), &small()).unwrap();
            let want: Vec<Vec<f32>> = numbers(&json["runs"]["bf16"]["logits"]);
            let (_, logits) = greedy(&mut engine, numbers(&json["prompt"]), 1);
            let theirs = json["transformers_bf16_max_abs_diff"].as_f64().unwrap();
            let worst = worst(&logits[0], &want[0]);
            assert!(f64::from(worst) < theirs, "{name}: off by {worst}, transformers by {theirs}");
            println!("{} {name} in bf16: off by {worst}, transformers by {theirs}", gpu.name);
        }
    }
}

#[test]
fn f32_weights_converted_to_bf16_at_loading_equal_a_bf16_file() {
    let config = EngineConfig { dtype: Some(DType::Bf16), kv_dtype: Some(DType::F32), ..small() };
    for Fixture { name, json } in fixtures().into_iter().take(2) {
        let from_f32 = model_folder(&json["config"], Dtype::F32);
        let want_tokens: Vec<u32> = numbers(&json["runs"]["bf16"]["tokens"]);
        let mut engine = open(from_f32.path(), &config).unwrap();
        let (tokens, _) = greedy(&mut engine, numbers(&json["prompt"]), want_tokens.len());
        assert_eq!(tokens, want_tokens, "{name}");
    }
}
