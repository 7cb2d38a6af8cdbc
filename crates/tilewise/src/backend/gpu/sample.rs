//! Drawing tokens on the device: only they come back.

use std::sync::Arc;

use super::context::{Context, Span};
use super::memory::GpuBuffer;
use super::pipeline::Specialisation;
use super::rows::{Args, f32_only, spread};
use crate::{Draw, Error, NotFinite, Result, Sampled, Tensor};

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
    let len = logits.row_len();
    if len > LONGEST {
        return Err(Error::unsupported("sample", format!("rows of {len}; {LONGEST} at most")));
    }
    let words: Vec<u32> = draws.iter().flat_map(|draw| words(draw, len)).collect();
    let asked = GpuBuffer::to_write(context, || "draws".to_owned(), words.len() as u64 * 4)?;
    context.write(&asked, 0, bytemuck::cast_slice(&words))?;
    let bytes = (draws.len() * SAMPLED * 4) as u64;
    let sampled = GpuBuffer::new(context, || "sampled tokens".to_owned(), bytes)?;
    let threads = context.device.limits().max_compute_invocations_per_workgroup.min(1024);
    // Ids of a row take the upper bits of a word, so that their digits are few.
    let shift = (len as u32 - 1).leading_zeros().min(31) as usize;
    let args = Args::default().numbers(&[draws.len(), len, shift]);
    let kernel = kernel(1 << threads.ilog2());
    context.run(kernel, &[f32_only("sample", logits)?, &asked, &sampled], &args, spread(draws.len()))?;
    let mut read = Vec::new();
    context.read(&[Span { buffer: &sampled, start: 0, len: bytes }], &mut read)?;
    let words: Vec<u32> = read.as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
    let outcome = |(draw, &[id, logprob]): (&Draw, &[u32; SAMPLED])| match id {
        u32::MAX => Err(NotFinite),
        id => Ok(Sampled { id, logprob: draw.logprob.then(|| f32::from_bits(logprob)) }),
    };
    Ok(draws.iter().zip(words.as_chunks().0).map(outcome).collect())
}

/// The kernel; how many threads draw changes no result.
fn kernel(threads: u32) -> Specialisation {
    Specialisation::new("sample", include_str!("sample.wgsl")).set("THREADS", threads)
}

/// A draw as the kernel reads it.
fn words(draw: &Draw, len: usize) -> [u32; DRAW] {
    let mode = match (draw.temperature, draw.keeps_all(len)) {
        (0.0, _) => 0,
        (_, true) => 1,
        (_, false) => 2,
    };
    // e^-28 is below a unit of the weights.
    let limit = (-28.0 * f64::from(draw.temperature)).max(f64::from(f32::MIN)) as f32;
    let fraction = |x: f64| (x * 4_294_967_296.0) as u32;
    let top_k = draw.top_k.filter(|&k| (k as usize) < len).unwrap_or(0);
    let top_p = if draw.top_p < 1.0 { fraction(f64::from(draw.top_p)).max(1) } else { 0 };
    let logprob = u32::from(draw.logprob);
    let (temperature, limit) = (draw.temperature.to_bits(), limit.to_bits());
    [mode, logprob, temperature, limit, top_k, top_p, fraction(draw.chance), 0]
}

#[cfg(test)]
pub(super) fn samples() -> Vec<Specialisation> {
    vec![kernel(1024), kernel(256)]
}
