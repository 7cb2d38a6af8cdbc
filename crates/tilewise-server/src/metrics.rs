//! What the server counts, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tilewise_engine::CachedTokens;
use tilewise_engine::worker::Snapshot;

/// Upper bounds of a histogram's buckets, in seconds.
const BOUNDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// How often something took how long.
#[derive(Debug, Default)]
struct Histogram {
    /// Of each bound alone, and of what is above all.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Histogram {
    fn observe(&self, time: Duration) {
        let bucket = BOUNDS.partition_point(|&bound| bound < time.as_secs_f64());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, name: &str, labels: &str, out: &mut String) {
        let mut count = 0;
        let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bucket, bound) in self.buckets.iter().zip(bounds) {
            count += bucket.load(Ordering::Relaxed);
            _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        let sum = self.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    }
}

/// What the server counts.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    cached: Mutex<CachedTokens>,
    requests: AtomicU64,
    answers: Mutex<BTreeMap<(String, u16), u64>>,
}

impl Metrics {
    /// Counts a token that came now, after the one at `last` or as the first.
    pub(crate) fn token(&self, started: Instant, last: Option<Instant>) {
        match last {
            None => self.first_token.observe(started.elapsed()),
            Some(last) => self.between_tokens.observe(last.elapsed()),
        }
        self.generated_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that was served whole.
    pub(crate) fn request_done(&self, started: Instant, prompt: usize, cached: CachedTokens) {
        self.whole.observe(started.elapsed());
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.prompt_tokens.fetch_add(prompt as u64, Ordering::Relaxed);
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) += cached;
    }

    /// Counts an answer of a route.
    pub(crate) fn answer(&self, route: &str, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry((route.to_owned(), status)).or_default() += 1;
    }

    /// All of it, and what the engine did, in the names of SGLang and of vLLM.
    pub(crate) fn write(&self, model: &str, engine: &Snapshot) -> String {
        let model = model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels = format!("model_name=\"{model}\"");
        let mut out = String::new();
        for (name, kind, help, value) in gauges(engine) {
            _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{{labels}}} {value}");
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let cached = *self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = [
            (
                "prompt_tokens_total",
                "Tokens of prompts of requests that were served.",
                count(&self.prompt_tokens),
            ),
            ("generation_tokens_total", "Tokens generated for clients.", count(&self.generated_tokens)),
            ("cached_tokens_total", "Tokens of prompts that a cache had.", cached.total() as u64),
            ("num_requests_total", "Requests that were served.", count(&self.requests)),
        ];
        for (name, help, value) in counters {
            for side in ["sglang", "vllm"] {
                let name = format!("{side}:{name}");
                _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name}{{{labels}}} {value}");
            }
        }
        let histograms = [
            ("time_to_first_token_seconds", "From acceptance to the first token.", &self.first_token),
            ("inter_token_latency_seconds", "Between the tokens of a request.", &self.between_tokens),
            ("e2e_request_latency_seconds", "From acceptance to the end.", &self.whole),
        ];
        for (name, help, histogram) in histograms {
            for side in ["sglang", "vllm"] {
                let name = format!("{side}:{name}");
                _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
                histogram.write(&name, &labels, &mut out);
            }
        }
        _ = writeln!(
            out,
            "# HELP tilewise:cached_tokens_total Tokens of prompts that a cache had, by who had them."
        );
        _ = writeln!(out, "# TYPE tilewise:cached_tokens_total counter");
        let CachedTokens { device, host, disk, resp, object } = cached;
        for (tier, tokens) in
            [("device", device), ("host", host), ("disk", disk), ("resp", resp), ("object", object)]
        {
            _ = writeln!(out, "tilewise:cached_tokens_total{{{labels},tier=\"{tier}\"}} {tokens}");
        }
        _ = writeln!(out, "# HELP tilewise:http_responses_total Answers by route and status.");
        _ = writeln!(out, "# TYPE tilewise:http_responses_total counter");
        for ((route, status), count) in &*self.answers.lock().unwrap_or_else(PoisonError::into_inner) {
            _ = writeln!(
                out,
                "tilewise:http_responses_total{{route=\"{route}\",status=\"{status}\"}} {count}"
            );
        }
        out
    }
}

/// What the engine is doing and did.
fn gauges(engine: &Snapshot) -> Vec<(&'static str, &'static str, &'static str, f64)> {
    let stats = &engine.stats;
    let (running, waiting) = (stats.running as f64, stats.waiting as f64);
    let (usage, used) = (token_usage(engine), (stats.total_tokens - stats.free_tokens) as f64);
    let (looked_up, hit) = (stats.prefix.looked_up_tokens as f64, stats.prefix.hit_tokens as f64);
    let (drafted, accepted) = (stats.speculation.drafted as f64, stats.speculation.accepted as f64);
    vec![
        ("sglang:num_running_reqs", "gauge", "Sequences that hold pages.", running),
        ("sglang:num_queue_reqs", "gauge", "Sequences that wait.", waiting),
        ("sglang:num_used_tokens", "gauge", "Tokens of pages that sequences hold.", used),
        ("sglang:max_total_num_tokens", "gauge", "Tokens that all pages hold.", stats.total_tokens as f64),
        ("sglang:token_usage", "gauge", "Share of the pages that sequences hold.", usage),
        ("sglang:cache_hit_rate", "gauge", "Share of prompts' tokens that the cache had.", hit_rate(engine)),
        ("sglang:gen_throughput", "gauge", "Tokens generated per second, lately.", engine.tokens_per_second),
        ("vllm:num_requests_running", "gauge", "Sequences that hold pages.", running),
        ("vllm:num_requests_waiting", "gauge", "Sequences that wait.", waiting),
        ("vllm:kv_cache_usage_perc", "gauge", "Share of the pages that sequences hold.", usage),
        ("vllm:gpu_cache_usage_perc", "gauge", "Share of the pages that sequences hold.", usage),
        ("vllm:prefix_cache_queries_total", "counter", "Tokens that the cache was asked for.", looked_up),
        ("vllm:prefix_cache_hits_total", "counter", "Tokens that the cache had.", hit),
        (
            "vllm:num_preemptions_total",
            "counter",
            "Sequences that lost their pages.",
            stats.preemptions as f64,
        ),
        ("vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens that were guessed.", drafted),
        ("vllm:spec_decode_num_accepted_tokens_total", "counter", "Guesses that were right.", accepted),
        ("tilewise:steps_total", "counter", "Batches that were computed.", engine.steps as f64),
        (
            "tilewise:engine_tokens_total",
            "counter",
            "Tokens that the engine generated.",
            engine.generated_tokens as f64,
        ),
        (
            "tilewise:unread_requests_total",
            "counter",
            "Requests given up for a slow reader.",
            engine.unread as f64,
        ),
    ]
}

/// The share of pages that sequences hold.
pub(crate) fn token_usage(engine: &Snapshot) -> f64 {
    let stats = &engine.stats;
    (stats.total_tokens - stats.free_tokens) as f64 / (stats.total_tokens as f64).max(1.0)
}

/// The share of prompts' tokens that the cache had.
pub(crate) fn hit_rate(engine: &Snapshot) -> f64 {
    let prefix = &engine.stats.prefix;
    prefix.hit_tokens as f64 / (prefix.looked_up_tokens as f64).max(1.0)
}
