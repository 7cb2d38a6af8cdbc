//! How much a decode step asks of a GPU: launches, submissions, and one small read.
#![allow(clippy::print_stdout, reason = "the counts are the report")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{gpus, model_folder, open_on, run_all, small, tiny_config};
use safetensors::tensor::Dtype;
use serde_json::json;
use tilewise::backend::gpu::GpuDevice;
use tilewise::{Counts, Device};
use tilewise_engine::model::ModelSource;
use tilewise_engine::{DraftLength, Drafter, Engine, EngineConfig, GenerateRequest, Speculation};

/// Per layer: four products, which norm few rows themselves, the heads' norms, rotation and storing, attention with its
/// merge, and the activation; then embedding, the logits and the sampling.
const PER_LAYER: u64 = 8;
const PER_STEP: u64 = 3;

fn difference(after: Counts, before: Counts) -> Counts {
    Counts {
        launches: after.launches - before.launches,
        submissions: after.submissions - before.submissions,
        downloads: after.downloads - before.downloads,
        kernels: after.kernels - before.kernels,
    }
}

#[test]
fn a_decode_step_has_few_launches_and_one_read() {
    if GpuDevice::adapters().is_empty() {
        println!("gpu: skipped, this machine has none");
        return;
    }
    let device: Arc<dyn Device> = Arc::new(GpuDevice::new(0).unwrap());
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let mut engine = Engine::new(
        device.clone(),
        &ModelSource::Folder(demo),
        &small(),
        &mut tilewise_engine::model::unwatched,
    )
    .unwrap();
    for length in [7, 3] {
        let mut request = GenerateRequest::new((5..5 + length).collect(), 6);
        request.ignore_eos = true;
        request.sampling.temperature = 0.8;
        request.sampling.logprobs = true;
        engine.submit(request).unwrap();
    }
    engine.step().unwrap();
    let layers = engine.config().num_layers as u64;
    for step in 0..4 {
        let before = device.counts().unwrap();
        assert_eq!(engine.step().unwrap().len(), 2);
        let asked = difference(device.counts().unwrap(), before);
        println!("decode step {step} of {layers} layers: {asked:?}");
        assert!(asked.launches <= PER_LAYER * layers + PER_STEP, "{asked:?}");
        // Each submission has twice the launches of the one before, the first has eight.
        assert!((1..=1 + (asked.launches / 8 + 1).ilog2() as u64).contains(&asked.submissions), "{asked:?}");
        assert_eq!(asked.downloads, 1, "{asked:?}");
    }
    let before = device.counts().unwrap();
    let mut shown = 0;
    engine.step_observed(|_, logits| shown = logits.len()).unwrap();
    assert_eq!(shown, 2 * engine.config().vocab_size);
    assert_eq!(difference(device.counts().unwrap(), before).downloads, 2, "the logits, and the tokens");
}

#[test]
fn no_request_waits_for_a_kernel_of_the_model_or_its_drafts_once_an_engine_is_warm() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    // Of other sizes, so that it has kernels of its own.
    let mut config = tiny_config();
    (config["hidden_size"], config["head_dim"]) = (json!(96), json!(16));
    let draft = model_folder(&config, Dtype::F32);
    let speculation = Some(Speculation {
        drafter: Drafter::Model(ModelSource::Folder(draft.path().to_owned())),
        max_drafts: 3,
        length: DraftLength::Fixed,
        branches: 1,
    });
    for gpu in gpus() {
        let config = EngineConfig { speculation: speculation.clone(), max_running: 4, ..small() };
        let mut engine = open_on(&gpu.device, folder.path(), &config).unwrap();
        engine.warm_up().unwrap();
        let warm = gpu.device.counts().unwrap().kernels;
        let request = |first: u32| GenerateRequest::new((first..first + 40).collect(), 12);
        run_all(&mut engine, &[request(1), request(50), request(80)]);
        assert!(engine.stats().speculation.drafted > 0, "{}", gpu.name);
        assert_eq!(gpu.device.counts().unwrap().kernels, warm, "{}", gpu.name);
    }
}

#[test]
fn drafts_follow_one_another_on_a_gpu_and_are_read_once() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let speculation = Some(Speculation {
        drafter: Drafter::Model(ModelSource::Folder(folder.path().to_owned())),
        max_drafts: 4,
        length: DraftLength::Fixed,
        branches: 1,
    });
    for gpu in gpus() {
        let mut engine = open_on(
            &gpu.device,
            folder.path(),
            &EngineConfig { speculation: speculation.clone(), ..small() },
        )
        .unwrap();
        // One ends sooner, so that it wants fewer drafts than the other in its last step.
        for (length, new_tokens) in [(7, 21), (30, 13)] {
            let mut request = GenerateRequest::new((5..5 + length).collect(), new_tokens);
            request.ignore_eos = true;
            engine.submit(request).unwrap();
        }
        engine.step().unwrap();
        let mut steps = 0;
        while engine.has_work() {
            let (before, drafted) = (gpu.device.counts().unwrap(), engine.stats().speculation.drafted);
            engine.step().unwrap();
            let asked = difference(gpu.device.counts().unwrap(), before);
            // The drafts, if there were any, and the tokens.
            let reads = 1 + u64::from(engine.stats().speculation.drafted > drafted);
            assert_eq!(asked.downloads, reads, "{}", gpu.name);
            steps += 1;
        }
        let stats = engine.stats().speculation;
        println!("{}: {steps} steps, {stats:?}", gpu.name);
        assert!(stats.drafted > 16 && stats.accepted == stats.drafted, "a model guesses itself: {stats:?}");
    }
}
