//! `--model` as people give it, and what `inspect` says of a folder.

mod common;
#[path = "../../tilewise-engine/tests/hub/server.rs"]
#[allow(dead_code, reason = "the engine's tests use the rest")]
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{refused, run, text};
use serde_json::{Value, json};
use server::Hub;
use tempfile::TempDir;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

/// The demo model's folder, to be changed.
fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_to(folder.path());
    folder
}

const FILES: [&str; 5] =
    ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

fn copy_to(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for name in FILES {
        fs::copy(demo().join(name), folder.join(name)).unwrap();
    }
}

fn change(folder: &TempDir, name: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.path().join(name);
    let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

fn path(folder: &TempDir) -> &str {
    folder.path().to_str().unwrap()
}

/// A command with a Hugging Face home of its own, and none of the variables around the test.
fn with_home(home: &Path, variables: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilewise"));
    let ours = ["HF_", "HUGGING", "TRANSFORMERS_", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    for (name, _) in std::env::vars_os() {
        if ours.iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    command.env("HF_HOME", home).envs(variables.iter().copied()).args(args).output().unwrap()
}

const GENERATE: [&str; 5] = ["generate", "--max-new-tokens", "4", "def fibonacci(n):", "--model"];

#[test]
fn a_model_of_the_hub_is_fetched_with_the_token_of_the_home_and_then_found_offline() {
    let files: BTreeMap<String, Vec<u8>> =
        FILES.iter().map(|name| ((*name).to_owned(), fs::read(demo().join(name)).unwrap())).collect();
    let (hub, home) = (Hub::start(files, None), tempfile::tempdir().unwrap());
    fs::write(home.path().join("token"), "hf_file\n").unwrap();
    let endpoint = ("HF_ENDPOINT", hub.address.as_str());
    let args = [&GENERATE[..], &["org/name"]].concat();
    let bearers = || {
        let asked = hub.asked();
        asked.iter().filter_map(|asked| asked.headers.get("authorization").cloned()).collect::<Vec<_>>()
    };
    let want = run(&[&GENERATE[..], &[demo().to_str().unwrap()]].concat());

    let output = with_home(home.path(), &[endpoint], &args);
    assert_eq!(text(&output.stdout), want, "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("tilewise: fetching model.safetensors (15877704 bytes)"));
    let sent = bearers();
    assert!(!sent.is_empty() && sent.iter().all(|bearer| bearer == "Bearer hf_file"), "{sent:?}");

    let output = with_home(home.path(), &[("HF_HUB_OFFLINE", "1")], &args);
    assert_eq!(text(&output.stdout), want, "{}", text(&output.stderr));
    let elsewhere = tempfile::tempdir().unwrap();
    let output = with_home(elsewhere.path(), &[("HF_HUB_OFFLINE", "1")], &args);
    let error = text(&output.stderr);
    assert!(error.contains("org/name") && error.contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");

    let revision = [&args[..], &["--revision", "v1"]].concat();
    let output = with_home(home.path(), &[endpoint, ("HF_TOKEN", "hf_variable")], &revision);
    assert_eq!(text(&output.stdout), want, "{}", text(&output.stderr));
    assert!(bearers().iter().all(|bearer| bearer == "Bearer hf_variable"));
}

#[cfg(unix)]
#[test]
fn a_cache_of_the_python_library_is_read_by_its_path_and_by_name() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("hub/models--Qwen--Qwen3-0.6B");
    for folder in ["blobs", "refs", "snapshots/abc"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("refs/main"), "abc").unwrap();
    for name in FILES {
        fs::copy(demo().join(name), root.join("blobs").join(name)).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{name}"), root.join("snapshots/abc").join(name))
            .unwrap();
    }
    let want = run(&[&GENERATE[..], &[demo().to_str().unwrap()]].concat());
    for model in [root.to_str().unwrap(), root.join("snapshots/abc").to_str().unwrap(), "Qwen/Qwen3-0.6B"] {
        let output = with_home(home.path(), &[("HF_HUB_OFFLINE", "1")], &[&GENERATE[..], &[model]].concat());
        assert_eq!(text(&output.stdout), want, "{model}: {}", text(&output.stderr));
    }
    let inspect = ["inspect", "Qwen/Qwen3-0.6B", "--format", "json"];
    let report = text(&with_home(home.path(), &[("HF_HUB_OFFLINE", "1")], &inspect).stdout);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["model"], "Qwen/Qwen3-0.6B");
}

#[test]
fn a_model_that_cannot_be_loaded_is_named_with_what_can() {
    let folder = copy();
    let gguf = folder.path().join("q.gguf");
    fs::write(&gguf, "GGUF\x03\0\0\0").unwrap();
    let refuse = |model: &str, words: &[&str]| refused(&["generate", "hi", "--model", model], 1, words);
    refuse(gguf.to_str().unwrap(), &["GGUF", "safetensors"]);
    refuse("./nowhere", &["there is no such folder", "org/name"]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1503300328\n";
    fs::write(folder.path().join("model.safetensors"), pointer).unwrap();
    refuse(path(&folder), &["model.safetensors", "git lfs pull"]);
    refused(&["generate", "hi", "--revision", "v1"], 2, &["--revision", "--model"]);
    refused(&["generate", "hi", "--model", path(&folder), "--revision", "v1"], 1, &["--revision"]);
    refused(&["generate", "hi", "--speculate", "./nowhere"], 1, &["./nowhere", "no such folder"]);
}

#[test]
fn what_is_set_aside_is_noted_on_stderr() {
    let folder = copy();
    change(&folder, "generation_config.json", |json| json["eos_token_id"] = json!([151_645, 2]));
    change(&folder, "tokenizer_config.json", |json| {
        json["added_tokens_decoder"]["9000"] = json!({ "content": "<far>", "special": true });
    });
    let output = common::tilewise(&[&GENERATE[..], &[path(&folder)]].concat());
    let error = text(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(error.contains("tilewise: note: ") && error.contains("151645 is ignored"), "{error}");
    assert!(error.contains("the token <far> with the id 9000 is ignored"), "{error}");
}

#[test]
fn inspect_says_what_generate_would_say() {
    let folder = copy();
    let report = run(&["inspect", path(&folder)]);
    assert!(
        report.contains("4096 tokens, with chat template") && report.contains("the weights fit"),
        "{report}"
    );

    fs::write(folder.path().join("chat_template.jinja"), "{% if %}").unwrap();
    let report = run(&["inspect", path(&folder)]);
    assert!(report.contains("no chat template") && report.contains("chats are refused"), "{report}");
    run(&[&GENERATE[..], &[path(&folder)]].concat());
    refused(&["generate", "hi", "--chat", "--model", path(&folder)], 1, &["chat template", "line 1"]);

    fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    let output = common::tilewise(&["inspect", path(&folder)]);
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    let line = report.lines().find(|line| line.starts_with("tokenizer")).unwrap();
    assert!(line.contains("cannot be used") && line.contains("tokenizer.json"), "{line}");
    let generate = common::tilewise(&["generate", "hi", "--model", path(&folder)]);
    assert_eq!(text(&generate.stderr), text(&output.stderr));

    fs::write(folder.path().join("model.safetensors"), [&[2u8, 0, 0, 0, 0, 0, 0, 0][..], b"{}"].concat())
        .unwrap();
    refused(&["inspect", path(&folder)], 1, &["model.safetensors", "model.embed_tokens.weight", "missing"]);
    refused(
        &["generate", "--token-ids", "1", "--model", path(&folder)],
        1,
        &["model.embed_tokens.weight", "missing"],
    );
}

#[test]
fn a_turn_ends_at_the_end_token_that_only_the_tokenizer_names() {
    let folder = copy();
    for name in ["config.json", "generation_config.json"] {
        change(&folder, name, |json| drop(json.as_object_mut().unwrap().remove("eos_token_id")));
    }
    change(&folder, "tokenizer_config.json", |json| json["eos_token"] = json!("<|im_end|>"));
    let prompt = "Write a Python function `find`: Return the index of the first match, or -1.";
    let args = [
        "generate",
        "--format",
        "json",
        "--max-new-tokens",
        "90",
        "--chat",
        prompt,
        "--model",
        path(&folder),
    ];
    let answer = common::run_json(&args).remove(0);
    assert_eq!(answer["finish_reason"], "stop", "{answer}");
}

#[test]
fn a_folder_with_dummy_weights_that_is_served_is_asked_for_its_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(demo().join("config.json"), folder.path().join("config.json")).unwrap();
    let words = ["tokenizer.json", "is not there", "beside its config.json"];
    refused(&["serve", "--port", "0", "--load-format", "dummy", "--model", path(&folder)], 1, &words);
}
