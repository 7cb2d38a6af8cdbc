//! Penalties, bias and logprobs of whole generations against the logits that the model gave.

mod common;

use common::{gpus, model_folder, open, open_on, prompts, small, tiny_config};
use safetensors::tensor::Dtype;
use tilewise_engine::{Engine, Event, GenerateRequest, SamplingParams};

const VOCAB: usize = 131;

fn requests() -> Vec<GenerateRequest> {
    let request = |(index, prompt): (usize, Vec<u32>)| {
        let x = index as f32;
        let mut request = GenerateRequest::new(prompt, 30 - index);
        request.sampling = SamplingParams {
            repetition_penalty: [1.0, 1.3, 0.8][index % 3],
            presence_penalty: [0.0, 0.7, -0.3, 2.0][index % 4],
            frequency_penalty: [0.0, 0.5, -0.1][(index + 1) % 3],
            logit_bias: (0..index as u32 % 3).map(|i| (i * 40 + 3, x - 4.0)).collect(),
            logprobs: true,
            top_logprobs: [0, 5, 20][index % 3],
            ..SamplingParams::default()
        };
        request
    };
    prompts(9, VOCAB).into_iter().enumerate().map(request).collect()
}

/// The logits as the parameters change them, from their definition.
fn changed(logits: &[f32], params: &SamplingParams, prompt: &[u32], output: &[u32]) -> Vec<f32> {
    let change = |(token, &x): (u32, &f32)| {
        let bias: f32 = params.logit_bias.iter().filter(|bias| bias.0 == token).map(|bias| bias.1).sum();
        let count = output.iter().filter(|&&id| id == token).count() as f32;
        let mut x = x + bias;
        if count > 0.0 || prompt.contains(&token) {
            x = if x > 0.0 { x / params.repetition_penalty } else { x * params.repetition_penalty };
        }
        x - params.presence_penalty * count.min(1.0) - params.frequency_penalty * count
    };
    (0..).zip(logits).map(change).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x - max) - total.ln()).collect()
}

/// Runs all requests together; every token and logprob is held to the logits of its step.
fn check(name: &str, engine: &mut Engine, requests: &[GenerateRequest]) {
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut outputs = vec![Vec::new(); requests.len()];
    let mut checked = 0;
    while engine.has_work() {
        let mut rows = Vec::new();
        let observe = |batch: &tilewise_engine::scheduler::BatchPlan, logits: &[f32]| {
            let sampled = batch.sequences.iter().filter(|sequence| sequence.sampling.is_some());
            rows = sampled.map(|s| s.request).zip(logits.chunks(VOCAB).map(<[f32]>::to_vec)).collect();
        };
        for event in engine.step_observed(observe).unwrap() {
            let Event::Token { request, id, logprob, top_logprobs, .. } = event else { continue };
            let index = ids.iter().position(|&known| known == request).unwrap();
            let logits = &rows.iter().find(|row| row.0 == request).unwrap().1;
            let GenerateRequest { sampling, prompt, .. } = &requests[index];
            let what = format!("{name}, request {index}, token {}", outputs[index].len());
            let changed = changed(logits, sampling, prompt, &outputs[index]);
            let best = changed.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert!(changed[id as usize] >= best - 1e-5, "{what}: {} is {}", id, changed[id as usize]);
            let logprobs = log_softmax(logits);
            let near = |id: u32, got: f32| (f64::from(got) - logprobs[id as usize]).abs() < 1e-4;
            assert!(near(id, logprob.unwrap()), "{what}: {logprob:?}, not {}", logprobs[id as usize]);
            assert_eq!(top_logprobs.len(), sampling.top_logprobs, "{what}");
            assert!(top_logprobs.iter().all(|&(id, got)| near(id, got)), "{what}: {top_logprobs:?}");
            let told: Vec<u32> = top_logprobs.iter().map(|top| top.0).collect();
            let mut order: Vec<u32> = (0..VOCAB as u32).collect();
            order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
            assert_eq!(told, order[..told.len()], "{what}");
            outputs[index].push(id);
            checked += 1;
        }
    }
    assert_eq!(checked, requests.iter().map(|request| request.max_new_tokens).sum::<usize>(), "{name}");
}

#[test]
fn every_token_is_the_best_of_the_changed_logits_and_every_logprob_of_the_models_own() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    check("cpu", &mut open(folder.path(), &small()).unwrap(), &requests());
    for gpu in gpus() {
        let count = if gpu.software { 4 } else { 9 };
        let requests = &requests()[..count];
        check(&gpu.name, &mut open_on(&gpu.device, folder.path(), &small()).unwrap(), requests);
    }
}

#[test]
fn penalties_turn_a_text_away_from_what_it_repeats() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let mut engine = open(folder.path(), &small()).unwrap();
    let mut distinct = |sampling: SamplingParams| {
        let mut request = GenerateRequest::new(vec![5, 9, 2], 60);
        request.sampling = sampling;
        let tokens = common::run_one(&mut engine, &request).tokens;
        tokens.into_iter().collect::<std::collections::BTreeSet<u32>>().len()
    };
    let plain = distinct(SamplingParams::default());
    let frequency = distinct(SamplingParams { frequency_penalty: 2.0, ..SamplingParams::default() });
    let repetition = distinct(SamplingParams { repetition_penalty: 1e6, ..SamplingParams::default() });
    assert!(plain < frequency && frequency <= repetition, "{plain}, {frequency}, {repetition}");
}
