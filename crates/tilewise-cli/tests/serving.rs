//! `tilewise bench-serving-offline`: traces are served whole, and what is reported is what was served.

mod common;

use common::{refused, run, run_json};
use serde_json::json;

#[test]
fn a_trace_is_served_whole_and_shared_prefixes_are_found() {
    let trace = ["bench-serving-offline", "--num-requests", "6", "--prefixes", "1", "--prefix-len", "64"];
    let sizes = ["--input-len", "3,9", "--output-len", "4", "--threads", "1", "--max-running", "2"];
    let serve =
        |more: &[&str]| run_json(&[&trace[..], &sizes, &["--format", "json"], more].concat()).remove(0);
    let cached = serve(&[]);
    assert_eq!(
        (&cached["requests"], &cached["failed"], &cached["output_tokens"]),
        (&json!(6), &json!(0), &json!(24))
    );
    assert!(cached["cache_hit_rate"].as_f64().unwrap() > 0.5, "{cached}");
    assert!(cached["inter_token_latency_s"]["p99"].as_f64().unwrap() > 0.0, "{cached}");
    let computed = serve(&["--disable-radix-cache"]);
    assert_eq!(computed["cache_hit_rate"], json!(0.0));
    assert_eq!(computed["input_tokens"], cached["input_tokens"]);
    let text = run(&[&trace[..], &sizes, &["--request-rate", "200"]].concat());
    for word in ["6 requests, 0 failed", "Throughput.", "First token. ", "Inter-token. ", "Cache. "] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn requests_that_give_way_are_swapped_where_there_is_space() {
    let trace = ["bench-serving-offline", "--num-requests", "6", "--prefix-len", "0", "--input-len", "20"];
    let sizes = ["--output-len", "60", "--threads", "1", "--kv-tokens", "256"];
    let args = [&trace[..], &sizes].concat();
    let report = |more: &[&str]| run_json(&[&args[..], &["--format", "json"], more].concat()).remove(0);
    let (computed, swapped) = (report(&[]), report(&["--swap-space", "1G"]));
    assert_eq!((&computed["saved_pages"], &computed["output_tokens"]), (&json!(0), &json!(360)));
    assert!(swapped["restored_pages"].as_u64().unwrap() > 0, "{swapped}");
    assert_eq!(swapped["output_tokens"], json!(360));
    assert!(run(&[&args[..], &["--swap-space", "1G"]].concat()).contains("Swap. "));
}

#[test]
fn a_trace_from_a_file_serves_what_can_run_and_names_the_line_that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.jsonl");
    let good = concat!(
        r#"{"arrival_s": 0.02, "prompt": "def f(x):", "max_new_tokens": 3, "ignore_eos": true}"#,
        "\n\n",
        r#"{"prompt_ids": [5, 6, 7], "max_new_tokens": 2, "ignore_eos": true}"#,
        "\n",
        r#"{"prompt_ids": [5, 6, 7], "max_new_tokens": 100000000}"#,
        "\n"
    );
    std::fs::write(&path, good).unwrap();
    let file = path.to_str().unwrap();
    let args = ["bench-serving-offline", "--trace", file, "--format", "json"];
    let report = run_json(&args).remove(0);
    assert_eq!(
        (&report["requests"], &report["failed"], &report["output_tokens"]),
        (&json!(3), &json!(1), &json!(5))
    );
    std::fs::write(&path, format!("{good}{{}}\n")).unwrap();
    refused(&args, 2, &["trace.jsonl:5", "max_new_tokens"]);
    refused(&["bench-serving-offline", "--trace", "/no/such/file"], 1, &["/no/such/file"]);
    refused(&["bench-serving-offline", "--kv-events", "nowhere"], 2, &["KV events endpoint", "nowhere"]);
    refused(&["bench-serving-offline", "--input-len", "9,3"], 2, &["--input-len"]);
}

#[test]
fn drafts_are_reported_and_change_no_token_count() {
    let trace = ["bench-serving-offline", "--num-requests", "3", "--prefix-len", "0", "--input-len", "20"];
    let sizes = ["--output-len", "30", "--threads", "1", "--fixed-drafts", "--max-drafts", "3"];
    for (speculate, branches) in [("lookup", "1"), ("lookup", "3"), ("embedded", "1")] {
        let more = ["--speculate", speculate, "--draft-branches", branches];
        let args = [&trace[..], &sizes, &more].concat();
        let report = run_json(&[&args[..], &["--format", "json"]].concat()).remove(0);
        let (drafted, accepted) = (report["drafted"].as_u64().unwrap(), report["accepted"].as_u64().unwrap());
        assert!(drafted > 0 && accepted <= drafted, "{report}");
        assert_eq!(report["output_tokens"], json!(90));
        assert!(run(&args).contains("Drafts. "));
    }
    refused(&["bench-serving-offline", "--speculate", "lookup", "--max-drafts", "0"], 2, &["--max-drafts"]);
    let embedded = ["bench-serving-offline", "--speculate", "embedded", "--draft-branches", "2"];
    refused(&embedded, 2, &["branches"]);
    refused(&["bench-serving-offline", "--speculate", "/no/such/folder"], 1, &["/no/such/folder"]);
}

#[test]
fn what_one_run_left_in_a_tier_the_next_one_finds_and_continues_alike() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, objects) = (folder.path().join("disk"), folder.path().join("objects"));
    std::fs::create_dir(&objects).unwrap();
    let ids: Vec<String> = (0..300).map(|i| (i * 7 % 500 + 1).to_string()).collect();
    let prompt = ["generate", "--token-ids", &ids.join(","), "--max-new-tokens", "4", "--format", "json"];
    let generate = |tier: &[&str]| run_json(&[&prompt[..], tier].concat()).remove(0);
    let cold = generate(&[]);
    let disk = ["--disk-cache", disk.to_str().unwrap(), "--disk-cache-size", "1G"];
    let objects = ["--object-cache", objects.to_str().unwrap(), "--host-cache", "1M"];
    for (tier, name) in [(disk, "disk"), (objects, "object")] {
        let first = generate(&tier);
        assert_eq!(first["cached_tokens"][name], json!(0), "{first}");
        let second = generate(&tier);
        assert_eq!(second["cached_tokens"][name], json!(256), "{second}");
        for got in [first, second] {
            assert_eq!((&got["output_ids"], &got["logprobs"]), (&cold["output_ids"], &cold["logprobs"]));
        }
    }
    let serve_args =
        ["bench-serving-offline", "--num-requests", "4", "--prefixes", "1", "--prefix-len", "300"];
    let sizes = ["--input-len", "3", "--output-len", "2"];
    let serve = |more: &[&str]| run(&[&serve_args[..], &sizes, &disk, more].concat());
    serve(&[]);
    assert!(serve(&[]).contains(" 256 on disk"));
    let refused_with = |args: &[&str], words: &[&str]| refused(&[&serve_args[..1], args].concat(), 2, words);
    refused_with(&["--host-cache", "1G", "--disable-radix-cache"], &["cache tiers", "prefix cache"]);
    refused_with(&["--host-cache", "many"], &["--host-cache", "16G"]);
    refused_with(&["--resp-cache", "http://id:secret@host"], &["RESP address", "redis://"]);
    refused_with(&["--object-cache", "s3://a b"], &["S3 bucket"]);
}
