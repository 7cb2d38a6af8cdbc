//! How much a decode step asks of a GPU: launches, submissions, and one small read.
#![allow(clippy::print_stdout, reason = "the counts are the report")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::small;
use tilewise::backend::gpu::GpuDevice;
use tilewise::{Counts, Device};
use tilewise_engine::model::ModelSource;
use tilewise_engine::{Engine, GenerateRequest};

/// Per layer: four products, which norm few rows themselves, the heads' norms, rotation and storing, attention with its
/// merge, and the activation; then embedding, the logits and the sampling.
const PER_LAYER: u64 = 8;
const PER_STEP: u64 = 3;

fn difference(after: Counts, before: Counts) -> Counts {
    Counts {
        launches: after.launches - before.launches,
        submissions: after.submissions - before.submissions,
        downloads: after.downloads - before.downloads,
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
    let mut engine = Engine::new(device.clone(), &ModelSource::Folder(demo), &small(), &mut |_| {}).unwrap();
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
