//! Every operation, scalar and obvious: what the kernels must compute, up to rounding.
//!
//! Plain slices in f32, row-major. Kernels are held to an f64 oracle in the tests; this module says in Rust what
//! each operation means, and is the kernel `reference` of the CPU.

use std::ops::Range;

use crate::{AttentionParams, SoftmaxState};

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

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
