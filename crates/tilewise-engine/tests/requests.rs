//! What the engine takes, refuses and reports.

mod common;

use common::{model_folder, open, run_one, small, tiny_config};
use safetensors::tensor::Dtype;
use serde_json::json;
use tilewise::DType;
use tilewise_engine::scheduler::Priority;
use tilewise_engine::{EngineConfig, FinishReason, GenerateRequest, KvBudget, SamplingParams};

#[test]
fn requests_that_mean_nothing_are_refused_by_name() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let mut engine = open(folder.path(), &small()).unwrap();
    let request = |prompt: &[u32], new_tokens| GenerateRequest::new(prompt.to_vec(), new_tokens);
    let hot = SamplingParams { temperature: f32::NAN, ..SamplingParams::default() };
    for (request, words) in [
        (request(&[], 5), ["prompt", "at least one token"]),
        (request(&[1], 0), ["max_new_tokens", "at least 1"]),
        (request(&[1, 131], 5), ["token id", "131"]),
        (request(&[1], 512), ["513", "the model's context holds 512"]),
        (request(&[1], usize::MAX), ["shorten it", "512"]),
        (GenerateRequest { n: 0, ..request(&[1], 5) }, ["n must be from 1 to 128", "got 0"]),
        (GenerateRequest { n: 129, ..request(&[1], 5) }, ["n must be from 1 to 128", "got 129"]),
        (GenerateRequest { sampling: hot, ..request(&[1], 5) }, ["temperature", "NaN"]),
    ] {
        let error = engine.submit(request).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error:?} does not say {words:?}");
    }
    assert!(!engine.has_work());
    assert!(engine.step().unwrap().is_empty(), "an idle step does nothing");
}

#[test]
fn a_slowdown_that_means_nothing_is_refused_by_name() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let refused = |config: &EngineConfig| open(folder.path(), config).err().unwrap().to_string();
    for slowdown in [1.0, 0.0, f64::NAN, f64::INFINITY] {
        let error = refused(&EngineConfig { decode_slowdown: Some(slowdown), ..small() });
        assert!(error.contains("decode_slowdown must be above 1"), "{error}");
    }
    let config = EngineConfig { decode_slowdown: Some(2.0), priority: Priority::Prefill, ..small() };
    assert!(refused(&config).contains("none where prompts are served first"));
}

#[test]
fn a_request_may_fill_the_context_to_the_last_token() {
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    let mut engine = open(folder.path(), &small()).unwrap();
    let outcome = run_one(&mut engine, &GenerateRequest::new(vec![3; 500], 12));
    assert_eq!((outcome.tokens.len(), outcome.reason), (12, Some(FinishReason::Length)));
    let outcome = run_one(&mut engine, &GenerateRequest::new(vec![3; 511], 1));
    assert_eq!((outcome.tokens.len(), outcome.reason), (1, Some(FinishReason::Length)));
}

#[test]
fn end_of_text_and_stop_tokens_end_a_request_unless_ignored() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let request = GenerateRequest::new(vec![1, 2, 3, 4], 30);
    let free = run_one(&mut open(folder.path(), &small()).unwrap(), &request);
    let stop = free.tokens[5];
    let end = free.tokens.iter().position(|&id| id == stop).unwrap();

    let own = GenerateRequest { stop_ids: vec![stop], ..request.clone() };
    let outcome = run_one(&mut open(folder.path(), &small()).unwrap(), &own);
    assert_eq!(
        (outcome.tokens.as_slice(), outcome.reason),
        (&free.tokens[..=end], Some(FinishReason::Stop(stop)))
    );

    let mut config = tiny_config();
    config["eos_token_id"] = json!([stop]);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let outcome = run_one(&mut open(folder.path(), &small()).unwrap(), &request);
    assert_eq!(outcome.reason, Some(FinishReason::Stop(stop)));
    let ignoring = GenerateRequest { ignore_eos: true, ..request };
    assert_eq!(run_one(&mut open(folder.path(), &small()).unwrap(), &ignoring), free);
}

#[test]
fn the_cache_takes_what_its_budget_says() {
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    let pages = |config: EngineConfig| open(folder.path(), &config).unwrap().kv_config().num_pages;
    let config = || EngineConfig { page_size: 32, ..small() };
    assert_eq!(pages(EngineConfig { kv: KvBudget::Tokens(100), ..config() }), 4);
    let page = open(folder.path(), &config()).unwrap().kv_config().page_bytes();
    assert_eq!(page, 2 * 2 * 2 * 32 * 32 * 2, "layers, K and V, heads, tokens, head_dim, bytes");
    assert_eq!(pages(EngineConfig { kv: KvBudget::Bytes(10 * page + 1), ..config() }), 10);
    // A fraction of the machine is more than 3 contexts of 512 take.
    assert_eq!(pages(EngineConfig { kv: KvBudget::Fraction(0.5), max_running: 3, ..config() }), 3 * 512 / 32);
}

#[test]
fn engine_configurations_that_mean_nothing_are_refused_by_name() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    for (config, name) in [
        (EngineConfig { max_batch_tokens: 0, ..small() }, "max_batch_tokens"),
        (EngineConfig { max_running: 1 << 30, ..small() }, "max_running"),
        (EngineConfig { page_size: 24, ..small() }, "page_size"),
        (EngineConfig { kv: KvBudget::Fraction(1.5), ..small() }, "KV memory fraction"),
        (EngineConfig { dtype: Some(DType::U32), ..small() }, "dtype"),
    ] {
        let error = open(folder.path(), &config).err().unwrap().to_string();
        assert!(error.starts_with(name), "{error:?} does not name {name:?}");
    }
}

#[test]
fn weights_stay_in_the_files_type_unless_told() {
    for (file, want) in [(Dtype::F32, DType::F32), (Dtype::BF16, DType::Bf16)] {
        let folder = model_folder(&tiny_config(), file);
        assert_eq!(open(folder.path(), &small()).unwrap().kv_config().dtype, want);
        let f16 = EngineConfig { dtype: Some(DType::F16), ..small() };
        let mut engine = open(folder.path(), &f16).unwrap();
        assert_eq!(engine.kv_config().dtype, DType::F16);
        assert_eq!(run_one(&mut engine, &GenerateRequest::new(vec![1, 2], 4)).tokens.len(), 4);
    }
}
