//! Every operation, scalar and obvious: what the kernels must compute, up to rounding.
//!
//! Plain slices in f32, row-major. Kernels are held to an f64 oracle in the tests; this module says in Rust what
//! each operation means, and is the kernel `reference` of the CPU.

use std::ops::Range;

use crate::{AttentionParams, Draw, Logprobs, LogprobsOf, NotFinite, Sampled, SoftmaxState};

/// One query of attention over the visible keys: `q` is `[head_dim]`, `k` `[keys, head_dim]`, `v`
/// `[keys, value_dim]`. Returns the state with its maximum in log2 units, as [`SoftmaxState`] has it.
pub fn attention_row(
    params: &AttentionParams,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    visible: Range<usize>,
) -> SoftmaxState {
    let (head_dim, value_dim) = (params.head_dim, params.value_dim);
    let scale = params.sm_scale * std::f32::consts::LOG2_E;
    let scores: Vec<f32> = visible.clone().map(|j| scale * dot(q, &k[j * head_dim..][..head_dim])).collect();
    let mut state = SoftmaxState::empty(value_dim);
    state.max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (j, score) in visible.zip(scores) {
        let weight = (score - state.max).exp2();
        state.sum += weight;
        for (o, x) in state.out.iter_mut().zip(&v[j * value_dim..][..value_dim]) {
            *o += weight * x;
        }
    }
    state
}

/// One row of `out = x W^T + bias` with `weight` `[out, in]`; each output is one chain of fused multiply-adds
/// over the inputs in order, which every CPU kernel repeats bit for bit.
pub fn linear(weight: &[f32], bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
    for (n, (o, w)) in out.iter_mut().zip(weight.chunks_exact(x.len())).enumerate() {
        let chain = x.iter().zip(w).fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum));
        *o = chain + bias.map_or(0.0, |bias| bias[n]);
    }
}

/// `out = x / sqrt(mean(x^2) + eps) * weight` for one row.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * scale * w;
    }
}

/// Rotates one head in place; `table` is cosines, then sines, `rotary_dim / 2` each. The pairs are
/// `(i, i + rotary_dim / 2)`; elements from `rotary_dim` on stay.
pub fn rope(head: &mut [f32], table: &[f32]) {
    let half = table.len() / 2;
    for i in 0..half {
        let (cos, sin) = (table[i], table[half + i]);
        let (a, b) = (head[i], head[half + i]);
        head[i] = a * cos - b * sin;
        head[half + i] = b * cos + a * sin;
    }
}

/// `silu(gate) * up` for one row.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
        *o = g / (1.0 + (-g).exp()) * u;
    }
}

/// A token drawn from a row of logits: with a temperature, the first in order at which the running sum of weights exceeds
/// `chance` of all. The order is that of ids where every rank may be drawn, else the most probable first.
///
/// # Errors
/// [`NotFinite`].
pub fn draw(logits: &[f32], draw: &Draw) -> Result<Sampled, NotFinite> {
    let max = finite_max(logits)?;
    let least = draw.min_p_distance();
    let weight = |id: &u32| match logits[*id as usize] - max {
        below if below >= least => (f64::from(below) / f64::from(draw.temperature)).exp(),
        _ => 0.0,
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if draw.temperature == 0.0 || !draw.keeps_all(logits.len()) {
        sort_by_logit(&mut ids, logits);
        ids.truncate(draw.top_k.map_or(usize::MAX, |k| k as usize));
    }
    let mut kept = ids.len();
    if draw.temperature == 0.0 {
        kept = 1;
    } else if draw.top_p < 1.0 {
        let enough = f64::from(draw.top_p) * ids.iter().map(weight).sum::<f64>();
        kept = first_sum(ids.iter().map(weight), |sum| sum >= enough) + 1;
    }
    ids.truncate(kept);
    let weights = || ids.iter().map(weight);
    let goal = draw.chance * weights().sum::<f64>();
    let id = if kept == 1 { ids[0] } else { ids[first_sum(weights(), |sum| sum > goal)] };
    let logprob = || logprobs(logits, &LogprobsOf { token: id, top: 0 }).map(|asked| asked.logprob);
    Ok(Sampled { id, logprob: draw.logprob.then(logprob).transpose()? })
}

/// Natural logarithms of the softmax of a row of logits.
///
/// # Errors
/// [`NotFinite`].
pub fn logprobs(logits: &[f32], asked: &LogprobsOf) -> Result<Logprobs, NotFinite> {
    let max = f64::from(finite_max(logits)?);
    let log_sum = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln();
    let of = |id: u32| (f64::from(logits[id as usize]) - max - log_sum) as f32;
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    sort_by_logit(&mut ids, logits);
    ids.truncate(asked.top as usize);
    Ok(Logprobs { logprob: of(asked.token), top: ids.into_iter().map(|id| (id, of(id))).collect() })
}

fn finite_max(logits: &[f32]) -> Result<f32, NotFinite> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max.is_finite() && !logits.iter().any(|logit| logit.is_nan()) { Ok(max) } else { Err(NotFinite) }
}

/// The most probable first, lower ids first among equals.
fn sort_by_logit(ids: &mut [u32], logits: &[f32]) {
    let logit = |id: u32| logits[id as usize] + 0.0;
    ids.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
}

/// The place of the first running sum that reaches a goal, the last where none does.
fn first_sum(weights: impl Iterator<Item = f64>, reaches: impl Fn(f64) -> bool) -> usize {
    let sums = weights.scan(0.0, |sum, weight| {
        *sum += weight;
        Some(*sum)
    });
    let sums: Vec<f64> = sums.collect();
    sums.iter().position(|&sum| reaches(sum)).unwrap_or(sums.len() - 1)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
