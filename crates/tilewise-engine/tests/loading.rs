//! Files that are broken, hostile or of another model: an error that names file and tensor, never a panic.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use common::{model_folder, open, qwen3, safetensors, small, tensor, tiny_config, write_model};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tilewise_engine::model::{ModelConfig, ModelSource, SamplingDefaults, Weights};
use tilewise_engine::{Engine, GenerateRequest};

/// The error of loading a folder, checked to say all of `words`.
#[track_caller]
fn refused(folder: &Path, words: &[&str]) {
    let Err(error) = open(folder, &small()) else { panic!("it loaded, but should say {words:?}") };
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

/// A model whose weights file is changed.
#[track_caller]
fn refused_weights(change: impl FnOnce(&mut Vec<u8>), words: &[&str]) {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    refused(folder.path(), &[&["model.safetensors"], words].concat());
}

/// A model whose safetensors header is changed, its data left as they are.
#[track_caller]
fn refused_header(change: impl FnOnce(&mut Value), words: &[&str]) {
    refused_weights(
        |bytes| {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
            change(&mut header);
            let text = header.to_string();
            let data = bytes.split_off(8 + length);
            *bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend(text.bytes().chain(data));
        },
        words,
    );
}

#[test]
fn a_truncated_file_is_refused_by_the_first_tensor_that_is_cut() {
    refused_weights(|bytes| bytes.truncate(bytes.len() - 1), &["tensor ", "truncated"]);
    refused_weights(|bytes| bytes.truncate(200), &["truncated"]);
    refused_weights(|bytes| bytes.truncate(5), &["only 5 bytes"]);
    refused_weights(Vec::clear, &["only 0 bytes"]);
}

#[test]
fn absurd_header_sizes_are_refused() {
    for size in [u64::MAX, u64::MAX - 7, 1 << 62, 200_000_000, 1 << 33] {
        refused_weights(|bytes| bytes[..8].copy_from_slice(&size.to_le_bytes()), &["declares a header of"]);
    }
    refused_weights(|bytes| bytes[..8].copy_from_slice(&0u64.to_le_bytes()), &["broken header"]);
    refused_weights(|bytes| bytes[8..16].copy_from_slice(b"\xff\xfe{{{{{{"), &["broken header"]);
}

const NAME: &str = "model.layers.1.mlp.up_proj.weight";

#[test]
fn lying_offsets_are_refused_by_the_tensor_that_lies() {
    refused_header(
        |header| header[NAME]["data_offsets"] = json!([0, u64::MAX]),
        &[NAME, "truncated or its header lies"],
    );
    refused_header(|header| header[NAME]["data_offsets"] = json!([8, 4]), &[NAME, "header lies"]);
    refused_header(|header| header[NAME]["data_offsets"] = json!([-1, 4]), &[NAME, "broken header entry"]);
    refused_header(|header| header[NAME]["data_offsets"] = json!([0, 4]), &[NAME, "do not fit"]);
    refused_header(|header| header[NAME]["shape"] = json!([u64::MAX, u64::MAX]), &[NAME, "do not fit"]);
    refused_header(|header| header[NAME]["dtype"] = json!("F99"), &[NAME, "broken header entry"]);
}

#[test]
fn overlapping_tensors_are_refused() {
    refused_header(
        |header| {
            header[NAME]["data_offsets"] =
                header["model.layers.0.mlp.up_proj.weight"]["data_offsets"].clone();
        },
        &["tensor ", "overlaps the one before it"],
    );
}

#[test]
fn missing_and_misshapen_tensors_are_named_with_both_shapes() {
    let cut = |keep: fn(&str) -> bool| {
        let folder = model_folder(&tiny_config(), Dtype::F32);
        let sizes = ModelConfig::from_json("config.json", &tiny_config().to_string()).unwrap();
        let tensors: Vec<_> = qwen3(&sizes).into_iter().filter(|tensor| keep(&tensor.name)).collect();
        fs::write(folder.path().join("model.safetensors"), safetensors(&tensors, Dtype::F32)).unwrap();
        folder
    };
    refused(cut(|name| name != NAME).path(), &["model.safetensors", NAME, "missing"]);
    refused(
        cut(|name| !name.ends_with("k_norm.weight")).path(),
        &["model.layers.0.self_attn.k_norm.weight", "missing"],
    );

    let mut config = tiny_config();
    let folder = model_folder(&config, Dtype::F32);
    config["intermediate_size"] = json!(128);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let words = ["model.safetensors", "model.layers.0.mlp.gate_proj.weight", "[128, 64]", "[120, 64]"];
    refused(folder.path(), &words);
}

#[test]
fn element_types_that_are_no_floats_are_refused_by_name() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let sizes = ModelConfig::from_json("config.json", &tiny_config().to_string()).unwrap();
    let tensors = qwen3(&sizes);
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|t| t.values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        let dtype = if tensor.name == NAME { Dtype::I32 } else { Dtype::F32 };
        (tensor.name.clone(), TensorView::new(dtype, tensor.shape.clone(), bytes).unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    refused(folder.path(), &["model.safetensors", NAME, "I32", "F32, F16 or BF16"]);
}

#[test]
fn a_norm_that_is_not_finite_is_refused() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let sizes = ModelConfig::from_json("config.json", &tiny_config().to_string()).unwrap();
    let mut tensors = qwen3(&sizes);
    tensors.iter_mut().find(|tensor| tensor.name == "model.norm.weight").unwrap().values[3] = f32::NAN;
    fs::write(folder.path().join("model.safetensors"), safetensors(&tensors, Dtype::F32)).unwrap();
    refused(folder.path(), &["model.norm.weight", "NaN"]);
}

#[test]
fn an_empty_folder_says_what_belongs_in_it() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), &["config.json"]);
    fs::write(folder.path().join("config.json"), tiny_config().to_string()).unwrap();
    refused(folder.path(), &["model.safetensors.index.json", "give a folder"]);
}

/// Splits a model over two files with an index.
fn shard(folder: &Path) -> Value {
    write_model(folder, &tiny_config(), Dtype::BF16);
    let sizes = ModelConfig::from_json("config.json", &tiny_config().to_string()).unwrap();
    let mut first = qwen3(&sizes);
    let second = first.split_off(first.len() / 2);
    let mut map = serde_json::Map::new();
    for (file, tensors) in [("a.safetensors", &first), ("b.safetensors", &second)] {
        fs::write(folder.join(file), safetensors(tensors, Dtype::BF16)).unwrap();
        map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(file))));
    }
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    index
}

#[test]
fn shards_give_the_same_model_as_one_file() {
    let (one, two) = (model_folder(&tiny_config(), Dtype::BF16), tempfile::tempdir().unwrap());
    shard(two.path());
    let request = GenerateRequest::new(vec![1, 2, 3], 12);
    let [one, two] = [one.path(), two.path()]
        .map(|folder| common::run_one(&mut open(folder, &small()).unwrap(), &request));
    assert_eq!(one, two);
}

#[test]
fn a_hostile_index_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    let index = shard(folder.path());
    let write = |change: &dyn Fn(&mut Value), words: &[&str]| {
        let mut changed = index.clone();
        change(&mut changed);
        fs::write(&path, changed.to_string()).unwrap();
        refused(folder.path(), words);
    };
    for file in ["../a.safetensors", "/etc/passwd", "x/../a.safetensors", "..", "", "x\\a", "./a.safetensors"]
    {
        write(&|index| index["weight_map"][NAME] = json!(file), &["index.json", NAME, "not a file name"]);
    }
    write(&|index| index["weight_map"][NAME] = json!(7), &["index.json", "not a file name"]);
    write(&|index| index["weight_map"] = json!({}), &["index.json", "weight_map"]);
    write(&|index| index["weight_map"] = json!([]), &["index.json", "weight_map"]);
    write(
        &|index| index["weight_map"][NAME] = json!("a.safetensors"),
        &["a.safetensors", NAME, "but it is not"],
    );
    write(&|index| index["weight_map"][NAME] = json!("c.safetensors"), &["c.safetensors"]);
}

/// The error of a configuration with one field changed.
#[track_caller]
fn refused_config(key: &str, value: Value, words: &[&str]) {
    let mut config = tiny_config();
    config[key] = value;
    let error = ModelConfig::from_json("config.json", &config.to_string()).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

#[test]
fn absurd_configurations_are_refused_by_key() {
    for key in ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
    {
        for value in [json!(0), json!(-1), json!(1.5), json!("7"), json!(u64::MAX), json!([]), json!(null)] {
            refused_config(key, value, &["config.json", key]);
        }
    }
    refused_config("num_key_value_heads", json!(3), &["num_key_value_heads", "does not divide"]);
    refused_config("head_dim", json!(1u64 << 40), &["head_dim"]);
    refused_config("rms_norm_eps", json!(-1.0), &["rms_norm_eps"]);
    refused_config("rope_theta", json!("big"), &["rope_theta"]);
    refused_config("eos_token_id", json!([1, "x"]), &["eos_token_id", "x"]);
    refused_config("tie_word_embeddings", json!(1), &["tie_word_embeddings"]);
    refused_config("dtype", json!("float8"), &["dtype", "float8"]);
    assert!(ModelConfig::from_json("config.json", "[1]").is_err());
    assert!(ModelConfig::from_json("config.json", "{").unwrap_err().to_string().starts_with("config.json"));
}

#[test]
fn features_that_would_change_the_result_are_refused_by_name() {
    refused_config("architectures", json!(["MambaForCausalLM"]), &["MambaForCausalLM", "Qwen3ForCausalLM"]);
    refused_config("architectures", json!(null), &["Qwen3ForCausalLM"]);
    refused_config("use_sliding_window", json!(true), &["use_sliding_window"]);
    refused_config("hidden_act", json!("gelu"), &["hidden_act", "gelu"]);
    refused_config("rope_scaling", json!({ "rope_type": "yarn", "factor": 4.0 }), &["rope_scaling", "yarn"]);
    refused_config("rope_scaling", json!({ "factor": 4.0 }), &["rope_scaling"]);
    refused_config("rope_parameters", json!({ "rope_type": "llama3" }), &["rope_parameters", "llama3"]);
    refused_config("quantization_config", json!({ "bits": 4 }), &["quantization_config"]);
}

#[test]
fn configurations_of_old_and_new_transformers_are_read_alike() {
    let read = |config: &Value| ModelConfig::from_json("config.json", &config.to_string()).unwrap();
    let mut old = tiny_config();
    old["rope_theta"] = json!(5e5);
    old["rope_scaling"] = json!(null);
    old["eos_token_id"] = json!(7);
    let mut new = tiny_config();
    new["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 5e5 });
    new["eos_token_id"] = json!([7]);
    let (old, new) = (read(&old), read(&new));
    assert_eq!((old.rope_theta, &old.eos_ids), (new.rope_theta, &new.eos_ids));
    assert_eq!(old.eos_ids, [7]);

    let mut bare = tiny_config();
    bare.as_object_mut().unwrap().remove("head_dim");
    assert_eq!(read(&bare).head_dim, 64 / 4);
    let config = old.with_generation_config("generation_config.json", r#"{"eos_token_id": [3, 4]}"#).unwrap();
    assert_eq!(config.eos_ids, [7, 3, 4], "the tokens of both files end a text");
}

#[test]
fn the_parameter_count_is_that_of_the_tensors() {
    for (tied, bias) in [(true, false), (false, true)] {
        let mut config = tiny_config();
        (config["tie_word_embeddings"], config["attention_bias"]) = (json!(tied), json!(bias));
        let sizes = ModelConfig::from_json("config.json", &config.to_string()).unwrap();
        let tensors = qwen3(&sizes);
        assert_eq!(sizes.num_parameters(), tensors.iter().map(|tensor| tensor.values.len()).sum::<usize>());
    }
}

#[test]
fn random_weights_need_only_a_configuration_and_report_their_progress() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), tiny_config().to_string()).unwrap();
    let source = ModelSource::Dummy(folder.path().to_owned());
    let (mut last, mut reports) = (0, 0);
    let device = tilewise::open("cpu", Some(1)).unwrap();
    let mut engine = Engine::new(device, &source, &small(), &mut |progress| {
        assert!(progress.done >= last && progress.done <= progress.total);
        (last, reports) = (progress.done, reports + 1);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(reports > 4, "{reports} reports");
    let mut told = 0;
    let broken_off = Engine::new(tilewise::open("cpu", Some(1)).unwrap(), &source, &small(), &mut |_| {
        told += 1;
        if told < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(matches!(broken_off, Err(tilewise_engine::Error::Cancelled)) && told == 3, "{told} reports");
    let outcome = common::run_one(&mut engine, &GenerateRequest::new(vec![1, 2, 3], 8));
    assert_eq!(outcome.tokens.len(), 8);
}

#[test]
fn weights_inside_the_program_equal_those_of_a_file() {
    let norm = [tensor("model.norm.weight", &[4])];
    let bytes: &'static [u8] = safetensors(&norm, Dtype::F32).leak();
    let weights = Weights::from_bytes("embedded", bytes).unwrap();
    assert_eq!(
        weights.tensors().map(|tensor| (tensor.name.to_owned(), tensor.bytes)).collect::<Vec<_>>(),
        [("model.norm.weight".to_owned(), 16)]
    );
    let error = Weights::from_bytes("embedded", &bytes[..bytes.len() - 2]).err().unwrap().to_string();
    assert!(error.contains("embedded: tensor model.norm.weight"), "{error}");
}

/// A configuration with what a `generation_config.json` adds.
fn with_generation(generation: &Value) -> ModelConfig {
    let config = ModelConfig::from_json("config.json", &tiny_config().to_string()).unwrap();
    config.with_generation_config("generation_config.json", &generation.to_string()).unwrap()
}

#[test]
fn sampling_defaults_are_those_of_the_generation_config() {
    let read = |generation: Value| {
        let config = with_generation(&generation);
        assert_eq!(config.notes, [""; 0], "{generation}");
        config.sampling_defaults
    };
    let none = SamplingDefaults::default();
    assert_eq!(read(json!({})), none);
    let all = json!({
        "do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0, "repetition_penalty": 1.05
    });
    let want = SamplingDefaults {
        temperature: Some(0.6),
        top_p: Some(0.95),
        top_k: Some(20),
        min_p: Some(0.0),
        repetition_penalty: Some(1.05),
    };
    assert_eq!(read(all), want);
    let greedy = SamplingDefaults { temperature: Some(0.0), ..none };
    assert_eq!(read(json!({ "do_sample": false, "temperature": 0.7 })), greedy);
    assert_eq!(read(json!({ "temperature": 0.7 })).temperature, Some(0.7));
    for all_tokens in [json!(0), json!(-1), json!(null)] {
        assert_eq!(read(json!({ "top_k": all_tokens })), none);
    }
}

#[test]
fn sampling_defaults_that_mean_nothing_are_ignored_with_a_note_that_names_the_key() {
    let values = [json!(-3), json!("0.7"), json!([1]), json!(1e300), json!(true)];
    for key in ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"] {
        for value in &values {
            let config = with_generation(&json!({ key: value }));
            assert_eq!(config.sampling_defaults, SamplingDefaults::default(), "{key} {value}");
            let [note] = &config.notes[..] else { panic!("{:?}", config.notes) };
            for word in ["generation_config.json", key, "ignored", &value.to_string()] {
                assert!(note.contains(word), "{note:?} does not say {word:?}");
            }
        }
    }
}
