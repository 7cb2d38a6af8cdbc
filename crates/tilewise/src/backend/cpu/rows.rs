//! Operations on rows that are independent of each other: norms, rotary positions, activation.
//!
//! Memory and a few vector instructions per element; a row is always computed alone and in the same order.

use super::simd::{Kernel, LANES, Level, Simd};
use super::tile::load_some;

/// `out = x / sqrt(mean(x^2) + eps) * weight`.
pub(super) struct RmsNorm<'a> {
    pub x: *const f32,
    pub weight: &'a [f32],
    pub eps: f32,
    pub out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let len = self.weight.len();
        let mut squares = simd.splat(0.0);
        for at in (0..len).step_by(LANES) {
            // SAFETY: `x` has as many elements as `weight`: `norm_row` and `norm_row_in_place` made it so.
            let x = unsafe { load_some(simd, self.x.add(at), len - at) };
            squares = simd.fma(x, x, squares);
        }
        let mean = simd.reduce_sum(squares) / len as f32;
        let scale = simd.splat(1.0 / (mean + self.eps).sqrt());
        for at in (0..len).step_by(LANES) {
            // SAFETY: as above; `weight` and `out` have `len` elements.
            unsafe {
                let x = load_some(simd, self.x.add(at), len - at);
                let weight = load_some(simd, self.weight[at..].as_ptr(), len - at);
                store_some(simd, simd.mul(simd.mul(x, scale), weight), &mut self.out[at..]);
            }
        }
    }
}

/// RMS norm of a row into another.
pub(super) fn norm_row(level: Level, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && out.len() == weight.len());
    level.run(RmsNorm { x: x.as_ptr(), weight, eps, out });
}

/// RMS norm of a row in place.
pub(super) fn norm_row_in_place(level: Level, x: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len(), weight.len());
    level.run(RmsNorm { x: x.as_ptr(), weight, eps, out: x });
}

/// `silu(gate) * up`, where `gate_up` is `[gate, up]`.
pub(super) struct SiluMul<'a> {
    pub gate_up: &'a [f32],
    pub out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (gate, up) = self.gate_up.split_at(self.out.len());
        let (one, log2e) = (simd.splat(1.0), simd.splat(-std::f32::consts::LOG2_E));
        let cap = simd.splat(126.0);
        for at in (0..gate.len()).step_by(LANES) {
            let left = gate.len() - at;
            // SAFETY: `left` elements remain in both halves.
            unsafe {
                let g = load_some(simd, gate[at..].as_ptr(), left);
                let u = load_some(simd, up[at..].as_ptr(), left);
                // Below -87 silu is less than 1e-36: capping the exponent there changes nothing visible.
                let exponent = simd.mul(g, log2e);
                let over = simd.max(simd.sub(exponent, cap), simd.splat(0.0));
                let exponential = simd.exp2(simd.sub(exponent, over));
                let silu = simd.div(g, simd.add(one, exponential));
                store_some(simd, simd.mul(silu, u), &mut self.out[at..]);
            }
        }
    }
}

/// Rotates one head by `table`: cosines, then sines; pairs `(i, i + half)`.
pub(super) struct Rotate<'a> {
    pub head: &'a mut [f32],
    pub table: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let half = self.table.len() / 2;
        let (cosines, sines) = self.table.split_at(half);
        let (low, high) = self.head[..2 * half].split_at_mut(half);
        for at in (0..half).step_by(LANES) {
            // SAFETY: `half - at` elements remain in each of the four.
            unsafe {
                let cos = load_some(simd, cosines[at..].as_ptr(), half - at);
                let sin = load_some(simd, sines[at..].as_ptr(), half - at);
                let a = load_some(simd, low[at..].as_ptr(), half - at);
                let b = load_some(simd, high[at..].as_ptr(), half - at);
                store_some(simd, simd.sub(simd.mul(a, cos), simd.mul(b, sin)), &mut low[at..]);
                store_some(simd, simd.add(simd.mul(b, cos), simd.mul(a, sin)), &mut high[at..]);
            }
        }
    }
}

/// Stores the first lanes of a vector, as many as `to` has room for.
#[inline(always)]
fn store_some<S: Simd>(simd: S, v: S::V, to: &mut [f32]) {
    if to.len() >= LANES {
        // SAFETY: there is room for sixteen.
        unsafe { simd.store(to.as_mut_ptr(), v) };
    } else {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: there is room for sixteen.
        unsafe { simd.store(lanes.as_mut_ptr(), v) };
        to.copy_from_slice(&lanes[..to.len()]);
    }
}
