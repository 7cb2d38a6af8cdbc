//! Requests to draws: a random stream per request that any batch reads at the same place.

use tilewise::Draw;

use crate::SamplingParams;
use crate::scheduler::BatchPlan;

/// How to draw each row of a batch's logits, in their order.
pub fn draws(batch: &BatchPlan) -> Vec<Draw> {
    let sampled = batch.sequences.iter();
    sampled.filter_map(|s| s.sampling.as_ref().map(|params| draw(params, s.next_position))).collect()
}

/// How to draw the token at `position` of a sequence.
pub fn draw(params: &SamplingParams, position: u64) -> Draw {
    Draw {
        temperature: params.temperature,
        // More than there are tokens keeps all of them.
        top_k: params.top_k.map(|k| k.try_into().unwrap_or(u32::MAX)),
        top_p: params.top_p,
        chance: uniform(params.seed, position),
        logprob: params.logprobs,
    }
}

/// The seed of a completion's own random stream; that of the first is the request's.
pub(crate) fn completion_seed(seed: u64, index: usize) -> u64 {
    match index {
        0 => seed,
        index => mix(mix(seed) ^ mix(index as u64)),
    }
}

/// A number in `0..1` that depends on the seed and the position only: a random stream that any batch, chunk
/// or preemption reads at the same place.
fn uniform(seed: u64, position: u64) -> f64 {
    let bits = mix(mix(seed).wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014), a bijection that avalanches.
fn mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_numbers_fill_the_unit_interval_evenly_for_any_seed() {
        for seed in [0, 1, 2, u64::MAX] {
            let mut buckets = [0usize; 16];
            for position in 0..16_000 {
                buckets[(uniform(seed, position) * 16.0) as usize] += 1;
            }
            // 15 degrees of freedom: 44 is exceeded once in 10^4.
            let chi2: f64 = buckets.iter().map(|&n| (n as f64 - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi2 < 44.0, "seed {seed}: {chi2} {buckets:?}");
        }
    }
}
