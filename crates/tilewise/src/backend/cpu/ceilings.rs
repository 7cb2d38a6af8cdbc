//! What this machine does at best: loops of nothing but multiply-adds, and of nothing but reads.

use std::time::Instant;

use super::buffer::HostBuffer;
use super::simd::{Kernel, LANES, Level, Simd};
use super::threads::Pool;
use crate::{Ceilings, Result};

/// Samples of each; the median counts.
const SAMPLES: usize = 9;

/// Multiply-adds of each accumulator in a sample: some milliseconds.
const STEPS: usize = 1 << 20;

/// Bytes read in a sample: several times what caches hold.
const BYTES: usize = 256 << 20;

/// Streams that a thread reads at once: one alone does not fill the memory's bandwidth.
const STREAMS: usize = 4;

/// Bytes between a line's prefetch and its read.
const AHEAD: usize = 512;

/// Measures with all threads; see [`crate::Device::ceilings`].
pub(super) fn measure(level: Level, pool: &Pool) -> Result<Ceilings> {
    let threads = pool.threads();
    let mut memory = HostBuffer::zeroed(BYTES)?;
    // Pages that were never written to may all be the same one.
    memory.slice_mut::<f32>().fill(1.0);
    let part = BYTES / threads / (STREAMS * 64) * (STREAMS * 64) / size_of::<f32>();
    let (memory, sink) = (memory.slice::<f32>(), std::sync::Mutex::new(0.0f32));
    let keep = |x: f32| *sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += x;
    let (mut flops, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let start = Instant::now();
        pool.run(threads, &|_, _| keep(level.run(Multiply)));
        let per_thread = level.max_rows().min(CHAINS) * STEPS * LANES * 2;
        flops.push((threads * per_thread) as f64 / start.elapsed().as_secs_f64());
        let start = Instant::now();
        pool.run(threads, &|_, item| keep(level.run(Read(&memory[item * part..(item + 1) * part]))));
        reads.push((threads * part * size_of::<f32>()) as f64 / start.elapsed().as_secs_f64());
    }
    std::hint::black_box(sink.into_inner().ok());
    for samples in [&mut flops, &mut reads] {
        samples.sort_by(f64::total_cmp);
    }
    Ok(Ceilings { flops: flops[SAMPLES / 2], read_bytes: reads[SAMPLES / 2] })
}

/// Chains of multiply-adds, where there are registers for them.
const CHAINS: usize = 8;

struct Multiply;

impl Kernel for Multiply {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (x, y) = (std::hint::black_box(0.999), std::hint::black_box(1e-3));
        let (x, y) = (simd.splat(x), simd.splat(y));
        let mut chains = [y; CHAINS];
        for _ in 0..STEPS {
            for chain in 0..CHAINS {
                if chain < S::MAX_ROWS {
                    chains[chain] = simd.fma(chains[chain], x, y);
                }
            }
        }
        let mut sum = chains[0];
        for chain in 1..CHAINS {
            sum = simd.add(sum, chains[chain]);
        }
        simd.reduce_sum(sum)
    }
}

/// A whole number of lines for each stream.
struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let stream = self.0.len() / STREAMS;
        let mut sums = [simd.splat(0.0); STREAMS];
        for at in (0..stream).step_by(LANES) {
            for s in 0..STREAMS {
                let line = self.0[s * stream + at..][..LANES].as_ptr();
                simd.prefetch(line.cast::<u8>().wrapping_add(AHEAD));
                // SAFETY: `line` has sixteen elements.
                sums[s] = simd.add(sums[s], unsafe { simd.load(line) });
            }
        }
        for s in 1..STREAMS {
            sums[0] = simd.add(sums[0], sums[s]);
        }
        simd.reduce_sum(sums[0])
    }
}
