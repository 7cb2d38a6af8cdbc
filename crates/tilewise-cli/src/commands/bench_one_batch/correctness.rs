//! `--correctness-test`: what the model says of fixed prompts, entered whole and in two parts.

use std::io::Write;
use std::sync::Arc;

use tilewise::Device;
use tilewise_engine::model::ModelSource;
use tilewise_engine::tokenizer::Tokenizer;
use tilewise_engine::{Engine, EngineConfig, Event, GenerateRequest, KvBudget};

use crate::args::BenchOneBatchArgs;
use crate::error::CliError;
use crate::model;

const PROMPTS: [&str; 3] =
    ["The capital of France is", "The capital of the United Kingdom is", "Today is a sunny day and I like"];

/// Prompts for a model without a tokenizer.
const IDS: [&[u32]; 3] = [&[1, 2, 3, 4, 5, 6], &[7, 5, 3, 2, 1, 11, 13, 4], &[9, 9, 8, 8, 7, 7, 6, 6, 5]];

struct Output {
    /// Logits after the last prompt token of each chunk that reached it.
    logits: Vec<f32>,
    ids: Vec<u32>,
}

pub(super) fn run(
    args: &BenchOneBatchArgs,
    device: &Arc<dyn Device>,
    source: &ModelSource,
) -> Result<(), CliError> {
    let tokenizer = source.tokenizer().ok();
    let prompts = prompts(tokenizer.as_ref(), source.config()?.vocab_size)?;
    let new_tokens = args.output_len[0];
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let config = EngineConfig {
        dtype: args.dtype.0,
        kv: KvBudget::Tokens(longest + new_tokens),
        max_running: 1,
        max_batch_tokens: longest.max(args.cut_len),
        attention_kernel: args.attention_backend.clone(),
        ..EngineConfig::default()
    };
    let mut engine = model::load(device, source, &config)?;
    let mut out = std::io::stdout().lock();
    let mut agree = true;
    for (index, prompt) in prompts.iter().enumerate() {
        let cut = args.cut_len.clamp(1, prompt.len());
        engine.set_max_batch_tokens(prompt.len());
        let prefix = generate(&mut engine, &prompt[..cut], 1)?;
        let whole = generate(&mut engine, prompt, new_tokens)?;
        engine.set_max_batch_tokens(cut);
        let extended = generate(&mut engine, prompt, new_tokens)?;
        let equal = same_bits(&whole.logits, &extended.logits) && whole.ids == extended.ids;
        agree &= equal;
        writeln!(out, "========== Prompt {index} ==========")?;
        writeln!(out, "input_ids={prompt:?}")?;
        writeln!(out, "prefill logits (first {cut} tokens): {}", describe(&prefix.logits))?;
        writeln!(out, "prefill logits (final): {}", describe(&whole.logits))?;
        writeln!(out, "extend logits (after the first {cut}): {}", describe(&extended.logits))?;
        writeln!(out, "output_ids={:?}", whole.ids)?;
        if let Some(tokenizer) = &tokenizer {
            writeln!(out, "{}", tokenizer.decode(&[prompt.as_slice(), &whole.ids].concat())?)?;
        }
        writeln!(out, "whole and extended agree in every bit: {}", if equal { "yes" } else { "no" })?;
    }
    if agree {
        Ok(())
    } else {
        Err(CliError::Failed("a prompt entered in parts gave other bits than whole".to_owned()))
    }
}

fn prompts(tokenizer: Option<&Tokenizer>, vocab_size: usize) -> Result<Vec<Vec<u32>>, CliError> {
    match tokenizer {
        Some(tokenizer) => PROMPTS.iter().map(|text| Ok(tokenizer.encode(text, true)?)).collect(),
        None => Ok(IDS.iter().map(|ids| ids.iter().map(|id| id % vocab_size as u32).collect()).collect()),
    }
}

fn generate(engine: &mut Engine, prompt: &[u32], new_tokens: usize) -> Result<Output, CliError> {
    let mut request = GenerateRequest::new(prompt.to_vec(), new_tokens);
    request.ignore_eos = true;
    engine.submit(request)?;
    let mut output = Output { logits: Vec::new(), ids: Vec::new() };
    while engine.has_work() {
        let events = engine.step_observed(|_, logits| {
            if output.logits.is_empty() {
                output.logits = logits.to_vec();
            }
        })?;
        output.ids.extend(events.iter().filter_map(|event| match event {
            Event::Token { id, .. } => Some(*id),
            _ => None,
        }));
    }
    Ok(output)
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// The first and last logits, and what sums up the others.
fn describe(logits: &[f32]) -> String {
    let show = |part: &[f32]| part.iter().map(|x| format!("{x:.4}")).collect::<Vec<_>>().join(", ");
    let len = logits.len();
    if len <= 6 {
        return format!("[{}]", show(logits));
    }
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mean = logits.iter().map(|&x| f64::from(x)).sum::<f64>() / len as f64;
    let argmax = logits.iter().position(|&x| x == max).unwrap_or(0);
    let (head, tail) = (show(&logits[..3]), show(&logits[len - 3..]));
    format!("[{head}, ..., {tail}], mean {mean:.4}, max {max:.4} at {argmax}")
}
