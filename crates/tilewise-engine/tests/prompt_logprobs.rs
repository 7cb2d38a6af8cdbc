//! Logprobs of a prompt are those that its tokens had when they were generated, in every bit.
#![allow(clippy::print_stdout)]

mod common;

use std::collections::HashMap;

use common::{gpus, model_folder, open, open_on, prompts, run_one, small, tiny_config};
use safetensors::tensor::Dtype;
use tilewise::Logprobs;
use tilewise_engine::{Engine, EngineConfig, Event, GenerateRequest, KvBudget, RequestId, SamplingParams};

const VOCAB: usize = 131;

/// Prompts that end with what the model says after their beginnings, and the bits of its logprobs there.
fn told(engine: &mut Engine, count: usize, new_tokens: usize) -> Vec<(GenerateRequest, Vec<u32>)> {
    let mut cases = Vec::new();
    for (index, prompt) in prompts(count, VOCAB).into_iter().enumerate() {
        let mut request = GenerateRequest::new(prompt, new_tokens);
        request.sampling = SamplingParams {
            temperature: 0.9 * (index % 2) as f32,
            seed: index as u64,
            logprobs: true,
            top_logprobs: 3,
            ..SamplingParams::default()
        };
        let outcome = run_one(engine, &request);
        let mut asked = GenerateRequest::new([request.prompt, outcome.tokens].concat(), 2);
        asked.prompt_logprobs = Some(3);
        let tops: Vec<_> = outcome.top_logprob_bits.chunks(3).collect();
        let bits = outcome.logprob_bits.iter().zip(tops);
        let bits = bits.flat_map(|(&own, top)| [own].into_iter().chain(top.iter().flat_map(|x| [x.0, x.1])));
        cases.push((asked, bits.collect()));
    }
    cases
}

/// Runs all requests at once and returns the prompts' logprobs of each.
fn ask(engine: &mut Engine, requests: &[GenerateRequest]) -> Vec<Vec<Logprobs>> {
    let ids: Vec<RequestId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut all = HashMap::<RequestId, Vec<Logprobs>>::new();
    while engine.has_work() {
        for event in engine.step().unwrap() {
            match event {
                Event::PromptLogprobs { request, position, logprobs } => {
                    let own = all.entry(request).or_default();
                    assert_eq!(position, own.len() + 1, "in order");
                    own.extend(logprobs.into_iter().map(Result::unwrap));
                }
                Event::Token { request, .. } => {
                    let place = ids.iter().position(|&id| id == request).unwrap();
                    let told = all.get(&request).map_or(0, Vec::len);
                    assert_eq!(
                        told,
                        requests[place].prompt.len() - 1,
                        "all of the prompt before the first token"
                    );
                }
                _ => {}
            }
        }
    }
    ids.iter().map(|id| all.remove(id).unwrap_or_default()).collect()
}

#[track_caller]
fn check(what: &str, engine: &mut Engine, cases: &[(GenerateRequest, Vec<u32>)]) {
    let requests: Vec<GenerateRequest> = cases.iter().map(|case| case.0.clone()).collect();
    for (index, (logprobs, (_, want))) in ask(engine, &requests).iter().zip(cases).enumerate() {
        let bits: Vec<u32> = logprobs
            .iter()
            .flat_map(|row| {
                let top = row.top.iter().flat_map(|(id, x)| [*id, x.to_bits()]);
                [row.logprob.to_bits()].into_iter().chain(top)
            })
            .collect();
        assert!(bits.ends_with(want) && bits.len() > want.len(), "{what}: request {index}");
    }
}

#[test]
fn a_prompt_has_the_logprobs_of_its_generation_in_any_batch_chunk_and_page_size_cached_or_not() {
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    let cases = told(&mut open(folder.path(), &small()).unwrap(), 12, 30);
    for (max_batch_tokens, max_running, page_size, kv) in [
        (256, 32, 32, small().kv),
        (19, 3, 16, small().kv),
        // Preempted in the middle of prompts.
        (40, 12, 16, KvBudget::Tokens(12 * 16)),
    ] {
        let config = EngineConfig { max_batch_tokens, max_running, page_size, kv, ..small() };
        let mut engine = open(folder.path(), &config).unwrap();
        for round in ["cold", "cached"] {
            check(&format!("{round}, {config:?}"), &mut engine, &cases[1..]);
        }
        let stats = engine.stats();
        assert_eq!(stats.free_tokens, stats.total_tokens, "pages leaked");
    }
}

#[test]
fn a_gpu_tells_the_same_bits_of_a_prompt() {
    for gpu in gpus() {
        let folder = model_folder(&tiny_config(), Dtype::BF16);
        let mut engine = open_on(&gpu.device, folder.path(), &small()).unwrap();
        let cases = told(&mut engine, if gpu.software { 3 } else { 12 }, 8);
        check(&gpu.name, &mut engine, &cases[1..]);
        println!("{}: {} prompts", gpu.name, cases.len() - 1);
    }
}

#[test]
fn completions_of_one_prompt_tell_its_logprobs_once_and_too_many_are_refused() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let mut engine = open(folder.path(), &small()).unwrap();
    let mut request = GenerateRequest::new(vec![7, 3, 9, 40], 3);
    request.n = 3;
    request.prompt_logprobs = Some(0);
    let logprobs = ask(&mut engine, std::slice::from_ref(&request)).remove(0);
    assert!(logprobs.len() == 3 && logprobs.iter().all(|row| row.top.is_empty() && row.logprob < 0.0));
    request.prompt_logprobs = Some(21);
    let error = engine.submit(request).unwrap_err().to_string();
    assert!(error.contains("prompt_logprobs") && error.contains("20"), "{error}");
}
