//! What this GPU does at best: kernels of nothing but multiply-adds, and of nothing but reads.

use std::sync::Arc;
use std::time::Instant;

use super::context::{Context, is_software};
use super::memory::GpuBuffer;
use super::pipeline::Specialisation;
use super::rows::Args;
use crate::{Ceilings, Result};

/// Samples of each; the median counts.
const SAMPLES: usize = 5;

/// Threads of a work group, chains of four multiply-adds and loads of sixteen bytes of each.
const THREADS: usize = 256;
const CHAINS: usize = 8;
const LOADS: usize = 16;

/// How much one launch does.
struct Size {
    groups: usize,
    steps: usize,
    /// Of the memory that is read.
    bytes: usize,
    /// Seconds of a sample at least: many times what submitting and waiting take.
    seconds: f64,
}

/// Some milliseconds of a real GPU each, and memory far beyond its caches.
const REAL: Size = Size { groups: 4096, steps: 512, bytes: 1 << 30, seconds: 0.02 };
const SOFTWARE: Size = Size { groups: 16, steps: 64, bytes: 16 << 20, seconds: 0.002 };

/// See [`crate::Device::ceilings`].
pub(super) fn measure(context: &Arc<Context>) -> Result<Ceilings> {
    let size = if is_software(&context.info) { SOFTWARE } else { REAL };
    let part = THREADS * LOADS * 16;
    let parts = size.bytes.min(context.abilities.binding as usize / 2) / part;
    let memory = GpuBuffer::new(context, || "memory to read".to_owned(), (parts * part) as u64)?;
    context.clear(&memory)?;
    let out = GpuBuffer::new(context, || "a result".to_owned(), 4)?;
    let args = Args::default().numbers(&[size.steps]).float(0.999).float(1e-3);
    let multiply = || context.run(kernel(false), &[&out], &args, [size.groups as u32, 1, 1]);
    let read = || context.run(kernel(true), &[&out, &memory], &args, [parts as u32, 1, 1]);
    let multiply_adds = size.groups * THREADS * CHAINS * 4 * size.steps;
    Ok(Ceilings {
        flops: 2.0 * multiply_adds as f64 * rate(context, size.seconds, multiply)?,
        read_bytes: (parts * part) as f64 * rate(context, size.seconds, read)?,
    })
}

/// Reads or multiply-adds.
fn kernel(read: bool) -> Specialisation {
    Specialisation::new("ceilings", include_str!("ceilings.wgsl"))
        .set("READ", u32::from(read))
        .set("CHAINS", CHAINS)
        .set("LOADS", LOADS)
}

/// Launches per second, of as many between two waits as take `seconds`.
fn rate(context: &Context, seconds: f64, launch: impl Fn() -> Result<()>) -> Result<f64> {
    let sample = |launches: usize| -> Result<f64> {
        let start = Instant::now();
        (0..launches).try_for_each(|_| launch())?;
        context.wait()?;
        Ok(start.elapsed().as_secs_f64())
    };
    sample(1)?;
    let mut launches = 1;
    while sample(launches)? < seconds {
        launches *= 2;
    }
    let mut rates = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        rates.push(launches as f64 / sample(launches)?);
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[SAMPLES / 2])
}

#[cfg(test)]
pub(super) fn samples() -> Vec<Specialisation> {
    vec![kernel(false), kernel(true)]
}
