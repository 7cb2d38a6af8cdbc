//! Drawing tokens on the device: only they come back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::context::{Context, Span};
use super::memory::{GpuBuffer, gpu};
use super::pipeline::Specialisation;
use super::rows::{Args, f32_only, spread};
use crate::{Draw, Error, LogitChange, Logprobs, LogprobsOf, NotFinite, Result, Sampled, Tensor, checks};

/// Elements of a row at most: the sum of as many weights is below 2^64.
const LONGEST: usize = 1 << 23;

/// Words of a draw, and of what comes back.
const DRAW: usize = 8;
const SAMPLED: usize = 2;

/// Draws a token from each row; see [`crate::Device::sample`].
pub(super) fn sample(
    context: &Arc<Context>,
    logits: &Tensor,
    draws: &[Draw],
) -> Result<Vec<Result<Sampled, NotFinite>>> {
    let bytes = (draws.len() * SAMPLED * 4) as u64;
    let sampled = GpuBuffer::new(context, || "sampled tokens".to_owned(), bytes)?;
    draw(context, logits, draws, &sampled, SAMPLED)?;
    let mut read = Vec::new();
    context.read(&[Span { buffer: &sampled, start: 0, len: bytes }], &mut read)?;
    let words = to_words(&read);
    let outcome = |(draw, &[id, logprob]): (&Draw, &[u32; SAMPLED])| match id {
        u32::MAX => Err(NotFinite),
        id => Ok(Sampled { id, logprob: draw.logprob.then(|| f32::from_bits(logprob)) }),
    };
    Ok(draws.iter().zip(words.as_chunks().0).map(outcome).collect())
}

/// Draws tokens that stay on the device; see [`crate::Device::sample_ids`].
pub(super) fn ids(context: &Arc<Context>, logits: &Tensor, draws: &[Draw], ids: &GpuBuffer) -> Result<()> {
    draw(context, logits, draws, ids, 1)?;
    ids.largest.store(logits.row_len() as u32 - 1, Ordering::Relaxed);
    Ok(())
}

/// Tokens that stayed on the device; see [`crate::Device::read_ids`].
pub(super) fn read_ids(context: &Context, ids: &[&Tensor]) -> Result<Vec<Vec<u32>>> {
    let mut spans = Vec::with_capacity(ids.len());
    for ids in ids {
        checks::ids("read_ids", ids)?;
        spans.push(Span { buffer: gpu(ids)?, start: 0, len: ids.len() as u64 * 4 });
    }
    let mut read = Vec::new();
    context.read(&spans, &mut read)?;
    let mut words = to_words(&read).into_iter();
    Ok(ids.iter().map(|ids| words.by_ref().take(ids.len()).collect()).collect())
}

/// Launches the draws. A result is of [`SAMPLED`] words, or a token alone.
fn draw(
    context: &Arc<Context>,
    logits: &Tensor,
    draws: &[Draw],
    sampled: &GpuBuffer,
    result: usize,
) -> Result<()> {
    let len = logits.row_len();
    check_length("sample", len)?;
    let words: Vec<u32> = draws.iter().flat_map(|draw| words(draw, len)).collect();
    let asked = GpuBuffer::to_write(context, || "draws".to_owned(), words.len() as u64 * 4)?;
    context.write(&asked, 0, bytemuck::cast_slice(&words))?;
    // Ids of a row take the upper bits of a word, so that their digits are few.
    let shift = (len as u32 - 1).leading_zeros().min(31) as usize;
    let args = Args::default().numbers(&[draws.len(), len, shift, result]);
    let buffers = [f32_only("sample", logits)?, &asked, sampled];
    context.run(draws_kernel(threads(context)), &buffers, &args, spread(draws.len()))
}

/// Logprobs of each row; see [`crate::Device::logprobs`].
pub(super) fn logprobs(
    context: &Arc<Context>,
    logits: &Tensor,
    asked: &[LogprobsOf],
) -> Result<Vec<Result<Logprobs, NotFinite>>> {
    let len = logits.row_len();
    check_length("logprobs", len)?;
    let most = asked.iter().map(|asked| asked.top).max().unwrap_or(0) as usize;
    let words: Vec<[u32; 2]> = asked.iter().map(|asked| [asked.token, asked.top]).collect();
    let questions = GpuBuffer::to_write(context, || "tokens".to_owned(), words.len() as u64 * 8)?;
    context.write(&questions, 0, bytemuck::cast_slice(&words))?;
    let bytes = (asked.len() * (1 + most) * 8) as u64;
    let answers = GpuBuffer::new(context, || "logprobs".to_owned(), bytes)?;
    let args = Args::default().numbers(&[asked.len(), len, most]);
    let buffers = [f32_only("logprobs", logits)?, &questions, &answers];
    context.run(logprobs_kernel(threads(context)), &buffers, &args, spread(asked.len()))?;
    let mut read = Vec::new();
    context.read(&[Span { buffer: &answers, start: 0, len: bytes }], &mut read)?;
    let words = to_words(&read);
    let pairs = words.as_chunks::<2>().0.iter().map(|&[id, bits]| (id, f32::from_bits(bits)));
    let pairs: Vec<(u32, f32)> = pairs.collect();
    let outcome = |(asked, row): (&LogprobsOf, &[(u32, f32)])| match row[0] {
        (u32::MAX, _) => Err(NotFinite),
        (_, logprob) => Ok(Logprobs { logprob, top: row[1..=len.min(asked.top as usize)].to_vec() }),
    };
    Ok(asked.iter().zip(pairs.chunks_exact(1 + most)).map(outcome).collect())
}

/// Changes some logits; see [`crate::Device::adjust_logits`].
pub(super) fn adjust(context: &Arc<Context>, logits: &Tensor, changes: &[LogitChange]) -> Result<()> {
    let logits = (f32_only("adjust_logits", logits)?, logits.row_len());
    let words =
        |c: &LogitChange| [c.row, c.token, c.bias.to_bits(), c.repetition.to_bits(), c.penalty.to_bits()];
    let words: Vec<u32> = changes.iter().flat_map(words).collect();
    let buffer = GpuBuffer::to_write(context, || "changes of logits".to_owned(), words.len() as u64 * 4)?;
    context.write(&buffer, 0, bytemuck::cast_slice(&words))?;
    let args = Args::default().numbers(&[changes.len(), logits.1]);
    context.run(adjust_kernel(), &[logits.0, &buffer], &args, spread(changes.len().div_ceil(64)))
}

/// Leaves the allowed logits; see [`crate::Device::mask_logits`].
pub(super) fn mask(context: &Arc<Context>, logits: &Tensor, rows: &[u32], allowed: &[u32]) -> Result<()> {
    f32_only("mask_logits", logits)?;
    let upload = |words: &[u32]| {
        let buffer = GpuBuffer::to_write(context, || "allowed tokens".to_owned(), words.len() as u64 * 4)?;
        context.write(&buffer, 0, bytemuck::cast_slice(words))?;
        Ok(buffer)
    };
    let (rows_buffer, allowed_buffer) = (upload(rows)?, upload(allowed)?);
    let (len, nothing) = (logits.row_len(), f32::NEG_INFINITY.to_bits() as usize);
    let count = rows.len() * len;
    let args = Args::default().numbers(&[count, len, len.div_ceil(32), nothing]);
    let buffers = [gpu(logits)?, &rows_buffer, &allowed_buffer];
    context.run(mask_kernel(), &buffers, &args, spread(count.div_ceil(256)))
}

fn check_length(op: &'static str, len: usize) -> Result<()> {
    if len > LONGEST {
        return Err(Error::unsupported(op, format!("rows of {len}; {LONGEST} at most")));
    }
    Ok(())
}

/// Threads of a row, a power of two; how many there are changes no result.
fn threads(context: &Context) -> u32 {
    1 << context.device.limits().max_compute_invocations_per_workgroup.min(1024).ilog2()
}

fn to_words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word)).collect()
}

fn draws_kernel(threads: u32) -> Specialisation {
    const SOURCE: &str = concat!(include_str!("sample.wgsl"), include_str!("row.wgsl"));
    Specialisation::new("sample", SOURCE).set("THREADS", threads)
}

fn logprobs_kernel(threads: u32) -> Specialisation {
    const SOURCE: &str = concat!(include_str!("logprobs.wgsl"), include_str!("row.wgsl"));
    Specialisation::new("logprobs", SOURCE).set("THREADS", threads)
}

fn adjust_kernel() -> Specialisation {
    Specialisation::new("adjust_logits", include_str!("adjust.wgsl"))
}

fn mask_kernel() -> Specialisation {
    Specialisation::new("mask_logits", include_str!("mask.wgsl"))
}

/// A draw as the kernel reads it.
fn words(draw: &Draw, len: usize) -> [u32; DRAW] {
    let mode = match (draw.temperature, draw.keeps_all(len)) {
        (0.0, _) => 0,
        (_, true) => 1,
        (_, false) => 2,
    };
    // e^-28 is below a unit of the weights.
    let limit = (-28.0 * f64::from(draw.temperature)).max(f64::from(draw.min_p_distance())) as f32;
    let fraction = |x: f64| (x * 4_294_967_296.0) as u32;
    let top_k = draw.top_k.filter(|&k| (k as usize) < len).unwrap_or(0);
    let top_p = if draw.top_p < 1.0 { fraction(f64::from(draw.top_p)).max(1) } else { 0 };
    let logprob = u32::from(draw.logprob);
    let (temperature, limit) = (draw.temperature.to_bits(), limit.to_bits());
    [mode, logprob, temperature, limit, top_k, top_p, fraction(draw.chance), 0]
}

#[cfg(test)]
pub(super) fn samples() -> Vec<Specialisation> {
    let rows = [1024, 256].map(|threads| [draws_kernel(threads), logprobs_kernel(threads)]);
    [rows.concat(), vec![adjust_kernel(), mask_kernel()]].concat()
}
