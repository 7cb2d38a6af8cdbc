//! Speculative decoding: texts and logprobs are those of one token a step, in every bit.
#![allow(clippy::print_stdout)]

mod common;

use std::path::{Path, PathBuf};

use common::{
    Outcome, gpus, model_folder, open, open_on, prompts, run_all, run_completions, run_one, small,
    tiny_config,
};
use safetensors::tensor::Dtype;
use serde_json::json;
use tilewise_engine::model::ModelSource;
use tilewise_engine::{
    DraftLength, Drafter, Engine, EngineConfig, Error, GenerateRequest, Grammar, GrammarCompiler, KvBudget,
    Preemption, SamplingParams, Speculation,
};

const VOCAB: usize = 131;

/// Greedy and sampled requests of mixed lengths; of each four, the last changes its logits.
fn requests(count: usize, new_tokens: usize) -> Vec<GenerateRequest> {
    let request = |(index, prompt): (usize, Vec<u32>)| {
        let params = SamplingParams { logprobs: true, seed: index as u64, ..SamplingParams::default() };
        let sampling = match index % 4 {
            0 => params,
            1 => SamplingParams { temperature: 0.2, ..params },
            2 => SamplingParams { temperature: 0.7, top_k: Some(20), top_p: 0.9, top_logprobs: 2, ..params },
            _ => SamplingParams {
                temperature: 0.3,
                repetition_penalty: 1.2,
                frequency_penalty: 0.5,
                logit_bias: vec![(130, 4.0), (7, -100.0)],
                top_logprobs: 3,
                ..params
            },
        };
        // A text that repeats itself has ends that were there before.
        let prompt = if index % 2 == 0 { prompt.repeat(2) } else { prompt };
        GenerateRequest { sampling, ..GenerateRequest::new(prompt, new_tokens - index % 7) }
    };
    prompts(count, VOCAB).into_iter().enumerate().map(request).collect()
}

/// Requests for texts of four tokens: any two of them were there before, and were followed by several.
fn few_tokens(count: usize, new_tokens: usize) -> Vec<GenerateRequest> {
    let request = |(index, mut request): (usize, GenerateRequest)| {
        request.prompt.iter_mut().for_each(|token| *token %= 4);
        request.sampling = SamplingParams {
            temperature: 1.0,
            seed: index as u64,
            logprobs: true,
            top_logprobs: index % 2 * 2,
            presence_penalty: 0.1 * (index % 3) as f32,
            logit_bias: (0..4).map(|token| (token, 60.0)).collect(),
            ..SamplingParams::default()
        };
        request
    };
    requests(count, new_tokens).into_iter().enumerate().map(request).collect()
}

fn fixed(drafter: Drafter, max_drafts: usize) -> Option<Speculation> {
    Some(Speculation { drafter, max_drafts, length: DraftLength::Fixed, branches: 1 })
}

/// Several guesses side by side, all as long as they may be.
fn branched(max_drafts: usize, branches: usize) -> Option<Speculation> {
    let length = DraftLength::Fixed;
    Some(Speculation { drafter: Drafter::PromptLookup, max_drafts, length, branches })
}

fn model(folder: &Path) -> Drafter {
    Drafter::Model(ModelSource::Folder(folder.to_owned()))
}

#[track_caller]
fn assert_same(what: &str, got: &[Outcome], want: &[Outcome]) {
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got, want, "{what}: request {index}");
    }
}

/// Of all drafts so far, the share that was right.
fn right(engine: &Engine) -> f64 {
    let stats = engine.stats().speculation;
    assert!(stats.drafted > 0, "nothing was drafted");
    stats.accepted as f64 / stats.drafted as f64
}

#[test]
fn drafts_change_no_bit_in_any_batch_chunk_page_size_pool_and_thread_count() {
    let requests = [few_tokens(4, 40), requests(16, 40)].concat();
    let target = model_folder(&tiny_config(), Dtype::BF16);
    let mut other = tiny_config();
    other["num_hidden_layers"] = json!(1);
    let drafter = model_folder(&other, Dtype::BF16);
    let mut engine = open(target.path(), &small()).unwrap();
    let want: Vec<Outcome> = requests.iter().map(|request| run_one(&mut engine, request)).collect();
    let adaptive = Some(Speculation::default());
    let adaptive_branches = Some(Speculation { branches: 3, ..Speculation::default() });
    for (name, speculation) in [
        ("lookup", fixed(Drafter::PromptLookup, 5)),
        ("adaptive lookup", adaptive),
        ("branches", branched(3, 4)),
        ("adaptive branches", adaptive_branches),
        ("draft model", fixed(model(drafter.path()), 4)),
        ("itself", fixed(model(target.path()), 7)),
    ] {
        for (batch, max_batch_tokens, page_size, kv, threads) in [
            (1, 256, 32, small().kv, 1),
            (5, 33, 16, small().kv, 2),
            (16, 256, 16, small().kv, 1),
            (16, 64, 16, KvBudget::Tokens(14 * 16), 2),
        ] {
            let config =
                EngineConfig { speculation: speculation.clone(), max_batch_tokens, page_size, kv, ..small() };
            let mut engine = common::open_with_threads(target.path(), &config, threads).unwrap();
            let got: Vec<Outcome> =
                requests.chunks(batch).flat_map(|batch| run_all(&mut engine, batch)).collect();
            assert_same(&format!("{name}, {config:?}"), &got, &want);
            let stats = engine.stats();
            // Steps of so small a model take too little for drafts to pay.
            assert!(
                stats.speculation.accepted > 0 || name.starts_with("adaptive"),
                "{name}, batch {batch}: {stats:?}"
            );
            assert!(stats.speculation.taken > 0 || name != "branches", "batch {batch}: {stats:?}");
        }
    }
}

#[test]
fn a_model_that_drafts_for_itself_is_always_right() {
    // The fourth of four has penalties, which drafts know nothing of.
    let requests: Vec<GenerateRequest> = requests(16, 40)
        .into_iter()
        .enumerate()
        .filter(|(index, _)| index % 4 != 3)
        .map(|(_, r)| r)
        .collect();
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    let (few, recompute) = (KvBudget::Tokens(14 * 16), Preemption::Recompute);
    for (max_batch_tokens, page_size, kv, preemption, n) in [
        (256, 32, small().kv, recompute, 1),
        (19, 16, small().kv, recompute, 1),
        // Preempted, and found in the tree again.
        (256, 16, few, recompute, 1),
        // Restored into pages that the drafts of others were in.
        (256, 16, few, Preemption::Swap { bytes: 1 << 30 }, 1),
        // Completions that generate the same share it, and a page is filled for one sequence at a time.
        (256, 16, small().kv, recompute, 3),
    ] {
        let speculation = fixed(model(folder.path()), 6);
        let config = EngineConfig { speculation, max_batch_tokens, page_size, kv, preemption, ..small() };
        let mut engine = open(folder.path(), &config).unwrap();
        let some = requests.iter().filter(|request| n == 1 || request.sampling.temperature > 0.5);
        let requests: Vec<GenerateRequest> =
            some.map(|request| GenerateRequest { n, ..request.clone() }).collect();
        for round in ["cold", "cached"] {
            run_completions(&mut engine, &requests);
            assert_eq!(right(&engine), 1.0, "{round}, {config:?}: {:?}", engine.stats());
        }
    }
}

#[test]
fn completions_that_begin_beside_drafts_find_room_for_their_logits() {
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    let mut requests = requests(9, 30);
    requests.iter_mut().skip(1).for_each(|request| request.n = 6);
    let plain = EngineConfig { max_batch_tokens: 8, max_running: 8, ..small() };
    let want = run_completions(&mut open(folder.path(), &plain).unwrap(), &requests);
    let config = EngineConfig { speculation: fixed(model(folder.path()), 6), ..plain };
    let got = run_completions(&mut open(folder.path(), &config).unwrap(), &requests);
    for (got, want) in got.iter().zip(&want) {
        assert_same("small batches", got, want);
    }
}

#[test]
fn a_gpu_gives_the_same_bits_with_drafts() {
    for gpu in gpus() {
        let (count, new_tokens) = if gpu.software { (4, 24) } else { (16, 40) };
        let requests = [few_tokens(2, new_tokens), requests(count - 2, new_tokens)].concat();
        let folder = model_folder(&tiny_config(), Dtype::BF16);
        let mut engine = open_on(&gpu.device, folder.path(), &small()).unwrap();
        let want = run_all(&mut engine, &requests);
        for speculation in [fixed(Drafter::PromptLookup, 3), fixed(model(folder.path()), 3), branched(2, 3)] {
            let config = EngineConfig { speculation, ..small() };
            let mut engine = open_on(&gpu.device, folder.path(), &config).unwrap();
            assert_same(&gpu.name, &run_all(&mut engine, &requests), &want);
            let stats = engine.stats().speculation;
            println!("{}: {stats:?}", gpu.name);
            assert!(stats.accepted > 0, "{stats:?}");
            assert!(stats.taken > 0 || config.speculation != branched(2, 3), "{stats:?}");
        }
    }
}

fn demo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

fn demo_request(text: &str, new_tokens: usize) -> GenerateRequest {
    let tokenizer = ModelSource::Folder(demo()).tokenizer().unwrap();
    GenerateRequest::new(tokenizer.encode(text, true).unwrap(), new_tokens)
}

#[test]
fn drafts_of_code_are_often_right_and_the_greedy_text_is_the_same() {
    let heldout = std::fs::read_to_string(demo().join("heldout.txt")).unwrap();
    let prompt = |start: usize| heldout.chars().skip(start).take(900).collect::<String>();
    let requests: Vec<GenerateRequest> =
        (0..4).map(|index| demo_request(&prompt(9000 * index + 400), 96)).collect();
    let want = run_all(&mut open(&demo(), &small()).unwrap(), &requests);
    for (drafter, least) in [(Drafter::PromptLookup, 0.3), (model(&demo().join("draft")), 0.45)] {
        let config = EngineConfig { speculation: fixed(drafter.clone(), 4), ..small() };
        let mut engine = open(&demo(), &config).unwrap();
        assert_same(&format!("{drafter:?}"), &run_all(&mut engine, &requests), &want);
        let share = right(&engine);
        println!("{drafter:?}: {:?}, {share:.2} right", engine.stats().speculation);
        assert!(share > least, "{drafter:?}: {share}");
    }
}

#[test]
fn branches_are_right_where_drafts_are_not_and_change_no_bit() {
    let heldout = std::fs::read_to_string(demo().join("heldout.txt")).unwrap();
    let prompt = |start: usize| heldout.chars().skip(start).take(1200).collect::<String>();
    let requests: Vec<GenerateRequest> = (0..8)
        .map(|index| {
            let mut request = demo_request(&prompt(5000 * index + 400), 96);
            request.sampling = SamplingParams {
                temperature: 0.4 * (index % 3) as f32,
                frequency_penalty: if index % 4 == 3 { 0.2 } else { 0.0 },
                top_logprobs: index % 2 * 3,
                logprobs: true,
                seed: index as u64,
                ..SamplingParams::default()
            };
            request
        })
        .collect();
    let want = run_all(&mut open(&demo(), &small()).unwrap(), &requests);
    let mut per_step = Vec::new();
    for branches in [1, 2, 4] {
        for kv in [small().kv, KvBudget::Tokens(1024)] {
            let config = EngineConfig { speculation: branched(4, branches), page_size: 16, kv, ..small() };
            let mut engine = open(&demo(), &config).unwrap();
            assert_same(&format!("{branches} branches, {kv:?}"), &run_all(&mut engine, &requests), &want);
            let stats = engine.stats().speculation;
            assert_eq!(stats.taken > 0, branches > 1, "{stats:?}");
            per_step.push(1.0 + stats.accepted as f64 / stats.verified as f64);
            println!("{branches} branches, {kv:?}: {stats:?}");
        }
    }
    println!("{per_step:.2?} tokens per sequence and step with drafts");
    assert!(per_step[2] > per_step[0] && per_step[4] >= per_step[2], "{per_step:?}");
}

#[test]
fn a_grammar_is_obeyed_with_the_same_tokens_whether_drafts_are_right_or_not() {
    let grammars = [
        Grammar::Regex("(ab|cd){3,40}x".to_owned()),
        Grammar::Regex("[0-9]{1,3}(, [0-9]{1,3}){2,12}".to_owned()),
        Grammar::JsonSchema(json!({
            "type": "array", "minItems": 2, "maxItems": 9, "items": { "enum": ["list", "tree"] },
            "x-guidance": { "whitespace_flexible": false }
        })),
    ];
    let compiler = GrammarCompiler::new(&ModelSource::Folder(demo()));
    let grammars = grammars.map(|grammar| compiler.compile(&grammar).unwrap());
    let requests: Vec<GenerateRequest> = (0..12)
        .map(|index| {
            let mut request = demo_request("x = ", 60);
            request.grammar = Some(grammars[index % 3].clone());
            request.sampling = SamplingParams {
                temperature: 0.5 * (index / 3) as f32,
                seed: index as u64,
                logprobs: true,
                ..SamplingParams::default()
            };
            request
        })
        .collect();
    let want = run_all(&mut open(&demo(), &small()).unwrap(), &requests);
    let draft_model = fixed(model(&demo().join("draft")), 6);
    for speculation in [fixed(Drafter::PromptLookup, 6), draft_model, branched(5, 4)] {
        let config = EngineConfig { speculation, ..small() };
        let mut engine = open(&demo(), &config).unwrap();
        assert_same(&format!("{:?}", config.speculation), &run_all(&mut engine, &requests), &want);
        let stats = engine.stats().speculation;
        assert!(stats.accepted > 0 && stats.accepted < stats.drafted, "{stats:?}");
        assert!(stats.taken > 0 || config.speculation != branched(5, 4), "{stats:?}");
    }
}

#[test]
fn what_cannot_be_guessed_with_is_refused_by_name() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let open_with = |speculation| {
        open(folder.path(), &EngineConfig { speculation, ..small() }).err().expect("it is refused")
    };
    let error = open_with(fixed(model(&demo().join("draft")), 4));
    assert!(
        matches!(&error, Error::Unsupported { .. }) && error.to_string().contains("vocabulary"),
        "{error}"
    );
    for max_drafts in [0, 33] {
        let error = open_with(fixed(Drafter::PromptLookup, max_drafts));
        assert!(error.to_string().contains("max_drafts"), "{error}");
    }
    let with_model = branched(4, 2).map(|branched| Speculation { drafter: model(folder.path()), ..branched });
    for speculation in [branched(4, 0), branched(4, 9), with_model] {
        let error = open_with(speculation);
        assert!(error.to_string().contains("branches"), "{error}");
    }
    assert!(matches!(open_with(fixed(model(Path::new("/nonexistent")), 4)), Error::File { .. }));
}
