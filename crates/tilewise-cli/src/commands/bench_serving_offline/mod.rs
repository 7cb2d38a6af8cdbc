//! `tilewise bench-serving-offline`: a trace of requests through the engine, in this process.

mod trace;

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use serde::Serialize;
use tilewise_engine::cache::events::KvEventPublisher;
use tilewise_engine::{CachedTokens, Engine, Error, Event, RequestId};

use self::trace::Arrival;
use crate::args::{BenchServingOfflineArgs, Format};
use crate::error::CliError;
use crate::model;

/// What was measured. Latencies are in seconds.
#[derive(Debug, Serialize)]
struct Report {
    requests: usize,
    failed: usize,
    input_tokens: usize,
    output_tokens: usize,
    duration_s: f64,
    /// Requests that did not fail.
    request_throughput: f64,
    output_throughput: f64,
    total_throughput: f64,
    /// From a request's arrival to its first token.
    time_to_first_token_s: Percentiles,
    /// Between a request's tokens.
    inter_token_latency_s: Percentiles,
    /// Of these, those while another request had no token yet, and the others.
    inter_token_beside_prompts_s: Percentiles,
    inter_token_alone_s: Percentiles,
    /// From a request's arrival to its end.
    latency_s: Percentiles,
    /// Of the prompts' tokens that were looked up, the share that the prefix cache had.
    cache_hit_rate: f64,
    /// Tokens of the prompts that were not computed, by where they were found.
    cached_tokens: CachedTokens,
    preemptions: u64,
    saved_pages: u64,
    restored_pages: u64,
    /// Tokens that were guessed, and those that were right.
    drafted: u64,
    accepted: u64,
    steps: usize,
}

#[derive(Debug, Serialize)]
struct Percentiles {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Percentiles {
    /// By nearest rank; zeros of nothing.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let at = ((values.len() as f64 * share).ceil() as usize).max(1) - 1;
            values.get(at).copied().unwrap_or(0.0)
        };
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        Self { mean, p50: rank(0.5), p90: rank(0.9), p99: rank(0.99), max: rank(1.0) }
    }
}

/// When a request arrived and when its last token came.
struct Progress {
    arrived: f64,
    last: Option<f64>,
}

pub(crate) fn run(args: &BenchServingOfflineArgs) -> Result<(), CliError> {
    check(args)?;
    let device = super::open_device(&args.engine.device, &args.engine.policy)?;
    let source = model::source_of(args.engine.load_format, &args.engine.model)?;
    let sizes = source.config()?;
    let arrivals = match args.trace.to_str() {
        Some("synthetic") => trace::synthetic(args, sizes.vocab_size),
        _ => trace::read(&args.trace, source.tokenizer().ok().as_ref())?,
    };
    let mut engine = model::load(&device, &source, &model::engine_config(&args.engine)?)?;
    engine.warm_up()?;
    let mut publisher = model::kv_events(&args.engine, false)?;
    let report = serve(&mut engine, arrivals, publisher.as_mut())?;
    let mut stdout = std::io::stdout().lock();
    match args.format {
        Format::Json => writeln!(stdout, "{}", super::json_line(&report)?)?,
        Format::Text => print(&report, &mut stdout)?,
    }
    Ok(())
}

fn check(args: &BenchServingOfflineArgs) -> Result<(), CliError> {
    for (flag, (from, to)) in [("--input-len", args.input_len), ("--output-len", args.output_len)] {
        if from == 0 || from > to {
            return Err(CliError::Usage(format!("{flag} must be N or FROM,TO with 1 <= FROM <= TO")));
        }
    }
    if args.num_requests == 0 {
        return Err(CliError::Usage("--num-requests must be at least 1".to_owned()));
    }
    if let Some(rate) = args.request_rate
        && !(rate.is_finite() && rate > 0.0)
    {
        return Err(CliError::Usage("--request-rate must be finite and above 0".to_owned()));
    }
    Ok(())
}

/// What happened so far.
#[derive(Default)]
struct Record {
    running: HashMap<RequestId, Progress>,
    failed: usize,
    input_tokens: usize,
    output_tokens: usize,
    cached_tokens: CachedTokens,
    first: Vec<f64>,
    beside: Vec<f64>,
    alone: Vec<f64>,
    whole: Vec<f64>,
}

impl Record {
    /// Submits a request.
    fn submit(&mut self, engine: &mut Engine, arrival: Arrival) -> Result<(), CliError> {
        let tokens = arrival.request.prompt.len();
        match engine.submit(arrival.request) {
            Ok(request) => {
                self.input_tokens += tokens;
                self.running.insert(request, Progress { arrived: arrival.at, last: None });
            }
            // It could never run; the others do.
            Err(Error::Value { .. } | Error::TooLong { .. }) => self.failed += 1,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Takes over what a step that ended `now` gave.
    fn take(&mut self, events: Vec<Event>, now: f64) {
        let has_prompts = self.running.values().any(|progress| progress.last.is_none());
        let between = if has_prompts { &mut self.beside } else { &mut self.alone };
        for event in events {
            match event {
                Event::Token { request, .. } => {
                    self.output_tokens += 1;
                    if let Some(progress) = self.running.get_mut(&request) {
                        match progress.last.replace(now) {
                            None => self.first.push(now - progress.arrived),
                            Some(last) => between.push(now - last),
                        }
                    }
                }
                Event::Finished { request, reason, cached_from, .. } => {
                    self.cached_tokens += cached_from;
                    self.failed += usize::from(reason.name() == "error");
                    self.whole.extend(self.running.remove(&request).map(|progress| now - progress.arrived));
                }
                _ => {}
            }
        }
    }
}

/// Submits each request when its time has come, and steps until all are over.
fn serve(
    engine: &mut Engine,
    arrivals: Vec<Arrival>,
    mut publisher: Option<&mut KvEventPublisher>,
) -> Result<Report, CliError> {
    let (requests, mut record, mut steps) = (arrivals.len(), Record::default(), 0);
    let mut coming = arrivals.into_iter().peekable();
    let start = Instant::now();
    loop {
        while let Some(arrival) = coming.next_if(|arrival| arrival.at <= start.elapsed().as_secs_f64()) {
            record.submit(engine, arrival)?;
        }
        if !engine.has_work() {
            let Some(next) = coming.peek() else { break };
            std::thread::sleep(Duration::from_secs_f64((next.at - start.elapsed().as_secs_f64()).max(0.0)));
            continue;
        }
        let events = engine.step()?;
        steps += 1;
        if let Some(publisher) = &mut publisher {
            publisher.publish(&engine.take_kv_events());
        }
        record.take(events, start.elapsed().as_secs_f64());
    }
    let duration_s = start.elapsed().as_secs_f64();
    let stats = engine.stats();
    let Record { failed, input_tokens, output_tokens, .. } = record;
    Ok(Report {
        requests,
        failed,
        input_tokens,
        output_tokens,
        duration_s,
        request_throughput: (requests - failed) as f64 / duration_s,
        output_throughput: output_tokens as f64 / duration_s,
        total_throughput: (input_tokens + output_tokens) as f64 / duration_s,
        time_to_first_token_s: Percentiles::of(record.first),
        inter_token_latency_s: Percentiles::of([&record.beside[..], &record.alone].concat()),
        inter_token_beside_prompts_s: Percentiles::of(record.beside),
        inter_token_alone_s: Percentiles::of(record.alone),
        latency_s: Percentiles::of(record.whole),
        cached_tokens: record.cached_tokens,
        cache_hit_rate: stats.prefix.hit_tokens as f64 / (stats.prefix.looked_up_tokens as f64).max(1.0),
        preemptions: stats.preemptions,
        saved_pages: stats.swap.saved_pages,
        restored_pages: stats.swap.restored_pages,
        drafted: stats.speculation.drafted,
        accepted: stats.speculation.accepted,
        steps,
    })
}

fn print(report: &Report, out: &mut impl Write) -> Result<(), CliError> {
    let Report { requests, failed, input_tokens, output_tokens, duration_s, steps, .. } = report;
    writeln!(out, "{requests} requests, {failed} failed, in {duration_s:.2} s and {steps} steps")?;
    writeln!(out, "Tokens.      {input_tokens} in, {output_tokens} out")?;
    writeln!(
        out,
        "Throughput.  {:.2} request/s, {:.1} token/s out, {:.1} token/s in and out",
        report.request_throughput, report.output_throughput, report.total_throughput
    )?;
    let rows = [
        ("First token", &report.time_to_first_token_s),
        ("Inter-token", &report.inter_token_latency_s),
        ("with prompts", &report.inter_token_beside_prompts_s),
        ("without", &report.inter_token_alone_s),
        ("Whole", &report.latency_s),
    ];
    for (name, p) in rows {
        let name = format!("{name}.");
        let [mean, p50, p90, p99, max] = [p.mean, p.p50, p.p90, p.p99, p.max].map(|seconds| seconds * 1e3);
        writeln!(
            out,
            "{name:<13} mean {mean:.2} ms, p50 {p50:.2}, p90 {p90:.2}, p99 {p99:.2}, max {max:.2}"
        )?;
    }
    let (hits, preemptions) = (report.cache_hit_rate * 100.0, report.preemptions);
    writeln!(out, "Cache.       {hits:.1} % of prompt tokens found, {preemptions} preemptions")?;
    if report.saved_pages > 0 {
        let Report { saved_pages, restored_pages, .. } = report;
        writeln!(out, "Swap.        {restored_pages} of {saved_pages} saved pages came back")?;
    }
    if report.drafted > 0 {
        let Report { drafted, accepted, .. } = report;
        let share = *accepted as f64 / *drafted as f64 * 100.0;
        let per_step = *output_tokens as f64 / (*output_tokens as u64 - accepted).max(1) as f64;
        writeln!(
            out,
            "Drafts.      {accepted} of {drafted} right ({share:.1} %), {per_step:.2} tokens per draw"
        )?;
    }
    let CachedTokens { device, host, disk, resp, object } = report.cached_tokens;
    writeln!(
        out,
        "Found.       {device} tokens on the device, {host} in memory, {disk} on disk, {resp} by RESP, {object} as objects"
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let p = Percentiles::of((1..=100).rev().map(f64::from).collect());
        assert_eq!((p.mean, p.p50, p.p90, p.p99, p.max), (50.5, 50.0, 90.0, 99.0, 100.0));
        let one = Percentiles::of(vec![3.0]);
        assert_eq!((one.p50, one.p99, one.max), (3.0, 3.0, 3.0));
        assert_eq!(Percentiles::of(Vec::new()).max, 0.0);
    }
}
