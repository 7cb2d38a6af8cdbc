//! `tilewise tune` and `--policy`: a device's own measurements choose its kernels, and only its own.
#![allow(clippy::print_stdout)]

mod common;

use std::path::Path;

use common::{run, text, tilewise};
use serde_json::Value;

/// Whether this machine has a GPU of any kind.
fn has_gpu() -> bool {
    let has = tilewise(&["explain", "--device", "gpu", "--q-len", "1"]).status.success();
    if !has {
        println!("gpu: skipped, this machine has none");
    }
    has
}

/// Writes a policy by measuring next to nothing.
fn tune(device: &str, path: &Path) -> Value {
    let grid =
        ["--rows", "1,3", "--kv-len", "40", "--head-dim", "64", "--kv-dtype", "f16,f32", "--batch", "1"];
    let file = ["--budget", "0", "--out", path.to_str().unwrap()];
    let out = run(&[&["tune", "--device", device], &grid[..], &file].concat());
    assert!(out.contains("heads of 64, f16: decode-split-kv up to"), "{out}");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_tuned_policy_is_used_on_its_device_and_refused_on_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.json");
    let device = if has_gpu() { "gpu" } else { "cpu" };
    let written = tune(device, &path);
    assert_eq!(written["schema"], 1);
    // Two types, two numbers of rows, at least two kernels.
    assert!(written["measured"].as_array().unwrap().len() >= 8);
    for row in written["measured"].as_array().unwrap() {
        assert!(row["median_s"].as_f64().unwrap() > 0.0 && row["runs"].as_u64().unwrap() >= 5, "{row}");
    }

    let file = path.to_str().unwrap();
    let shape =
        ["--q-len", "1", "--kv-len", "999", "--head-dim", "64", "--kv-dtype", "f16", "--layout", "paged"];
    let explain = |more: &[&str]| {
        let out = run(&[&["explain", "--device", device], &shape[..], more].concat());
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let with = explain(&["--policy", file, "--format", "json"]);
    assert_eq!(with["evidence"], file);
    assert!(with["rule"].as_str().unwrap().contains("measured on this device"), "{with}");
    let without = explain(&["--format", "json"]);
    assert!(without["evidence"].as_str().unwrap().starts_with("bench/records/"), "{without}");

    // The same text with the policy as without.
    let generate = ["generate", "def f(x):", "--device", device, "--max-new-tokens", "8", "--dtype", "f32"];
    assert_eq!(run(&[&generate[..], &["--policy", file]].concat()), run(&generate));

    for (key, value, word) in [("schema", Value::from(7), "schema 7"), ("device", "Mars".into(), "Mars")] {
        let mut other = written.clone();
        other[key] = value;
        std::fs::write(&path, other.to_string()).unwrap();
        let output = tilewise(&["explain", "--device", device, "--q-len", "1", "--policy", file]);
        // A software driver may have said something of its own before.
        let stderr = text(&output.stderr).lines().last().unwrap().to_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("tilewise: "), "{stderr}");
        assert!(stderr.contains(word) && stderr.contains("tilewise tune"), "{stderr}");
    }
}

#[test]
fn a_gpu_is_benched_like_a_processor() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let html = folder.path().join("report.html");
    let shape =
        ["--q-len", "1,20", "--kv-len", "33", "--qo-heads", "4", "--kv-heads", "2", "--head-dim", "64"];
    let more =
        ["--layout", "dense,paged", "--kv-dtype", "f16", "--causal", "--budget", "0", "--format", "json"];
    let file = ["--html", html.to_str().unwrap()];
    let out = run(&[&["bench", "attention", "--device", "gpu"], &shape[..], &more, &file].concat());
    let rows: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.len() >= 8, "{out}");
    for row in &rows {
        assert!(
            row["median_s"].as_f64().unwrap() > 0.0 && row["max_abs_err"].as_f64().unwrap() < 1e-4,
            "{row}"
        );
        assert!(
            row["peak_gflops"].as_f64().unwrap() > 0.0 && row["read_gb_s"].as_f64().unwrap() > 0.0,
            "{row}"
        );
    }
    assert!(std::fs::read_to_string(html).unwrap().contains("<svg"));

    let results = folder.path().join("result.jsonl");
    let sizes = ["--batch-size", "2", "--input-len", "9", "--output-len", "4", "--dtype", "f32"];
    let file = ["--result-filename", results.to_str().unwrap()];
    let out = run(&[&["bench-one-batch", "--device", "gpu"], &sizes[..], &file].concat());
    let line = out.lines().rfind(|line| line.starts_with("Device. ")).unwrap();
    assert!(line.contains("launches") && line.contains(" 1.0 reads"), "{line}");
    println!("{line}");
    let record: Value = serde_json::from_str(&std::fs::read_to_string(results).unwrap()).unwrap();
    assert!(record["launches_per_decode_step"].as_f64().unwrap() > 1.0, "{record}");
}
