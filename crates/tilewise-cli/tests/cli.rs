//! The commands' contract: exit codes, what is on which stream, the form of lines and JSON.

mod common;

use common::{path, refused, run, run_json, said, tilewise, tiny_model};
use serde_json::json;

const SHAPE: [&str; 6] = ["--q-len", "20", "--qo-heads", "4", "--kv-heads", "2"];

#[test]
fn bad_usage_exits_with_2_and_one_sentence() {
    refused(&["fly"], 2, &["fly", "tilewise --help"]);
    refused(&["generate"], 2, &["stdin", "PROMPT"]);
    refused(&["generate", "a", "--token-ids", "1"], 2, &["--token-ids"]);
    refused(&["generate", "a", "--colour"], 2, &["--colour"]);
    refused(&["generate", "a", "--dtype", "f8"], 2, &["--dtype", "f32, f16 or bf16"]);
    refused(&["generate", "a", "--temperature", "-1"], 2, &["temperature"]);
    refused(&["generate", "a", "--temperature=-1"], 2, &["temperature"]);
    refused(&["generate", "a", "--top-p", "1.5"], 2, &["--top-p"]);
    refused(&["generate", "a", "--top-k", "-2"], 2, &["--top-k", "-1 for all"]);
    refused(&["generate", "a", "--seed", "-1"], 2, &["--seed"]);
    refused(&["generate", "a", "--min-p", "-0.1"], 2, &["--min-p"]);
    refused(&["generate", "a", "--repetition-penalty", "0"], 2, &["--repetition-penalty"]);
    refused(&["generate", "a", "--presence-penalty", "-2.5"], 2, &["--presence-penalty"]);
    refused(&["generate", "a", "--frequency-penalty", "nan"], 2, &["--frequency-penalty"]);
    refused(&["generate", "a", "--json-schema", "/no/such/file"], 2, &["/no/such/file"]);
    refused(&["generate", "a", "--max-new-tokens", "0"], 2, &["--max-new-tokens", "one token"]);
    refused(&["generate", "a", "-n", "-2"], 2, &["--max-new-tokens", "-1"]);
    refused(&["generate", "a", "--prompt", "b"], 2, &["--prompt"]);
    refused(&["generate", &"a b ".repeat(2000)], 2, &["tokens", "context holds 1024", "shorten", "--model"]);
    for flags in [&["--system", "x"][..], &["--think"], &["--no-think"]] {
        refused(&[&["generate", "a"], flags].concat(), 2, &[flags[0], "--chat"]);
    }
    refused(&["generate", "a", "--chat", "--think"], 2, &["--think", "chat template"]);
    refused(&["generate", "a", "--prompt-file", "b"], 2, &["--prompt-file"]);
    refused(&["generate", "--prompt-file", "/no/such/file"], 2, &["/no/such/file"]);
    refused(&["generate", ""], 2, &["empty"]);
    refused(&["generate", "--token-ids", "1,x"], 2, &["--token-ids"]);
    refused(&["generate", "--token-ids", "999999"], 2, &["999999", "vocabulary"]);
    refused(&["generate", "a", "--threads", "0"], 2, &["threads"]);
    refused(&["bench", "attention", "--layout", "round"], 2, &["--layout"]);
    refused(&["bench", "attention", "--head-dim", "12"], 2, &["--head-dim"]);
    refused(&["bench", "attention", "--qo-heads", "3", "--kv-heads", "2"], 2, &["--qo-heads"]);
    refused(&["bench", "attention", "--q-len", "0"], 2, &["--q-len"]);
    refused(
        &["bench", "attention", "--q-len", "8", "--kernel", "fast"],
        2,
        &["--kernel", "fast", "there are prefill,"],
    );
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
fn a_slip_of_the_keys_gets_the_whole_tip() {
    let cases: [(&[&str], &[&str]); 7] = [
        (&["serve", "some/folder"], &["some/folder", "--model", "see tilewise serve --help"]),
        (&["generat", "a"], &["generat", "a similar subcommand exists: 'generate'", "see tilewise --help"]),
        (&["generate", "a", "--temprature", "1"], &["'--temperature'", "see tilewise generate --help"]),
        (&["bench", "attn"], &["'attention'", "see tilewise bench --help"]),
        (&["bench", "attention", "--kv", "5"], &["'--kv-len'", "see tilewise bench attention --help"]),
        (&["generate", "a", "--format", "xml"], &["--format", "text, json"]),
        (&["generate", "-- a comment"], &["as a value", "tilewise generate -- '-- a comment'"]),
    ];
    for (args, words) in cases {
        refused(args, 2, words);
    }
    let dashed = run(&["generate", "--max-new-tokens", "1", "--", "-- a comment"]);
    assert_eq!(run(&["generate", "-n", "1", "-p", "-- a comment"]), dashed);
}

#[test]
fn files_that_cannot_be_written_are_noticed_before_anything_is_measured() {
    let nowhere = "/no/such/folder/file";
    let words = [nowhere, "cannot be written"];
    refused(&["bench", "attention", "--html", nowhere], 1, &words);
    refused(&["tune", "--out", nowhere], 1, &words);
    refused(&["bench-one-batch", "--result-filename", nowhere], 1, &words);
    let folder = tempfile::tempdir().unwrap();
    refused(&["tune", "--out", path(folder.path())], 1, &["cannot be written"]);
    // A check leaves nothing behind.
    let report = folder.path().join("report.html");
    refused(&["bench", "attention", "--html", path(&report), "--q-len", "0"], 2, &["--q-len"]);
    assert!(!report.exists());
}

#[test]
fn more_threads_than_cores_are_a_note() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let said_of = |threads: usize| {
        let output = tilewise(&["explain", "--q-len", "1", "--threads", &threads.to_string()]);
        assert!(output.status.success());
        said(&output)
    };
    assert!(said_of(cores).is_empty());
    let notes = said_of(cores + 1);
    assert!(notes.len() == 1 && notes[0].contains(&format!("--threads {}", cores + 1)), "{notes:?}");
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
    let bench = ["bench-one-batch", "--model", path(folder.path())];
    refused(&bench, 1, &["model.safetensors", "--load-format dummy"]);
}

#[test]
fn help_and_version_go_to_stdout() {
    for args in [&["--help"][..], &["generate", "--help"], &["bench", "attention", "--help"], &["--version"]]
    {
        assert!(!run(args).is_empty());
    }
    assert_eq!(run(&[]), run(&["--help"]));
    assert_eq!(run(&["help"]), run(&["--help"]));
    assert_eq!(run(&["help", "serve"]), run(&["serve", "--help"]));
    assert_eq!(run(&["bench"]), run(&["bench", "--help"]));
    for command in ["chat", "generate", "bench", "bench-one-batch", "devices", "explain", "inspect"] {
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
