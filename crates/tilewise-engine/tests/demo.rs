//! The trained model in `models/demo` against what transformers says of it.
#![allow(clippy::print_stdout)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{gpus, open, open_on, run_one, small};
use serde_json::Value;
use tilewise::{BatchLayout, DType, KvCacheConfig, PageTable};
use tilewise_engine::model::layers::Limits;
use tilewise_engine::model::{Forward, Loader, ModelSource, unwatched};
use tilewise_engine::scheduler::BatchPlan;
use tilewise_engine::{EngineConfig, GenerateRequest};

fn demo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

fn expected() -> Vec<Value> {
    let json: Value = serde_json::from_slice(&std::fs::read(demo().join("expected.json")).unwrap()).unwrap();
    json["greedy"].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn prompts_become_the_tokens_that_transformers_makes_of_them() {
    let tokenizer = ModelSource::Folder(demo()).tokenizer().unwrap();
    for case in expected() {
        assert_eq!(
            tokenizer.encode(case["prompt"].as_str().unwrap(), true).unwrap(),
            ids(&case["prompt_ids"])
        );
    }
}

#[test]
fn greedy_tokens_equal_transformers() {
    let config = EngineConfig { kv_dtype: Some(DType::F32), ..small() };
    let mut engine = open(&demo(), &config).unwrap();
    for case in expected() {
        let want = ids(&case["tokens"]);
        let mut request = GenerateRequest::new(ids(&case["prompt_ids"]), want.len());
        request.ignore_eos = true;
        assert_eq!(run_one(&mut engine, &request).tokens, want, "{}", case["prompt"]);
    }
}

#[test]
fn a_prompt_that_was_seen_computes_at_most_a_page_and_gives_the_same_bits() {
    let mut engine = open(&demo(), &small()).unwrap();
    for case in expected() {
        let mut request = GenerateRequest::new(ids(&case["prompt_ids"]).repeat(8), 12);
        request.sampling.logprobs = true;
        let cold = run_one(&mut engine, &request);
        engine.submit(request.clone()).unwrap();
        let mut computed = 0;
        engine.step_observed(|batch, _| computed = batch.token_ids.len()).unwrap();
        assert!((1..=32).contains(&computed), "{computed} of {} tokens", request.prompt.len());
        while engine.has_work() {
            engine.step().unwrap();
        }
        assert_eq!(run_one(&mut engine, &request), cold, "{}", case["prompt"]);
    }
}

#[test]
fn greedy_text_in_f32_is_the_same_on_cpu_and_gpu() {
    let config = EngineConfig { dtype: Some(DType::F32), kv_dtype: Some(DType::F32), ..small() };
    let tokenizer = ModelSource::Folder(demo()).tokenizer().unwrap();
    let cases = expected();
    for gpu in gpus() {
        let (some, tokens) = if gpu.software { (1, 16) } else { (cases.len(), 48) };
        let mut on_cpu = open(&demo(), &config).unwrap();
        let mut on_gpu = open_on(&gpu.device, &demo(), &config).unwrap();
        for case in &cases[..some] {
            let mut request = GenerateRequest::new(ids(&case["prompt_ids"]), tokens);
            request.ignore_eos = true;
            let text = |engine| tokenizer.decode(&run_one(engine, &request).tokens).unwrap();
            assert_eq!(text(&mut on_gpu), text(&mut on_cpu), "{}: {}", gpu.name, case["prompt"]);
        }
        println!("{}: {some} of {} prompts, {tokens} tokens each", gpu.name, cases.len());
    }
}

#[test]
fn a_chat_stops_at_the_end_of_the_turn() {
    let tokenizer = ModelSource::Folder(demo()).tokenizer().unwrap();
    let turn = tilewise_engine::tokenizer::ChatMessage {
        role: "user".to_owned(),
        content: "Write a function that reverses a list.".to_owned(),
    };
    let text = tokenizer.chat_template().unwrap().apply(&[turn], true).unwrap();
    let mut engine = open(&demo(), &small()).unwrap();
    let outcome = run_one(&mut engine, &GenerateRequest::new(tokenizer.encode(&text, false).unwrap(), 200));
    assert_eq!(outcome.reason.unwrap().name(), "stop");
    let answer = tokenizer.decode(&outcome.tokens).unwrap();
    assert!(answer.contains("def rever"), "{answer}");
}

/// A batch of one sequence from position 0 whose every row is scored.
fn scored_batch(ids: &[u32]) -> BatchPlan {
    let len = ids.len() as u32;
    let pages = (0..len.div_ceil(32)).collect::<Vec<_>>();
    let table = PageTable { page_size: 32, indptr: vec![0, pages.len() as u32], pages };
    BatchPlan {
        token_ids: ids.to_vec(),
        positions: (0..len).collect(),
        layout: Arc::new(BatchLayout::paged(vec![0, len], vec![len], table).unwrap()),
        logits_rows: (0..len).collect(),
        sequences: Vec::new(),
        saves: Vec::new(),
        restores: Vec::new(),
        copies: Vec::new(),
    }
}

fn cross_entropy(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    total.ln() - f64::from(logits[id as usize] - max)
}

#[test]
fn the_loss_on_held_out_text_equals_transformers() {
    const WINDOW: usize = 512;
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/demo/loss.json");
    let expected: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(expected["window"], WINDOW);
    let source = ModelSource::Folder(demo());
    let text = std::fs::read_to_string(demo().join("heldout.txt")).unwrap();
    let tokens = source.tokenizer().unwrap().encode(&text, false).unwrap();
    let device = tilewise::open("cpu", None).unwrap();
    let (config, weights) = (source.config().unwrap(), source.weights().unwrap());
    let mut report = unwatched;
    let mut loader = Loader::new(&weights, &*device, DType::Bf16, weights.total_bytes(), &mut report);
    let limits = Limits { max_batch_tokens: WINDOW, max_logits_rows: WINDOW };
    let mut model = (config.family.load)(&config, &mut loader, &*device, limits).unwrap();
    let mut kv = device
        .alloc_kv(&KvCacheConfig {
            num_layers: config.num_layers,
            num_pages: WINDOW / 32,
            page_size: 32,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            value_dim: config.head_dim,
            dtype: DType::F32,
        })
        .unwrap();
    let params = model.attention(DType::F32);
    let windows = expected["windows"].as_u64().unwrap() as usize;
    let mut losses = Vec::new();
    for window in tokens.chunks(WINDOW).take(windows) {
        let batch = scored_batch(window);
        let plans = [device.plan_attention(&params[0], &batch.layout, None).unwrap()];
        let mut cx = Forward { device: &*device, batch: &batch, ids: None, plans: &plans, kv: &mut kv };
        model.forward(&mut cx).unwrap();
        let logits = device.download(model.logits(&*device, &batch.logits_rows).unwrap()).unwrap();
        let scored = logits.chunks_exact(config.vocab_size).zip(&window[1..]);
        losses.extend(scored.map(|(row, &next)| cross_entropy(row, next)));
    }
    assert_eq!(losses.len(), windows * (WINDOW - 1));
    let (loss, want) = (losses.iter().sum::<f64>() / losses.len() as f64, expected["loss"].as_f64().unwrap());
    assert!((loss - want).abs() < 1e-5, "{loss}, but transformers says {want}");
}
