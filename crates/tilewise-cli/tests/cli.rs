//! The commands' contract: exit codes, what is on which stream, the form of lines and JSON.
#![allow(clippy::print_stdout)]

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{refused, run, run_json, text};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The keys of an object, in the order in which they were written.
fn keys(line: &str) -> Vec<String> {
    let inner = line.trim().trim_start_matches('{');
    inner
        .split(",\"")
        .filter_map(|part| Some(part.split_once("\":")?.0.trim_matches('"').to_owned()))
        .collect()
}

/// A folder with nothing but a small `config.json`.
fn tiny_model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 300,
        "max_position_embeddings": 256, "tie_word_embeddings": true, "eos_token_id": 1
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn bad_usage_exits_with_2_and_one_sentence() {
    refused(&["fly"], 2, &["fly", "tilewise --help"]);
    refused(&["generate"], 2, &["<PROMPT>"]);
    refused(&["generate", "a", "--token-ids", "1"], 2, &["--token-ids"]);
    refused(&["generate", "a", "--colour"], 2, &["--colour"]);
    refused(&["generate", "a", "--dtype", "f8"], 2, &["--dtype", "f32, f16 or bf16"]);
    refused(&["generate", "a", "--temperature", "-1"], 2, &["temperature"]);
    refused(&["generate", "a", "--temperature=-1"], 2, &["temperature"]);
    refused(&["generate", "a", "--top-p", "1.5"], 2, &["top_p"]);
    refused(&["generate", "a", "--top-k", "0"], 2, &["top_k"]);
    refused(&["generate", "a", "--min-p", "-0.1"], 2, &["min_p"]);
    refused(&["generate", "a", "--repetition-penalty", "0"], 2, &["repetition_penalty"]);
    refused(&["generate", "a", "--presence-penalty", "-2.5"], 2, &["presence_penalty"]);
    refused(&["generate", "a", "--frequency-penalty", "nan"], 2, &["frequency_penalty"]);
    refused(&["generate", "a", "--json-schema", "/no/such/file"], 2, &["/no/such/file"]);
    refused(&["generate", "a", "--max-new-tokens", "0"], 2, &["max_new_tokens"]);
    refused(&["generate", "a", "--max-new-tokens", "100000"], 2, &["context"]);
    refused(&["generate", ""], 2, &["empty"]);
    refused(&["generate", "--token-ids", "1,x"], 2, &["--token-ids"]);
    refused(&["generate", "--token-ids", "999999"], 2, &["999999", "vocabulary"]);
    refused(&["generate", "a", "--threads", "0"], 2, &["threads"]);
    refused(&["bench", "attention", "--layout", "round"], 2, &["--layout"]);
    refused(&["bench", "attention", "--head-dim", "12"], 2, &["head_dim"]);
    refused(&["bench", "attention", "--qo-heads", "3", "--kv-heads", "2"], 2, &["num_qo_heads"]);
    refused(&["bench", "attention", "--q-len", "0"], 2, &["--q-len"]);
    refused(&["bench", "attention", "--q-len", "8", "--kernel", "fast"], 2, &["kernel", "fast"]);
    refused(&["bench", "attention", "--layout", "paged", "--q-len", "9", "--kv-len", "8"], 2, &["--kv-len"]);
    let paged =
        ["bench", "attention", "--layout", "paged", "--q-len", "1", "--kv-len", "64", "--shared-prefix"];
    for keys in ["60", "64", "18446744073709551600"] {
        refused(&[&paged[..], &[keys]].concat(), 2, &["--shared-prefix", keys, "pages of 16"]);
    }
    refused(&["bench", "attention", "--q-len", "64", "--shared-prefix", "16"], 2, &["--layout paged"]);
    refused(&["bench-one-batch", "--tp-size", "2"], 2, &["--tp-size 2"]);
    refused(&["bench-one-batch", "--batch-size", "0"], 2, &["--batch-size"]);
    refused(&["bench-one-batch", "--load-format", "dummy"], 2, &["--model-path"]);
}

#[test]
fn what_cannot_be_done_exits_with_1_and_one_sentence() {
    refused(&["generate", "a", "--model", "/no/such/folder"], 1, &["/no/such/folder", "org/name"]);
    refused(&["generate", "a", "--device", "tpu"], 1, &["tpu", "auto, cpu, gpu or gpu:N"]);
    refused(&["generate", "a", "--device", "gpu:x"], 1, &["gpu:x", "auto, cpu, gpu or gpu:N"]);
    refused(&["generate", "a", "--device", "gpu:99"], 1, &["gpu:99", "this machine has", "GPU adapter"]);
    refused(&["inspect", "/no/such/folder"], 1, &["/no/such/folder"]);
    let folder = tiny_model();
    refused(&["generate", "a", "--model", path(folder.path())], 1, &["tokenizer.json"]);
    refused(&["generate", "--token-ids", "1", "--model", path(folder.path())], 1, &["model.safetensors"]);
}

#[test]
fn help_and_version_go_to_stdout() {
    for args in [&["--help"][..], &["generate", "--help"], &["bench", "attention", "--help"], &["--version"]]
    {
        assert!(!run(args).is_empty());
    }
    for command in ["generate", "bench", "bench-one-batch", "devices", "explain", "inspect"] {
        assert!(run(&["--help"]).contains(command));
    }
}

#[test]
fn devices_are_the_cpu_and_every_adapter_and_auto_takes_a_real_one() {
    let devices = run_json(&["devices", "--format", "json"]);
    assert_eq!((&devices[0]["name"], &devices[0]["software"]), (&json!("cpu"), &json!(false)));
    for (index, adapter) in devices[1..].iter().enumerate() {
        assert_eq!(adapter["name"], format!("gpu:{index}"));
        assert!(!adapter["description"].as_str().unwrap().is_empty());
    }
    let lines = run(&["devices"]);
    for (line, device) in lines.lines().zip(&devices) {
        assert!(line.starts_with(device["name"].as_str().unwrap()), "{line}");
        assert_eq!(line.contains("software"), device["software"] == json!(true), "{line}");
    }
    assert_eq!(lines.lines().count(), devices.len());
    let real = devices[1..].iter().find(|adapter| adapter["software"] == json!(false));
    let taken =
        run_json(&[&["explain", "--device", "auto", "--format", "json"], &SHAPE[..]].concat()).remove(0);
    assert_eq!(taken["device"], real.map_or(json!("cpu"), |adapter| adapter["name"].clone()));
}

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

/// The numbers of a line.
fn numbers(line: &str) -> Vec<f64> {
    line.split(|c: char| !c.is_ascii_digit() && c != '.').filter_map(|word| word.parse().ok()).collect()
}

/// Checks one combination's lines and returns the rest.
fn check_run(lines: &[String], batch: usize, decodes: &[usize]) -> Vec<String> {
    let mut lines = lines.iter();
    let mut next = || lines.next().unwrap().clone();
    let line = next();
    let n = numbers(&line);
    assert_eq!(line, format!("Prefill. latency: {:6.5} s, throughput: {:9.2} token/s", n[0], n[1]));
    for step in decodes {
        let line = next();
        let n = numbers(&line);
        let (latency, rate) = (n[2], n[3]);
        let want = format!(
            "Decode {step}. Batch size: {batch}, latency: {latency:6.5} s, throughput: {rate:9.2} token/s"
        );
        assert_eq!(line, want);
    }
    if !decodes.is_empty() {
        let line = next();
        let n = numbers(&line);
        let want =
            format!("Decode.  median latency: {:6.5} s, median throughput: {:9.2} token/s", n[0], n[1]);
        assert_eq!(line, want);
    }
    let line = next();
    let n = numbers(&line);
    assert_eq!(line, format!("Total. latency: {:6.3} s, throughput: {:9.2} token/s", n[0], n[1]));
    lines.cloned().collect()
}

#[test]
fn bench_one_batch_prints_its_lines_and_appends_its_results() {
    let folder = tiny_model();
    let results = folder.path().join("result.jsonl");
    let args = [
        "bench-one-batch",
        "--model-path",
        path(folder.path()),
        "--load-format",
        "dummy",
        "--run-name",
        "tiny",
    ];
    let sizes =
        ["--batch-size", "1", "3", "--input-len", "20", "--output-len", "9", "1", "--log-decode-step", "7"];
    let file = ["--result-filename", path(&results), "--disable-radix-cache", "--dtype", "f32"];
    let out = run(&[&args[..], &sizes, &file].concat());
    let lines: Vec<String> = out.lines().map(str::to_owned).collect();
    assert!(
        lines[0].strip_prefix("max_total_num_tokens=").is_some_and(|n| n.parse::<usize>().unwrap() >= 3 * 29)
    );
    assert_eq!(lines[1], "Warmup ...");
    let decodes = [0, 1, 2, 3, 4, 7];
    let rest = check_run(&lines[2..], 1, &decodes);
    assert_eq!(rest[0], "Benchmark ...");
    let mut rest = rest[1..].to_vec();
    for (batch, decodes) in [(1, &decodes[..]), (1, &[]), (3, &decodes), (3, &[])] {
        rest = check_run(&rest, batch, decodes);
    }
    assert!(rest.is_empty(), "{rest:?}");

    let written = std::fs::read_to_string(&results).unwrap();
    let written: Vec<&str> = written.lines().collect();
    assert_eq!(written.len(), 4);
    let all = [
        "run_name",
        "batch_size",
        "input_len",
        "output_len",
        "prefill_latency",
        "prefill_throughput",
        "median_decode_latency",
        "median_decode_throughput",
        "total_latency",
        "overall_throughput",
    ];
    assert_eq!(keys(written[0]), all);
    assert_eq!(keys(written[1]), [&all[..6], &all[8..]].concat());
    let record: Value = serde_json::from_str(written[2]).unwrap();
    assert_eq!(
        (&record["run_name"], &record["batch_size"], &record["input_len"]),
        (&json!("tiny"), &json!(3), &json!(20))
    );
    let total = record["total_latency"].as_f64().unwrap();
    let overall = record["overall_throughput"].as_f64().unwrap();
    assert!((overall - (20.0 + 9.0) * 3.0 / total).abs() < 1e-6 * overall);

    run(&[&args[..], &["--input-len", "4", "--output-len", "2"], &file].concat());
    assert_eq!(std::fs::read_to_string(&results).unwrap().lines().count(), 5, "results are appended");

    // Prompts of 2, 6 and 10 tokens.
    let ragged = ["--batch-size", "3", "--min-input-len", "2", "--input-len", "10", "--output-len", "4"];
    run(&[&args[..], &ragged, &file].concat());
    let written = std::fs::read_to_string(&results).unwrap();
    let record: Value = serde_json::from_str(written.lines().last().unwrap()).unwrap();
    let number = |key: &str| record[key].as_f64().unwrap();
    assert_eq!(record["min_input_len"], json!(2));
    assert!((number("prefill_throughput") * number("prefill_latency") - 18.0).abs() < 1e-6);
    assert!((number("overall_throughput") * number("total_latency") - 30.0).abs() < 1e-6);
    refused(&[&args[..], &["--min-input-len", "5", "--input-len", "4"]].concat(), 2, &["--min-input-len"]);
}

#[test]
fn the_correctness_test_shows_that_parts_and_whole_agree() {
    let folder = tiny_model();
    let dummy = ["--model-path", path(folder.path()), "--load-format", "dummy"];
    for args in [&dummy[..], &[]] {
        let args = [&["bench-one-batch", "--correctness-test", "--cut-len", "3", "--output-len", "8"], args]
            .concat();
        let out = run(&args);
        assert_eq!(out.matches("agree in every bit: yes").count(), 3, "{out}");
        assert_eq!(out.matches("prefill logits (final): ").count(), 3);
    }
}

const SHAPE: [&str; 6] = ["--q-len", "20", "--qo-heads", "4", "--kv-heads", "2"];

#[test]
fn bench_attention_checks_and_times_every_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let html = folder.path().join("report.html");
    let sweep = ["--kv-len", "20,40", "--causal", "--layout", "dense,ragged,paged", "--dtype", "f32,bf16"];
    let more = ["--head-dim", "64", "--budget", "0.001", "--html", path(&html), "--format", "json"];
    let lines = run_json(&[&["bench", "attention"], &SHAPE[..], &sweep, &more].concat());
    let shapes = 2 * 3 * 2;
    assert!(lines.len() >= 2 * shapes, "{}", lines.len());
    for line in &lines {
        for key in ["median_s", "min_s", "gflops", "kv_gb_s"] {
            assert!(line[key].as_f64().unwrap() > 0.0, "{key} of {line}");
        }
        for key in ["kernel", "device", "dtype", "threads", "selected"] {
            assert!(!line[key].is_null(), "{key} of {line}");
        }
        assert!(line["max_abs_err"].as_f64().unwrap() < 0.02 && line["runs"].as_u64().unwrap() >= 5);
    }
    assert_eq!(lines.iter().filter(|line| line["selected"] == true).count(), shapes);

    let report = std::fs::read_to_string(&html).unwrap();
    assert!(report.contains("<svg") && report.contains("prefers-color-scheme: dark"));
    for host in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!report.contains(host), "the report asks for {host}");
    }
    // Wide tables scroll in a box of their own, and what the numbers mean is said.
    for words in
        ["width=device-width", "<div class=\"wide\"", "overflow-x: auto", "Shares above 100 %", "<dt>Colours"]
    {
        assert!(report.contains(words), "{words}");
    }
    // A kernel has one colour, and no other kernel has it.
    let kernels: HashSet<_> = lines.iter().map(|line| line["kernel"].as_str().unwrap()).collect();
    let named = |kernel: &str| {
        let end = format!("\"></span>{kernel}");
        let colors =
            report.match_indices(&end).map(|(at, _)| report[..at].rsplit(' ').next().unwrap().to_owned());
        colors.collect::<HashSet<String>>()
    };
    let colors: Vec<_> = kernels.iter().map(|kernel| named(kernel)).collect();
    assert!(colors.iter().all(|one| one.len() == 1), "{colors:?}");
    assert_eq!(colors.iter().flatten().collect::<HashSet<_>>().len(), kernels.len(), "{colors:?}");
}

#[test]
fn bench_attention_checks_keys_in_shared_pages_too() {
    let sizes = ["--batch", "3", "--qo-heads", "4", "--kv-heads", "2", "--head-dim", "16"];
    let lens = ["--q-len", "1", "--kv-len", "1100", "--layout", "paged", "--shared-prefix", "1024"];
    let more = ["--budget", "0", "--format", "json", "--threads", "1"];
    let lines = run_json(&[&["bench", "attention"], &sizes[..], &lens, &more].concat());
    for line in &lines {
        assert_eq!(line["shared_prefix"], 1024, "{line}");
        assert!(line["max_abs_err"].as_f64().unwrap() < 1e-5, "{line}");
    }
    assert!(lines.iter().any(|line| line["kernel"] == "decode-split-kv"));
}

#[test]
fn bench_attention_counts_causal_as_half_and_a_window_exactly() {
    let gflop = |args: &[&str]| {
        let args = [
            &["bench", "attention", "--head-dim", "64", "--budget", "0", "--kernel", "prefill"],
            &SHAPE[..],
            args,
        ];
        let line = run_json(&[args.concat(), vec!["--format", "json"]].concat()).remove(0);
        line["gflops"].as_f64().unwrap() * line["median_s"].as_f64().unwrap() * 1e9
    };
    let full = 4.0 * 64.0 * 4.0 * 20.0 * 20.0;
    assert!((gflop(&[]) - full).abs() < 1.0);
    assert!((gflop(&["--causal"]) - full / 2.0).abs() < 1.0);
    // Each query sees itself and the three before it, the first three fewer.
    let window = 4.0 * 64.0 * 4.0 * f64::from(1 + 2 + 3 + 17 * 4);
    assert!((gflop(&["--causal", "--window", "3"]) - window).abs() < 1.0);
}

#[test]
fn explain_names_kernel_rule_and_record() {
    let lines = run_json(&[&["explain"], &SHAPE[..], &["--kv-len", "20,5000", "--format", "json"]].concat());
    assert_eq!(lines.len(), 2);
    for line in lines {
        assert!(line["rule"].as_str().is_some_and(|rule| !rule.is_empty()));
        assert!(line["evidence"].as_str().unwrap().starts_with("bench/records/"));
    }
    let forced = run(&["explain", "--q-len", "1", "--kernel", "prefill"]);
    assert!(forced.contains("prefill") && forced.contains("--kernel"), "{forced}");
}

#[test]
fn inspect_counts_parameters_and_tokens() {
    let report = run_json(&["inspect", "--format", "json"]).remove(0);
    assert_eq!(report["architecture"], "Qwen3ForCausalLM");
    let parameters = report["parameters"].as_u64().unwrap();
    assert_eq!(report["weight_bytes"].as_u64().unwrap(), 2 * parameters);
    assert_eq!(report["fits"], true);
    for kv in report["kv"].as_array().unwrap() {
        assert!(kv["bytes_per_token"].as_u64().unwrap() > 0 && kv["tokens"].as_u64().unwrap() > 0);
    }
    assert!(run(&["inspect"]).contains("Qwen3ForCausalLM"));
}

#[test]
fn the_written_documentation_has_every_command_and_help_hides_its_writer() {
    let (help, commands) = (run(&["--help"]), run(&["docs", "commands"]));
    assert!(!help.contains("docs"), "{help}");
    for command in ["generate", "serve", "inspect", "bench attention", "bench-one-batch"] {
        assert!(commands.contains(&format!("## `tilewise {command}`")), "{command}");
    }
    assert!(run(&["docs", "kernels"]).contains("decode-split-kv"));
}
