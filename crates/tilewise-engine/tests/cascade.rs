//! Requests that begin alike read what they share once, and get what each gets alone.

#[macro_use]
#[path = "common/pass_on.rs"]
mod pass_on;
mod common;

use std::sync::{Arc, Mutex};

use common::{model_folder, open_on, prompts, run_all, run_one, small, tiny_config};
use safetensors::tensor::Dtype;
use serde_json::json;
use tilewise::dispatch::DispatchPolicy;
use tilewise::{
    AttentionParams, AttentionPlan, BatchLayout, Ceilings, DType, Device, DeviceCaps, Draw, HeadSpan,
    HostTensor, Kv, KvCache, KvCacheConfig, KvLayer, Linear, LogitChange, Logprobs, LogprobsOf, NotFinite,
    PageLayout, Result, Sampled, Tensor, TokenView,
};
use tilewise_engine::GenerateRequest;

/// Keeps, of each plan for single queries, how many sequences it has, and how many of them are in joint items.
struct Watched {
    inner: Arc<dyn Device>,
    decodes: Mutex<Vec<(usize, usize)>>,
}

impl Device for Watched {
    fn plan_attention(
        &self,
        params: &AttentionParams,
        layout: &Arc<BatchLayout>,
        forced: Option<&str>,
    ) -> Result<AttentionPlan> {
        let plan = self.inner.plan_attention(params, layout, forced)?;
        let sequences = layout.num_sequences();
        if layout.total_queries() == sequences {
            let joint = plan.work().iter().filter(|item| !item.sharers.is_empty());
            let of_first_head = joint.filter(|item| item.kv_heads.start == 0);
            let members = of_first_head.map(|item| 1 + item.sharers.len()).sum();
            self.decodes.lock().unwrap().push((sequences, members));
        }
        Ok(plan)
    }

    pass_on! {
        fn sample(&self, logits: &Tensor, draws: &[Draw]) -> Result<Vec<Result<Sampled, NotFinite>>>;
    }

    pass_on_all_but_plans_and_samples!();
}

#[test]
fn requests_that_share_a_long_prefix_are_decoded_together_and_as_each_alone() {
    const REQUESTS: usize = 16;
    let mut config = tiny_config();
    config["max_position_embeddings"] = json!(2048);
    let folder = model_folder(&config, Dtype::BF16);
    let prefix: Vec<u32> = (0..1050u32).map(|i| i * i % 127).collect();
    let requests: Vec<GenerateRequest> = prompts(REQUESTS, 131)
        .into_iter()
        .enumerate()
        .map(|(index, own)| {
            let mut request = GenerateRequest::new([prefix.clone(), own].concat(), 12);
            request.ignore_eos = true;
            request.sampling.logprobs = true;
            request.sampling.temperature = if index % 2 == 0 { 0.0 } else { 0.9 };
            request.sampling.seed = index as u64;
            request
        })
        .collect();
    let watched =
        Arc::new(Watched { inner: tilewise::open("cpu", Some(2)).unwrap(), decodes: Mutex::default() });
    let device: Arc<dyn Device> = watched.clone();
    let together = run_all(&mut open_on(&device, folder.path(), &small()).unwrap(), &requests);
    let decodes = std::mem::take(&mut *watched.decodes.lock().unwrap());
    assert!(decodes.contains(&(REQUESTS, REQUESTS)), "no step read the prefix once for all: {decodes:?}");

    let mut engine = open_on(&device, folder.path(), &small()).unwrap();
    for (index, (request, together)) in requests.iter().zip(&together).enumerate() {
        engine.clear_prefix_cache();
        assert_eq!(&run_one(&mut engine, request), together, "request {index}");
        assert_eq!(together.logprob_bits.len(), 12, "request {index}");
    }
    let alone = watched.decodes.lock().unwrap();
    assert!(alone.iter().all(|&(_, joint)| joint == 0), "one request shares with nobody: {alone:?}");
}
