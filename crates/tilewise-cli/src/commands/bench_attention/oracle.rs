//! Attention in f64, by its definition, for some rows.

use tilewise::{AttentionParams, DType, DeviceCaps};

use super::super::shape::Shape;
use super::inputs::HostInputs;
use crate::args::Layout;

/// The right answer for some rows of the output.
pub(super) struct Expected {
    /// Where a row starts in the output, in elements, and the row.
    rows: Vec<(usize, Vec<f64>)>,
}

/// Multiply-adds that checking a shape may take: about a second.
const BUDGET: usize = 1 << 29;

/// What a kernel may be off by, given the type of its output: rounding a number below 4 takes half a unit of
/// it, and the sums are f32. A device may round queries and weights itself, as coarsely.
pub(super) fn tolerance(device: &DeviceCaps, params: &AttentionParams) -> f64 {
    let own = device.rounds_to.filter(|_| params.kv_dtype != DType::F32);
    match own.filter(|_| params.q_dtype == DType::F32).unwrap_or(params.q_dtype) {
        DType::F16 => 2e-3,
        DType::Bf16 => 1.6e-2,
        _ => 2e-5,
    }
}

/// All rows of a small shape; at least 64 of a large one, spread over batch, heads and queries.
pub(super) fn expect(shape: &Shape, inputs: &HostInputs) -> Expected {
    let total = shape.batch * shape.params.num_qo_heads * shape.q_len;
    let affordable = BUDGET / (shape.kv_len * (shape.params.head_dim + shape.params.value_dim));
    let count = affordable.max(64).min(total);
    // An odd stride near the golden section of the whole visits heads and positions evenly.
    let stride = ((total as f64 * 0.618_034) as usize | 1).max(1);
    let chosen = (0..count).map(|index| if count == total { index } else { index * stride % total });
    let heads = shape.params.num_qo_heads;
    let rows = chosen.map(|index| {
        let (query, rest) = (index % shape.q_len, index / shape.q_len);
        let place = Place { sequence: rest / heads, head: rest % heads, token: query };
        (offset(shape, place, heads, shape.q_len), row(shape, inputs, place))
    });
    Expected { rows: rows.collect() }
}

/// The largest difference to the right answer; NaN if a number is not finite.
pub(super) fn max_abs_err(expected: &Expected, out: &[f32]) -> f64 {
    let mut worst = 0f64;
    for (start, row) in &expected.rows {
        for (want, &got) in row.iter().zip(&out[*start..]) {
            let error = (want - f64::from(got)).abs();
            if error.is_nan() {
                return error;
            }
            worst = worst.max(error);
        }
    }
    worst
}

#[derive(Clone, Copy)]
struct Place {
    sequence: usize,
    head: usize,
    token: usize,
}

/// Where a vector starts in `[batch, heads, tokens, dim]` or `[batch * tokens, heads, dim]`.
fn offset(shape: &Shape, place: Place, heads: usize, tokens: usize) -> usize {
    let Place { sequence, head, token } = place;
    let vector = match shape.layout {
        Layout::Dense => (sequence * heads + head) * tokens + token,
        Layout::Ragged | Layout::Paged => (sequence * tokens + token) * heads + head,
    };
    vector * shape.params.head_dim
}

fn row(shape: &Shape, inputs: &HostInputs, place: Place) -> Vec<f64> {
    let params = &shape.params;
    let dim = params.head_dim;
    let start = offset(shape, place, params.num_qo_heads, shape.q_len);
    let query = &inputs.q[start..start + dim];
    let kv_head = place.head / params.group_size();
    let visible = params.mask.visible(place.token, shape.q_len, shape.kv_len);
    let vector =
        |token| offset(shape, Place { head: kv_head, token, ..place }, params.num_kv_heads, shape.kv_len);
    let dot = |key: &[f32]| query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
    let scores =
        visible.clone().map(|token| dot(&inputs.k[vector(token)..][..dim]) * f64::from(params.sm_scale));
    let scores: Vec<f64> = scores.collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut out, mut total) = (vec![0.0; dim], 0.0);
    for (token, score) in visible.zip(scores) {
        let weight = (score - max).exp();
        total += weight;
        for (out, &value) in out.iter_mut().zip(&inputs.v[vector(token)..][..dim]) {
            *out += weight * f64::from(value);
        }
    }
    if total > 0.0 {
        out.iter_mut().for_each(|out| *out /= total);
    }
    out
}
