//! `tilewise generate`: where its text comes from, how it is drawn and what ends it.
#![allow(clippy::print_stdout)]

mod common;

use std::process::{Command, Stdio};

use common::{demo, demo_with, path, piped, refusal, refused, run, run_json, said, text, tilewise};
use serde_json::{Value, json};

#[test]
fn generate_on_a_gpu_gives_the_text_of_the_cpu_in_f32() {
    if run(&["devices"]).lines().count() == 1 {
        println!("gpu: skipped, this machine has no adapter");
        refused(&["generate", "a", "--device", "gpu"], 1, &["gpu:0", "no GPU adapter", "use cpu"]);
        return;
    }
    let text = |device| {
        let args = ["generate", "def f(x):", "--max-new-tokens", "3", "--dtype", "f32", "--device", device];
        run(&args)
    };
    assert_eq!(text("gpu"), text("cpu"));
}

#[test]
fn the_embedded_model_continues_python() {
    let text = run(&[
        "generate",
        "import os\nimport sys\n\n\nclass Config:\n    def __init__(self, path",
        "--max-new-tokens",
        "60",
    ]);
    assert!(text.contains("self."), "{text}");
}

#[test]
fn sampling_parameters_that_mean_off_are_taken_as_servers_take_them() {
    let text = |flags: &[&str]| run(&[&["generate", "def f(x):", "-n", "8"], flags].concat());
    let greedy = text(&[]);
    let drawn = ["--temperature", "5", "--seed", "3"];
    assert_eq!(text(&[&drawn[..], &["--top-p", "0"]].concat()), greedy);
    assert_eq!(text(&[&drawn[..], &["--top-k", "-1"]].concat()), text(&drawn));
    assert_ne!(text(&drawn), greedy);
}

#[test]
fn a_text_ends_where_the_context_does() {
    let prompt = ["5"; 1020].join(",");
    for most in ["100000", "-1"] {
        let json = &run_json(&["generate", "--token-ids", &prompt, "-n", most, "--format", "json"])[0];
        assert_eq!(json["output_ids"].as_array().unwrap().len(), 4, "{json}");
        assert_eq!(json["finish_reason"], "length");
    }
}

#[test]
fn generate_ends_before_a_stop_string_and_at_the_token_that_completes_it() {
    let args = |stop: &str| {
        let json = &run_json(&[
            "generate",
            "def fibonacci(n):",
            "--max-new-tokens",
            "60",
            "--format",
            "json",
            "--stop",
            stop,
        ])[0];
        (json["text"].as_str().unwrap().to_owned(), json.clone())
    };
    let (whole, free) = args("no such text");
    assert_eq!((&free["stop"], &free["finish_reason"]), (&Value::Null, &json!("length")));
    let middle: String = whole.chars().skip(20).take(5).collect();
    let (text, stopped) = args(&middle);
    assert_eq!(text, whole[..whole.find(&middle).unwrap()]);
    assert_eq!((&stopped["stop"], &stopped["finish_reason"]), (&json!(middle), &json!("stop")));
    let ids = |json: &Value| json["output_ids"].as_array().unwrap().clone();
    assert!(ids(&free).starts_with(&ids(&stopped)) && ids(&stopped).len() < 60);
}

#[test]
fn generate_writes_what_a_schema_describes_and_refuses_a_broken_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("schema.json");
    let args = ["generate", "x = ", "--temperature", "1", "--seed", "3", "--json-schema", path(&file)];
    std::fs::write(&file, r#"{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}"#)
        .unwrap();
    let value: Value = serde_json::from_str(&run(&args)).unwrap();
    assert!(value.as_array().unwrap().iter().all(|x| x == 1 || x == 2), "{value}");
    std::fs::write(&file, r#"{"type": "nothing"}"#).unwrap();
    refused(&args, 2, &["grammar"]);
    std::fs::write(&file, "{").unwrap();
    refused(&args, 2, &["schema.json"]);
}

#[test]
fn generate_prints_the_same_as_text_and_as_json() {
    let args = ["generate", "def fibonacci(n):", "--max-new-tokens", "24"];
    let streamed = run(&args);
    let lines = run_json(&[&args[..], &["--format", "json"]].concat());
    assert_eq!(lines.len(), 1);
    let object = lines[0].as_object().unwrap();
    let want = [
        "prompt_ids",
        "output_ids",
        "text",
        "logprobs",
        "finish_reason",
        "stop",
        "prefill_s",
        "decode_median_s",
        "cached_tokens",
        "drafted",
        "accepted",
    ];
    let got: std::collections::BTreeSet<_> = object.keys().map(String::as_str).collect();
    assert_eq!(got, want.into());
    assert_eq!(streamed, format!("{}\n", object["text"].as_str().unwrap()));
    assert_eq!(object["output_ids"].as_array().unwrap().len(), 24);
    assert_eq!(object["logprobs"].as_array().unwrap().len(), 24);
    assert!(object["logprobs"].as_array().unwrap().iter().all(|x| x.as_f64().unwrap() <= 0.0));
    assert_eq!(object["finish_reason"], "length");
    assert!(object["prefill_s"].as_f64().unwrap() > 0.0 && object["decode_median_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn token_ids_replace_text_and_a_seed_repeats_a_draw() {
    let generate = |seed: &str, threads: &str| {
        let args = ["generate", "--token-ids", "5,6,7", "--max-new-tokens", "16", "--temperature", "1.0"];
        run_json(&[&args[..], &["--seed", seed, "--threads", threads, "--format", "json"]].concat()).remove(0)
    };
    let (first, again, other) = (generate("1", "1"), generate("1", "2"), generate("2", "1"));
    assert_eq!(first["prompt_ids"], json!([5, 6, 7]));
    assert_eq!((&first["output_ids"], &first["logprobs"]), (&again["output_ids"], &again["logprobs"]));
    assert_ne!(first["output_ids"], other["output_ids"]);
}

#[test]
fn a_chat_is_put_into_the_models_template() {
    let args = ["generate", "Hello", "--chat", "--max-new-tokens", "8", "--format", "json"];
    let chat = run_json(&args).remove(0);
    let prompt = chat["prompt_ids"].as_array().unwrap();
    // <|im_start|> opens two turns and <|im_end|> closes one.
    assert_eq!(prompt.iter().filter(|&id| *id == json!(1)).count(), 2);
    assert_eq!(prompt.iter().filter(|&id| *id == json!(2)).count(), 1);
}

#[test]
fn an_output_that_nobody_reads_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tilewise"))
        .args(["generate", "def f(x):", "--max-new-tokens", "50"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

const TEXT: &str = "def f(x):";

#[test]
fn a_prompt_comes_from_the_command_line_a_pipe_or_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    let most = ["--max-new-tokens", "6"];
    let want = run(&[&["generate", TEXT], &most[..]].concat());
    for end in ["", "\n", "\r\n"] {
        let input = format!("{TEXT}{end}");
        for args in [&["generate"][..], &["generate", "-"]] {
            assert_eq!(text(&piped(&[args, &most].concat(), &input).stdout), want, "{args:?} {input:?}");
        }
        std::fs::write(&file, input).unwrap();
        assert_eq!(run(&[&["generate", "--prompt-file", path(&file)], &most[..]].concat()), want, "{end:?}");
    }
    // A PROMPT leaves stdin alone.
    assert_eq!(text(&piped(&[&["generate", TEXT], &most[..]].concat(), "x = 1").stdout), want);
    // What the command line cannot carry.
    let long = "a b ".repeat(100_000);
    refusal(&["long"], &piped(&["generate"], &long), 2, &["context holds 1024", "shorten"]);
    std::fs::write(&file, [0xff]).unwrap();
    refused(&["generate", "--prompt-file", path(&file)], 2, &["prompt.txt", "UTF-8"]);
}

#[test]
fn a_chat_has_a_system_prompt_and_runs_to_its_end_token() {
    let ask = ["generate", "--chat", "Write a function that reverses a list.", "--format", "json"];
    let answer = run_json(&ask).remove(0);
    assert_eq!(answer["finish_reason"], "stop", "{answer}");
    let with = run_json(&[&ask[..], &["--system", "Be brief.", "--max-new-tokens", "1"]].concat()).remove(0);
    let opened = |answer: &Value| {
        answer["prompt_ids"].as_array().unwrap().iter().filter(|&id| *id == json!(1)).count()
    };
    // <|im_start|> opens one turn more.
    assert_eq!(opened(&with), opened(&answer) + 1);
    // 128 tokens are no limit: this one goes on until the context is full.
    let hi = run_json(&["generate", "--chat", "hi", "--format", "json"]).remove(0);
    let tokens = |field: &str| hi[field].as_array().unwrap().len();
    assert_eq!(
        (hi["finish_reason"].as_str(), tokens("prompt_ids") + tokens("output_ids")),
        (Some("length"), 1024)
    );
}

#[test]
fn the_models_sampling_is_the_default_is_told_and_gives_way_to_flags() {
    let config = json!({ "eos_token_id": [0, 2], "temperature": 0.9, "top_k": 7 }).to_string();
    let folder = demo_with(&[("generation_config.json", &config)]);
    let generate = |model: &str, flags: &[&str]| {
        let args = ["generate", TEXT, "--max-new-tokens", "24", "--seed", "1", "--model", model];
        let output = tilewise(&[&args, flags].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), said(&output))
    };
    let (model, plain) = (path(folder.path()), demo());
    let plain = path(&plain);
    let drawn = ["--temperature", "0.9", "--top-k", "7"];
    let (greedy, silent) = generate(plain, &[]);
    let (want, also_silent) = generate(plain, &drawn);
    assert!(silent.is_empty() && also_silent.is_empty() && greedy != want);
    let (text, told) = generate(model, &[]);
    assert_eq!(text, want);
    let [told] = &told[..] else { panic!("{told:?}") };
    for words in ["generation_config.json", "temperature 0.9", "top_k 7", "--sampling-defaults none"] {
        assert!(told.contains(words), "{told}");
    }
    assert_eq!(generate(model, &["--sampling-defaults", "none"]), (greedy, Vec::new()));
    // What a flag says is not the model's; 0 is all tokens.
    let (text, told) = generate(model, &["--top-k", "0"]);
    assert_eq!(text, generate(plain, &drawn[..2]).0);
    assert!(told[0].contains("temperature 0.9") && !told[0].contains("top_k"), "{told:?}");
}
