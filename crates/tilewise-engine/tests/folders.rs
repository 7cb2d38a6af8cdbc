//! Folders as people have them: what is read in spite of its form, and what is refused with what to do.

mod common;

use std::fs;
use std::path::Path;

use common::{model_folder, open, qwen3, run_one, safetensors, small, tensor, tiny_config, write_model};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;
use tilewise_engine::GenerateRequest;
use tilewise_engine::model::{ModelConfig, ModelSource};

fn read(config: &Value) -> ModelConfig {
    ModelConfig::from_json("config.json", &config.to_string()).unwrap()
}

fn with(key: &str, value: Value) -> Value {
    let mut config = tiny_config();
    config.as_object_mut().unwrap().remove("rope_theta");
    config[key] = value;
    config
}

/// The error of opening a folder's model, checked to say all of `words`.
#[track_caller]
fn refused(folder: &Path, words: &[&str]) {
    let Err(error) = ModelSource::Folder(folder.to_owned()).open() else {
        panic!("it loaded, but should say {words:?}")
    };
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn rope_theta_is_read_in_every_place_that_has_it() {
    for (key, value) in [
        ("rope_theta", json!(5e5)),
        ("rope_scaling", json!({ "rope_type": "default", "rope_theta": 5e5 })),
        ("rope_parameters", json!({ "rope_type": "default", "rope_theta": 5e5 })),
        ("rope_parameters", json!({ "full_attention": { "rope_type": "default", "rope_theta": 5e5 } })),
        ("rope_scaling", json!({ "full_attention": { "rope_theta": 5e5 }, "sliding_attention": null })),
    ] {
        let config = read(&with(key, value.clone()));
        assert_eq!((config.rope_theta, config.notes.len()), (5e5, 0), "{key} {value}");
    }
    assert_eq!(read(&with("rope_scaling", json!({}))).rope_theta, 1e4);
    let mut both = with("rope_parameters", json!({ "rope_theta": 5e5 }));
    both["rope_theta"] = json!(1e6);
    let config = read(&both);
    assert_eq!(config.rope_theta, 5e5);
    assert!(config.notes[0].contains("1000000 in the top is ignored"), "{:?}", config.notes);
}

#[test]
fn rope_scalings_that_change_nothing_are_taken_and_others_refused_by_key() {
    for nothing in [
        json!(null),
        json!({ "rope_type": "default", "factor": 1.0 }),
        json!({ "type": "linear", "factor": 1 }),
        json!({ "rope_type": "dynamic", "factor": 1.0 }),
        json!({ "rope_type": "yarn", "factor": 1.0, "beta_fast": 32, "attention_factor": 1.0 }),
        json!({ "rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1, "high_freq_factor": 4,
                "original_max_position_embeddings": 8192 }),
        json!({ "rope_type": null, "partial_rotary_factor": 1.0, "mrope_section": null }),
    ] {
        for key in ["rope_scaling", "rope_parameters"] {
            assert_eq!(read(&with(key, nothing.clone())).rope_theta, 1e4, "{key} {nothing}");
        }
    }
    for (scaling, word) in [
        (json!({ "rope_type": "linear", "factor": 2.0 }), "rope_type"),
        (json!({ "rope_type": "linear" }), "rope_type"),
        (json!({ "type": "yarn", "factor": 4.0 }), "type"),
        (json!({ "factor": 2 }), "factor"),
        (json!({ "rope_type": "default", "mrope_section": [8, 4, 4] }), "mrope_section"),
        (json!({ "rope_type": "yarn", "factor": 1.0, "attention_factor": 1.2 }), "attention_factor"),
        (json!({ "rope_type": "default", "partial_rotary_factor": 0.5 }), "partial_rotary_factor"),
        (json!({ "rope_type": "longrope", "factor": 1.0 }), "rope_type"),
        (json!({ "rope_type": 7 }), "rope_type"),
        (json!({ "rope_theta": "x" }), "rope_theta"),
        (json!({ "sliding_attention": { "rope_theta": 1e4 } }), "sliding_attention"),
        (json!([1]), "rope"),
    ] {
        for key in ["rope_scaling", "rope_parameters"] {
            let config = with(key, scaling.clone()).to_string();
            let error = ModelConfig::from_json("config.json", &config).unwrap_err().to_string();
            assert!(error.contains("config.json") && error.contains(word), "{key} {scaling}: {error}");
        }
    }
    let mixed = with("layer_types", json!(["full_attention", "sliding_attention"]));
    let error = ModelConfig::from_json("config.json", &mixed.to_string()).unwrap_err().to_string();
    assert!(error.contains("layer_types") && error.contains("sliding_attention"), "{error}");
    read(&with("layer_types", json!(["full_attention", "full_attention"])));
}

#[test]
fn element_types_are_read_as_torch_writes_them() {
    for (written, dtype) in [
        (json!("bfloat16"), Some(tilewise::DType::Bf16)),
        (json!("torch.bfloat16"), Some(tilewise::DType::Bf16)),
        (json!("torch.float32"), Some(tilewise::DType::F32)),
        (json!("auto"), None),
        (json!(null), None),
    ] {
        for key in ["torch_dtype", "dtype"] {
            assert_eq!(read(&with(key, written.clone())).dtype, dtype, "{key} {written}");
        }
    }
}

#[test]
fn end_tokens_beyond_the_vocabulary_are_ignored_with_a_note() {
    let config = read(&with("eos_token_id", json!([151_645, 2, -1])));
    assert_eq!(config.eos_ids, [2]);
    assert_eq!(config.notes.len(), 2, "{:?}", config.notes);
    assert!(
        config.notes[0].contains("151645") && config.notes[0].contains("131 tokens"),
        "{:?}",
        config.notes
    );
}

#[test]
fn end_tokens_are_those_of_config_generation_config_and_tokenizer() {
    let mut config = tiny_config();
    config["eos_token_id"] = json!(7);
    let folder = model_folder(&config, Dtype::F32);
    let write = |name: &str, json: Value| fs::write(folder.path().join(name), json.to_string()).unwrap();
    let ends = || ModelSource::Folder(folder.path().to_owned()).config().unwrap().eos_ids;
    assert_eq!(ends(), [7]);
    write("generation_config.json", json!({ "eos_token_id": [9, 7] }));
    assert_eq!(ends(), [7, 9]);
    let listed = json!({ "11": { "content": "<end>" }, "12": { "content": "<other>" } });
    write("tokenizer_config.json", json!({ "eos_token": "<end>", "added_tokens_decoder": listed }));
    assert_eq!(ends(), [7, 9, 11], "the configuration lists the token");
    write("tokenizer_config.json", json!({ "eos_token": { "content": "<end>" } }));
    write("tokenizer.json", json!({ "added_tokens": [{ "id": 13, "content": "<end>" }], "model": {} }));
    assert_eq!(ends(), [7, 9, 13], "tokenizer.json lists it among its added tokens");
    write("tokenizer.json", json!({ "added_tokens": [], "model": { "vocab": { "<end>": 14, "b": 1 } } }));
    assert_eq!(ends(), [7, 9, 14], "and in its vocabulary");
    write("tokenizer.json", json!({ "model": { "vocab": [["<end>", -1.5]] } }));
    assert_eq!(ends(), [7, 9], "another kind of vocabulary");
    write("tokenizer_config.json", json!({}));
    write("special_tokens_map.json", json!({ "eos_token": "<end>" }));
    write("tokenizer.json", json!({ "added_tokens": [{ "id": 15, "content": "<end>" }] }));
    assert_eq!(ends(), [7, 9, 15], "special_tokens_map.json names it");
    write("tokenizer.json", json!({ "added_tokens": [{ "id": 131, "content": "<end>" }] }));
    assert_eq!(ends(), [7, 9], "the model has no such token");
}

#[test]
fn a_mark_before_utf8_is_no_part_of_a_file() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    for (name, json) in [
        ("config.json", tiny_config().to_string()),
        ("generation_config.json", r#"{"eos_token_id": 5}"#.to_owned()),
        ("tokenizer_config.json", "{}".to_owned()),
    ] {
        fs::write(folder.path().join(name), format!("\u{feff}{json}")).unwrap();
    }
    assert_eq!(ModelSource::Folder(folder.path().to_owned()).config().unwrap().eos_ids, [5]);
}

/// A model whose tensors are named otherwise.
fn renamed(name: impl Fn(&str) -> String) -> TempDir {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let mut tensors = qwen3(&read(&tiny_config()));
    tensors.iter_mut().for_each(|tensor| tensor.name = name(&tensor.name));
    tensors.push(tensor("visual.blocks.0.norm.weight", &[8]));
    fs::write(folder.path().join("model.safetensors"), safetensors(&tensors, Dtype::F32)).unwrap();
    folder
}

#[test]
fn tensors_are_found_below_the_prefixes_of_larger_models() {
    let request = GenerateRequest::new(vec![1, 2, 3], 6);
    let outcome = |folder: &Path| run_one(&mut open(folder, &small()).unwrap(), &request);
    let want = outcome(model_folder(&tiny_config(), Dtype::F32).path());
    for prefix in ["model.language_model.", "language_model.model.", "language_model.", ""] {
        let folder = renamed(|name| name.replacen("model.", prefix, 1));
        assert_eq!(outcome(folder.path()), want, "{prefix:?}");
    }
}

#[test]
fn shards_in_a_subfolder_are_found_and_count_as_the_models_weights() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &tiny_config(), Dtype::F32);
    let sub = folder.path().join("weights/all");
    fs::create_dir_all(&sub).unwrap();
    fs::rename(folder.path().join("model.safetensors"), sub.join("a.safetensors")).unwrap();
    let names = qwen3(&read(&tiny_config()))
        .into_iter()
        .map(|tensor| (tensor.name, json!("weights/all/a.safetensors")));
    let index = json!({ "weight_map": names.collect::<serde_json::Map<_, _>>() });
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let request = GenerateRequest::new(vec![1, 2, 3], 6);
    run_one(&mut open(folder.path(), &small()).unwrap(), &request);

    let digest = || {
        tilewise_engine::cache::keys::ModelDigest::of(&ModelSource::Folder(folder.path().to_owned())).unwrap()
    };
    let before = digest();
    let mut bytes = fs::read(sub.join("a.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(sub.join("a.safetensors"), bytes).unwrap();
    assert_ne!(digest(), before, "another weight is another model for the cache's tiers");
}

#[test]
fn an_output_matrix_that_is_not_the_embedding_is_used_with_a_note() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let path = folder.path().join("model.safetensors");
    let source = ModelSource::Folder(folder.path().to_owned());
    let request = GenerateRequest::new(vec![1, 2, 3], 12);
    let tied = run_one(&mut open(folder.path(), &small()).unwrap(), &request);

    let mut tensors = qwen3(&read(&tiny_config()));
    let mut head = tensor("model.embed_tokens.weight", &[131, 64]);
    head.name = "lm_head.weight".to_owned();
    tensors.push(head);
    fs::write(&path, safetensors(&tensors, Dtype::F32)).unwrap();
    let (config, _) = source.open().unwrap();
    assert!(config.tie_word_embeddings && config.notes.is_empty(), "the same matrix is no news");

    let mut untied = tiny_config();
    untied["tie_word_embeddings"] = json!(false);
    let other = model_folder(&untied, Dtype::F32);
    let want = run_one(&mut open(other.path(), &small()).unwrap(), &request);
    fs::copy(other.path().join("model.safetensors"), &path).unwrap();
    let mut engine = open(folder.path(), &small()).unwrap();
    assert_eq!(run_one(&mut engine, &request), want);
    assert_ne!(want, tied);
    let [note] = engine.notes() else { panic!("{:?}", engine.notes()) };
    assert!(note.contains("lm_head.weight") && note.contains("tie_word_embeddings"), "{note}");
}

#[test]
fn the_tensors_that_are_checked_are_those_of_the_model() {
    for (tied, bias) in [(true, false), (false, true)] {
        let mut config = tiny_config();
        (config["tie_word_embeddings"], config["attention_bias"]) = (json!(tied), json!(bias));
        let config = read(&config);
        let mut want: Vec<_> = qwen3(&config).into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
        let mut checked = (config.family.tensors)(&config);
        want.sort();
        checked.sort();
        assert_eq!(checked, want);
    }
}

#[test]
fn what_is_no_model_is_named_with_what_to_do() {
    let folder = || model_folder(&tiny_config(), Dtype::F32);
    let without = |names: &[&str]| {
        let folder = folder();
        names.iter().for_each(|name| fs::remove_file(folder.path().join(name)).unwrap());
        folder
    };
    let write = |folder: &TempDir, name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let bare = without(&["model.safetensors"]);
    refused(bare.path(), &["has neither model.safetensors nor", "give a folder"]);
    write(&bare, "model-q4.gguf", "GGUF");
    refused(bare.path(), &["model-q4.gguf is a GGUF file", "safetensors"]);
    let pickle = without(&["model.safetensors"]);
    write(&pickle, "pytorch_model.bin", "x");
    refused(pickle.path(), &["pytorch_model.bin is a pickle", "save_pretrained"]);
    let other = without(&["model.safetensors"]);
    write(&other, "model-00001-of-00002.safetensors", "x");
    refused(other.path(), &["model-00001-of-00002.safetensors", "index"]);
    let adapter = without(&["config.json", "model.safetensors"]);
    write(&adapter, "adapter_config.json", r#"{"base_model_name_or_path": "org/base"}"#);
    write(&adapter, "adapter_model.safetensors", "x");
    refused(adapter.path(), &["adapter (LoRA)", "org/base", "merge_and_unload"]);
    refused(without(&["config.json"]).path(), &["has no config.json"]);

    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1503300328\n";
    for name in ["model.safetensors", "config.json", "generation_config.json"] {
        let folder = folder();
        write(&folder, name, pointer);
        refused(folder.path(), &[name, "git-lfs pointer", "git lfs pull"]);
    }
    let folder = folder();
    write(&folder, "tokenizer.json", pointer);
    let tokenizer = || ModelSource::Folder(folder.path().to_owned()).tokenizer().err().unwrap().to_string();
    assert!(tokenizer().contains("git lfs pull"), "{}", tokenizer());
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(tokenizer().contains("is not there"), "{}", tokenizer());
    write(&folder, "tokenizer.model", "x");
    assert!(
        tokenizer().contains("tokenizer.model") && tokenizer().contains("save_pretrained"),
        "{}",
        tokenizer()
    );
}

#[cfg(unix)]
#[test]
fn links_to_files_that_are_gone_are_told_and_not_passed_over() {
    let files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"];
    for name in files {
        let folder = model_folder(&tiny_config(), Dtype::F32);
        let path = folder.path().join(name);
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink("../blobs/gone", &path).unwrap();
        refused(folder.path(), &[name, "is a link to ../blobs/gone, which is not there"]);
    }
    let folder = model_folder(&tiny_config(), Dtype::F32);
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    for name in ["chat_template.jinja", "chat_template.json"] {
        let path = folder.path().join(name);
        std::os::unix::fs::symlink("gone", &path).unwrap();
        let error = ModelSource::Folder(folder.path().to_owned()).tokenizer().err().unwrap().to_string();
        assert!(error.contains(name) && error.contains("is a link"), "{error}");
        fs::remove_file(path).unwrap();
    }
}
