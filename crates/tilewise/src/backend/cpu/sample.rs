//! Logits to tokens.

use crate::{Draw, Logprobs, LogprobsOf, NotFinite, Sampled};

/// Draws tokens, and keeps the memory that a row takes for the next.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
    /// Proportional to the probability at the temperature asked for.
    weight: f32,
}

impl Sampler {
    /// The token of a row of logits.
    pub(super) fn draw(&mut self, logits: &[f32], draw: &Draw) -> Result<Sampled, NotFinite> {
        let max = finite_max(logits)?;
        let id = match draw.temperature {
            0.0 => first_equal(logits, max),
            _ => self.draw_by_chance(logits, max, draw),
        };
        let logprob = || logprob(logits[id], max, sum_exp(logits, max).ln());
        Ok(Sampled { id: id as u32, logprob: draw.logprob.then(logprob) })
    }

    /// The logprobs of a row that are asked for.
    pub(super) fn logprobs(&mut self, logits: &[f32], asked: &LogprobsOf) -> Result<Logprobs, NotFinite> {
        let max = finite_max(logits)?;
        let log_sum = sum_exp(logits, max).ln();
        let of = |logit| logprob(logit, max, log_sum);
        let logprob = of(logits[asked.token as usize]);
        let most = (asked.top as usize).min(logits.len());
        if most == 0 {
            return Ok(Logprobs { logprob, top: Vec::new() });
        }
        self.candidates.clear();
        let all = logits.iter().enumerate();
        self.candidates.extend(all.map(|(id, &logit)| Candidate { id: id as u32, logit, weight: 0.0 }));
        self.candidates.select_nth_unstable_by(most - 1, more_probable);
        let top = &mut self.candidates[..most];
        top.sort_unstable_by(more_probable);
        Ok(Logprobs { logprob, top: top.iter().map(|c| (c.id, of(c.logit))).collect() })
    }

    fn draw_by_chance(&mut self, logits: &[f32], max: f32, draw: &Draw) -> usize {
        self.weights.clear();
        let least = draw.min_p_distance();
        let weight =
            |below: f32| if below >= least { exp_of_negative(below / draw.temperature) } else { 0.0 };
        self.weights.extend(logits.iter().map(|&logit| weight(logit - max)));
        if draw.keeps_all(logits.len()) {
            return pick(&self.weights, draw.chance * sum(&self.weights));
        }
        let keep = draw.top_k.map_or(usize::MAX, |k| k as usize).min(logits.len());
        self.candidates.clear();
        let weighted = logits.iter().zip(&self.weights).enumerate();
        self.candidates.extend(weighted.map(|(id, (&logit, &weight))| Candidate {
            id: id as u32,
            logit,
            weight,
        }));
        if keep < logits.len() {
            self.candidates.select_nth_unstable_by(keep - 1, more_probable);
            self.candidates.truncate(keep);
        }
        let kept: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let nucleus = self.sort_nucleus(f64::from(draw.top_p) * kept);
        self.weights.clear();
        self.weights.extend(self.candidates[..nucleus].iter().map(|c| c.weight));
        self.candidates[pick(&self.weights, draw.chance * sum(&self.weights))].id as usize
    }

    /// Sorts the most probable candidates to the front and returns how many of them weigh `enough` together.
    ///
    /// Only as many are sorted as are needed: the nucleus of a sure model is a handful of a large vocabulary.
    fn sort_nucleus(&mut self, enough: f64) -> usize {
        let (mut sorted, mut sum) = (0, 0.0);
        while sorted < self.candidates.len() {
            let rest = &mut self.candidates[sorted..];
            let take = sorted.max(256).min(rest.len());
            if take < rest.len() {
                rest.select_nth_unstable_by(take - 1, more_probable);
            }
            rest[..take].sort_unstable_by(more_probable);
            for candidate in &rest[..take] {
                sum += f64::from(candidate.weight);
                sorted += 1;
                if sum >= enough {
                    return sorted;
                }
            }
        }
        sorted
    }
}

/// Makes `-inf` of the logits whose bits are not set.
pub(super) fn mask(row: &mut [f32], allowed: &[u32]) {
    for (logits, &word) in row.chunks_mut(32).zip(allowed) {
        for (bit, logit) in logits.iter_mut().enumerate() {
            *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
        }
    }
}

/// A total order: larger logits first, lower ids among equals. Zeros of both signs are equals.
fn more_probable(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    (b.logit + 0.0).total_cmp(&(a.logit + 0.0)).then(a.id.cmp(&b.id))
}

fn logprob(logit: f32, max: f32, log_sum: f64) -> f32 {
    (f64::from(logit) - f64::from(max) - log_sum) as f32
}

/// The largest of a finite row.
fn finite_max(row: &[f32]) -> Result<f32, NotFinite> {
    let max = row_max(row);
    if max.is_finite() && !has_nan(row) { Ok(max) } else { Err(NotFinite) }
}

fn sum(weights: &[f32]) -> f64 {
    weights.iter().map(|&weight| f64::from(weight)).sum()
}

/// The first index whose running sum exceeds `threshold`, or the last of positive weight where rounding
/// leaves none.
fn pick(weights: &[f32], threshold: f64) -> usize {
    let (mut sum, mut last) = (0.0, 0);
    for (index, &weight) in weights.iter().enumerate() {
        sum += f64::from(weight);
        if weight > 0.0 {
            last = index;
            if sum > threshold {
                break;
            }
        }
    }
    last
}

const LANES: usize = 16;

/// The largest element; `-inf` of an empty row. NaN is passed over.
fn row_max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
}

fn has_nan(row: &[f32]) -> bool {
    // Without a branch in it, a chunk is a few vector instructions.
    row.chunks(256).any(|chunk| chunk.iter().fold(false, |found, x| found | x.is_nan()))
}

/// The first place of `value`, which is in the row.
fn first_equal(row: &[f32], value: f32) -> usize {
    const CHUNK: usize = 64;
    let has = |chunk: &[f32]| chunk.iter().fold(false, |found, &x| found | (x == value));
    let start = row.chunks(CHUNK).position(has).unwrap_or(0) * CHUNK;
    start + row[start..].iter().position(|&x| x == value).unwrap_or(0)
}

/// The sum of `exp(x - max)`, accumulated in f64.
///
/// A vocabulary is the longest row there is, so the exponential is a polynomial that the compiler keeps in
/// vectors.
fn sum_exp(row: &[f32], max: f32) -> f64 {
    let mut lanes = [0f64; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        let mut terms = [0f32; LANES];
        for (term, &x) in terms.iter_mut().zip(chunk) {
            *term = exp_of_negative(x - max);
        }
        for (lane, term) in lanes.iter_mut().zip(terms) {
            *lane += f64::from(term);
        }
    }
    let rest: f64 = rest.iter().map(|&x| f64::from(exp_of_negative(x - max))).sum();
    lanes.iter().sum::<f64>() + rest
}

/// `exp(x)` for `x <= 0`, with a relative error below `3e-7 + 1.2e-7 |x|`; 0 below -87.4; NaN of NaN.
///
/// `x = (n + f) ln 2` with `|f| <= 1/2`: `2^f` is a Taylor polynomial of degree 6, `2^n` an exponent field.
#[inline(always)]
fn exp_of_negative(x: f32) -> f32 {
    /// Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let y = x * std::f32::consts::LOG2_E;
    let rounded = y + ROUND;
    let f = (y - (rounded - ROUND)) * std::f32::consts::LN_2;
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    let p = 1.0
        + f * (1.0 + f * (0.5 + f * (1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f * (1.0 / 720.0))))));
    if y < -126.0 { 0.0 } else { p * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_as_exact_as_documented() {
        for step in 0..=87_300 {
            let x = -(step as f32) / 1000.0;
            let (got, want) = (f64::from(exp_of_negative(x)), f64::from(x).exp());
            // The argument times log2(e) is rounded once: an error of x * 2^-24 in the exponent.
            let bound = 3e-7 + f64::from(-x) * 1.2e-7;
            assert!((got / want - 1.0).abs() <= bound, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp_of_negative(f32::NEG_INFINITY), 0.0);
        assert!(exp_of_negative(f32::NAN).is_nan());
    }
}
