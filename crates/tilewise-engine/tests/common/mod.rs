//! Small random models, written as folders.
#![allow(
    dead_code,
    clippy::print_stdout,
    reason = "each test file uses its own part, and says what it skipped"
)]

use std::path::Path;
use std::sync::{Arc, OnceLock};

use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;
use tilewise::Device;
use tilewise::backend::gpu::GpuDevice;
use tilewise_engine::model::{ModelConfig, ModelSource};
use tilewise_engine::{Engine, EngineConfig, Event, FinishReason, GenerateRequest, KvBudget, RequestId};

/// A named tensor of f32 values.
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// The formula that `golden/make_golden.py` states.
pub(crate) fn tensor(name: &str, shape: &[usize]) -> Named {
    let noise = noise(name, shape.iter().product());
    let fan_in = *shape.last().unwrap() as f64;
    let scale = |gain: f64| (gain * (3.0 / fan_in).sqrt()) as f32;
    let value = |x: f32| match name {
        _ if name.ends_with("norm.weight") => 1.25 + 0.5 * x,
        _ if name.ends_with(".bias") => 0.75 * x,
        _ if name.contains("embed") || name.contains("lm_head") => scale(3.0) * x,
        _ => scale(2.0) * x,
    };
    Named { name: name.to_owned(), shape: shape.to_vec(), values: noise.into_iter().map(value).collect() }
}

fn noise(name: &str, count: usize) -> Vec<f32> {
    let seed =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let value = |index: u64| {
        let mut x = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        ((x >> 40) as f32 - 8_388_608.0) / 8_388_608.0
    };
    (1..=count as u64).map(value).collect()
}

/// All tensors of a Qwen3 model.
pub(crate) fn qwen3(config: &ModelConfig) -> Vec<Named> {
    let (hidden, inner, dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_qo_heads * dim, config.num_kv_heads * dim);
    let mut tensors = vec![
        tensor("model.embed_tokens.weight", &[config.vocab_size, hidden]),
        tensor("model.norm.weight", &[hidden]),
    ];
    if !config.tie_word_embeddings {
        tensors.push(tensor("lm_head.weight", &[config.vocab_size, hidden]));
    }
    for layer in 0..config.num_layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push(tensor(&format!("model.layers.{layer}.{name}"), shape));
        };
        for (part, out, width) in [("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)] {
            add(&format!("self_attn.{part}_proj.weight"), &[out, width]);
            if config.attention_bias {
                add(&format!("self_attn.{part}_proj.bias"), &[out]);
            }
        }
        add("self_attn.q_norm.weight", &[dim]);
        add("self_attn.k_norm.weight", &[dim]);
        add("mlp.gate_proj.weight", &[inner, hidden]);
        add("mlp.up_proj.weight", &[inner, hidden]);
        add("mlp.down_proj.weight", &[hidden, inner]);
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
    }
    tensors
}

/// Bytes of a safetensors file with `dtype` F32 or BF16.
pub(crate) fn safetensors(tensors: &[Named], dtype: Dtype) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| match dtype {
            Dtype::BF16 => tensor.values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        (tensor.name.clone(), TensorView::new(dtype, tensor.shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// A model of two layers with grouped heads.
pub(crate) fn tiny_config() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "intermediate_size": 120,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 131,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "attention_bias": false
    })
}

/// Writes `config.json` and `model.safetensors`.
pub(crate) fn write_model(folder: &Path, config: &Value, dtype: Dtype) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let sizes = ModelConfig::from_json("config.json", &config.to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), safetensors(&qwen3(&sizes), dtype)).unwrap();
}

/// A folder with a model, removed when dropped.
pub(crate) fn model_folder(config: &Value, dtype: Dtype) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), config, dtype);
    folder
}

/// A small engine, to be changed by struct update.
pub(crate) fn small() -> EngineConfig {
    EngineConfig {
        kv: KvBudget::Tokens(4096),
        max_batch_tokens: 256,
        max_running: 32,
        ..EngineConfig::default()
    }
}

pub(crate) fn open(folder: &Path, config: &EngineConfig) -> tilewise_engine::Result<Engine> {
    open_with_threads(folder, config, 1)
}

pub(crate) fn open_with_threads(
    folder: &Path,
    config: &EngineConfig,
    threads: usize,
) -> tilewise_engine::Result<Engine> {
    let device = tilewise::open("cpu", Some(threads)).unwrap();
    Engine::new(
        device,
        &ModelSource::Folder(folder.to_owned()),
        config,
        &mut tilewise_engine::model::unwatched,
    )
}

pub(crate) fn open_on(
    device: &Arc<dyn Device>,
    folder: &Path,
    config: &EngineConfig,
) -> tilewise_engine::Result<Engine> {
    Engine::new(
        device.clone(),
        &ModelSource::Folder(folder.to_owned()),
        config,
        &mut tilewise_engine::model::unwatched,
    )
}

/// A GPU under test.
pub(crate) struct Gpu {
    pub(crate) name: String,
    pub(crate) device: Arc<dyn Device>,
    /// Whether it is a processor that plays a GPU: such a one gets less to do.
    pub(crate) software: bool,
}

/// Every GPU that can be opened; the tests of a file share them, and with them the compiled kernels.
pub(crate) fn gpus() -> &'static [Gpu] {
    static GPUS: OnceLock<Vec<Gpu>> = OnceLock::new();
    GPUS.get_or_init(|| {
        let mut gpus = Vec::new();
        for adapter in GpuDevice::adapters() {
            let name = format!("{} {}", adapter.name, adapter.description);
            match tilewise::open(&adapter.name, None) {
                Ok(device) => gpus.push(Gpu { name, device, software: adapter.software }),
                Err(error) => println!("{name}: skipped, {error}"),
            }
        }
        if gpus.is_empty() {
            println!("gpu: skipped, this machine has no adapter");
        }
        gpus
    })
}

/// What became of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprob_bits: Vec<u32>,
    pub(crate) top_logprob_bits: Vec<(u32, u32)>,
    pub(crate) reason: Option<FinishReason>,
}

/// Submits all requests at once, runs them to their end and returns what became of the first completion of each.
pub(crate) fn run_all(engine: &mut Engine, requests: &[GenerateRequest]) -> Vec<Outcome> {
    run_completions(engine, requests).into_iter().map(|mut completions| completions.swap_remove(0)).collect()
}

/// Submits all requests at once and runs them to their end.
pub(crate) fn run_completions(engine: &mut Engine, requests: &[GenerateRequest]) -> Vec<Vec<Outcome>> {
    let ids: Vec<RequestId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut outcomes: Vec<_> = requests.iter().map(|request| vec![Outcome::default(); request.n]).collect();
    let mut steps = 0;
    while engine.has_work() {
        steps += 1;
        assert!(steps < 100_000, "the engine does not come to an end: {:?}", engine.stats());
        for event in engine.step().unwrap() {
            match event {
                Event::Token { request, index, id, logprob, top_logprobs, .. } => {
                    let place = ids.iter().position(|&known| known == request).unwrap();
                    let outcome = &mut outcomes[place][index];
                    assert_eq!(outcome.reason, None, "a token after the end");
                    outcome.tokens.push(id);
                    outcome.logprob_bits.extend(logprob.map(f32::to_bits));
                    outcome.top_logprob_bits.extend(top_logprobs.iter().map(|(id, x)| (*id, x.to_bits())));
                }
                Event::Finished { request, index, reason, .. } => {
                    let place = ids.iter().position(|&known| known == request).unwrap();
                    outcomes[place][index].reason = Some(reason);
                }
                _ => {}
            }
        }
    }
    let stats = engine.stats();
    assert_eq!(stats.free_tokens, stats.total_tokens, "pages leaked");
    outcomes
}

pub(crate) fn run_one(engine: &mut Engine, request: &GenerateRequest) -> Outcome {
    run_all(engine, std::slice::from_ref(request)).remove(0)
}

/// Prompts of mixed lengths that differ.
pub(crate) fn prompts(count: usize, vocab: usize) -> Vec<Vec<u32>> {
    let lengths = [1, 15, 33, 5, 64, 17, 90, 2, 31, 32, 47, 8, 70, 3, 16, 128];
    (0..count)
        .map(|index| {
            let noise = noise(&format!("prompt {index}"), lengths[index % lengths.len()]);
            noise.into_iter().map(|x| ((x + 1.0) * 0.5 * vocab as f32) as u32).collect()
        })
        .collect()
}
