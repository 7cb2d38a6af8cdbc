//! `tilewise bench-one-batch`: prefill and decode of one batch, through the engine that serves.

mod correctness;

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Instant;

use serde::Serialize;
use tilewise::{Counts, Device};
use tilewise_engine::scheduler::Priority;
use tilewise_engine::{Engine, EngineConfig, Event, GenerateRequest, KvBudget};

use crate::args::BenchOneBatchArgs;
use crate::error::CliError;
use crate::model;

/// One measured combination, as SGLang's benchmark of the same name writes it.
#[derive(Debug, Serialize)]
struct Record<'a> {
    run_name: &'a str,
    batch_size: usize,
    input_len: usize,
    /// Of a batch with prompts of several lengths, the shortest.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_input_len: Option<usize>,
    output_len: usize,
    prefill_latency: f64,
    prefill_throughput: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    median_decode_latency: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    median_decode_throughput: Option<f64>,
    total_latency: f64,
    overall_throughput: f64,
    /// Of a device with a queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    launches_per_decode_step: Option<f64>,
}

/// Tokens of a prompt unless told, where the context holds them.
const DEFAULT_INPUT_LEN: usize = 1024;

/// Sizes of one run.
#[derive(Debug, Clone, Copy)]
struct Case {
    batch_size: usize,
    /// Of the shortest prompt, and of the longest.
    min_input_len: usize,
    input_len: usize,
    output_len: usize,
}

impl Case {
    /// Tokens of a prompt of the batch; all of them spread evenly.
    fn len_of(&self, sequence: usize) -> usize {
        let more = (self.input_len - self.min_input_len) * sequence;
        self.min_input_len + more / (self.batch_size - 1).max(1)
    }

    fn prompt_tokens(&self) -> usize {
        (0..self.batch_size).map(|sequence| self.len_of(sequence)).sum()
    }
}

pub(crate) fn run(args: &BenchOneBatchArgs) -> Result<(), CliError> {
    check(args)?;
    let device = super::open_device(&args.device, &args.policy)?;
    let source = model::source_of(args.load_format, &args.model)?;
    if args.correctness_test {
        return correctness::run(args, &device, &source);
    }
    let cases = cases(args, source.config()?.max_positions)?;
    let open = OpenOptions::new().create(true).append(true).open(&args.result_filename);
    let mut file = open.map_err(|error| model::unwritable(&args.result_filename, &error))?;
    let mut engine = model::load(&device, &source, &engine_config(args, &cases))?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "max_total_num_tokens={}", engine.stats().total_tokens)?;
    writeln!(stdout, "Warmup ...")?;
    let warm = Case { output_len: cases[0].output_len.min(32), ..cases[0] };
    measure(&mut engine, &*device, warm, args, &mut stdout)?;
    writeln!(stdout, "Benchmark ...")?;
    for case in cases {
        let record = measure(&mut engine, &*device, case, args, &mut stdout)?;
        writeln!(file, "{}", super::json_line(&record)?)?;
    }
    Ok(())
}

fn check(args: &BenchOneBatchArgs) -> Result<(), CliError> {
    if args.tp_size != 1 {
        let why =
            format!("--tp-size {} is not supported: a model runs on one device; leave it at 1", args.tp_size);
        return Err(CliError::Usage(why));
    }
    let sizes = [
        ("--batch-size", &args.batch_size),
        ("--input-len", &args.input_len),
        ("--output-len", &args.output_len),
    ];
    for (flag, values) in sizes {
        if values.contains(&0) {
            return Err(CliError::Usage(format!("{flag} must be at least 1")));
        }
    }
    Ok(())
}

/// All combinations, for a model whose context holds so many tokens.
///
/// # Errors
/// [`CliError::Usage`] for one that the context does not hold.
fn cases(args: &BenchOneBatchArgs, context: usize) -> Result<Vec<Case>, CliError> {
    let longest = args.output_len.iter().max().copied().unwrap_or(1);
    let default = [DEFAULT_INPUT_LEN.min(context.saturating_sub(longest)).max(1)];
    let input_lens = if args.input_len.is_empty() { &default[..] } else { &args.input_len };
    let mut cases = Vec::new();
    for &batch_size in &args.batch_size {
        for &input_len in input_lens {
            for &output_len in &args.output_len {
                if input_len.saturating_add(output_len) > context {
                    return Err(CliError::Usage(format!(
                        "--input-len {input_len} and --output-len {output_len} must be at most {context} tokens together, \
                         which the model's context holds"
                    )));
                }
                let min_input_len = args.min_input_len.unwrap_or(input_len);
                if !(1..=input_len).contains(&min_input_len) {
                    return Err(CliError::Usage("--min-input-len must be from 1 to --input-len".to_owned()));
                }
                cases.push(Case { batch_size, min_input_len, input_len, output_len });
            }
        }
    }
    Ok(cases)
}

/// Room for the largest combination; prompts first, so that a batch is prefilled whole before it decodes.
fn engine_config(args: &BenchOneBatchArgs, cases: &[Case]) -> EngineConfig {
    let config = EngineConfig::default();
    // A page more per sequence than it fills: admission keeps one in reserve for each.
    let tokens = |case: &Case| {
        let pages = (case.input_len + case.output_len).div_ceil(config.page_size) + 1;
        case.batch_size.saturating_mul(pages * config.page_size)
    };
    EngineConfig {
        // What is timed is computing prompts, not finding them.
        prefix_cache: false,
        dtype: args.dtype.0,
        kv: KvBudget::Tokens(cases.iter().map(tokens).max().unwrap_or(1)),
        max_running: cases.iter().map(|case| case.batch_size).max().unwrap_or(1),
        max_batch_tokens: args
            .chunked_prefill_size
            .max(cases.iter().map(|case| case.batch_size).max().unwrap_or(1)),
        priority: Priority::Prefill,
        attention_kernel: args.attention_backend.clone(),
        ..config
    }
}

fn measure<'a>(
    engine: &mut Engine,
    device: &dyn Device,
    case: Case,
    args: &'a BenchOneBatchArgs,
    out: &mut impl Write,
) -> Result<Record<'a>, CliError> {
    let Case { batch_size, input_len, output_len, .. } = case;
    let vocab = engine.config().vocab_size.min(10_000) as u64;
    for sequence in 0..batch_size {
        let number = |index: u64| super::scatter((sequence as u64) << 32 | index) % vocab;
        let ids = (0..case.len_of(sequence) as u64).map(|index| number(index) as u32);
        let mut request = GenerateRequest::new(ids.collect(), output_len);
        request.ignore_eos = true;
        engine.submit(request)?;
    }
    let prefill = timed_tokens(engine, device, batch_size)?;
    let tokens = case.prompt_tokens() as f64;
    writeln!(out, "Prefill. latency: {prefill:6.5} s, throughput: {:9.2} token/s", tokens / prefill)?;
    let mut decodes = Vec::with_capacity(output_len - 1);
    let before = device.counts();
    for step in 0..output_len - 1 {
        let latency = timed_tokens(engine, device, batch_size)?;
        decodes.push(latency);
        if step < 5 || (args.log_decode_step > 0 && step.is_multiple_of(args.log_decode_step)) {
            let rate = batch_size as f64 / latency;
            writeln!(
                out,
                "Decode {step}. Batch size: {batch_size}, latency: {latency:6.5} s, \
                 throughput: {rate:9.2} token/s"
            )?;
        }
    }
    let median = (!decodes.is_empty()).then(|| super::median(&decodes));
    if let Some(median) = median {
        let rate = batch_size as f64 / median;
        writeln!(out, "Decode.  median latency: {median:6.5} s, median throughput: {rate:9.2} token/s")?;
    }
    let asked = per_step(before, device.counts(), decodes.len());
    if let Some([launches, submissions, downloads]) = asked {
        writeln!(
            out,
            "Device. per decode step: {launches:.1} launches, {submissions:.1} submissions, {downloads:.1} reads"
        )?;
    }
    let total = prefill + decodes.iter().sum::<f64>();
    let overall = (case.prompt_tokens() + output_len * batch_size) as f64 / total;
    writeln!(out, "Total. latency: {total:6.3} s, throughput: {overall:9.2} token/s")?;
    Ok(Record {
        run_name: &args.run_name,
        batch_size,
        input_len,
        min_input_len: args.min_input_len,
        output_len,
        prefill_latency: prefill,
        prefill_throughput: tokens / prefill,
        median_decode_latency: median,
        median_decode_throughput: median.map(|median| batch_size as f64 / median),
        total_latency: total,
        overall_throughput: overall,
        launches_per_decode_step: asked.map(|[launches, ..]| launches),
    })
}

/// Seconds until every sequence of the batch has one token more.
fn timed_tokens(engine: &mut Engine, device: &dyn Device, batch_size: usize) -> Result<f64, CliError> {
    device.wait()?;
    let start = Instant::now();
    let mut tokens = 0;
    while tokens < batch_size {
        if !engine.has_work() {
            return Err(CliError::Failed("a sequence ended before the batch did".to_owned()));
        }
        let events = engine.step()?;
        tokens += events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
    }
    device.wait()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Launches, submissions and reads of each of some steps; nothing of a device without a queue.
fn per_step(before: Option<Counts>, after: Option<Counts>, steps: usize) -> Option<[f64; 3]> {
    let (before, after) = (before?, after?);
    let each = |after: u64, before: u64| (after - before) as f64 / steps as f64;
    (steps > 0).then(|| {
        [
            each(after.launches, before.launches),
            each(after.submissions, before.submissions),
            each(after.downloads, before.downloads),
        ]
    })
}
