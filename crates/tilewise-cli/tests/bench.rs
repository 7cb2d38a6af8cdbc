//! `tilewise bench attention` and `bench-one-batch`: what they print, check, count and write.

mod common;

use std::collections::HashSet;

use common::{path, refused, run, run_json, tiny_model};
use serde_json::{Value, json};

/// The keys of an object, in the order in which they were written.
fn keys(line: &str) -> Vec<String> {
    let inner = line.trim().trim_start_matches('{');
    inner
        .split(",\"")
        .filter_map(|part| Some(part.split_once("\":")?.0.trim_matches('"').to_owned()))
        .collect()
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
fn bench_one_batch_measures_what_the_context_holds_unless_told() {
    let folder = tiny_model();
    let results = folder.path().join("result.jsonl");
    let args = ["bench-one-batch", "--model", path(folder.path()), "--load-format", "dummy"];
    run(&[&args[..], &["--output-len", "2", "5", "--result-filename", path(&results)]].concat());
    let written = std::fs::read_to_string(&results).unwrap();
    let lens = written.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["input_len"].clone());
    assert_eq!(lens.collect::<Vec<_>>(), [json!(251), json!(251)]);
    let words = ["--input-len 250", "--output-len 7", "256"];
    refused(&[&args[..], &["--input-len", "250", "--output-len", "7"]].concat(), 2, &words);
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
