//! The mergeable state of a softmax-weighted sum.
//!
//! Attention over a set of keys is a triple: the running maximum of the scores, the sum of exponentials
//! relative to it, and the weighted values. Triples over disjoint key sets merge associatively up to
//! rounding (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022), which is what lets one row be
//! split over cores. Scores are kept in units of log2, so that the exponentials are powers of two.

/// One query row's attention over some of its keys.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftmaxState {
    /// The reference exponent, in log2 units: at least the largest score less a constant; `-inf` before any key.
    pub max: f32,
    /// The sum of `2^(score - max)`.
    pub sum: f32,
    /// The sum of `2^(score - max) * value`, `[value_dim]`.
    pub out: Vec<f32>,
}

impl SoftmaxState {
    /// The state of a row that has seen no key.
    pub fn empty(value_dim: usize) -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0, out: vec![0.0; value_dim] }
    }

    /// Takes in the state of other keys of the same row. Merging an empty state changes no bit.
    pub fn merge(&mut self, other: &Self) {
        merge_row((&mut self.max, &mut self.sum, &mut self.out), (other.max, other.sum, &other.out));
    }

    /// The attention output, `out / sum`; zeros if no key was seen.
    pub fn finish(&self) -> Vec<f32> {
        let scale = if self.sum == 0.0 { 0.0 } else { 1.0 / self.sum };
        self.out.iter().map(|o| o * scale).collect()
    }

    /// The natural logarithm of the sum of exponentials; `-inf` if no key was seen.
    pub fn lse(&self) -> f32 {
        lse(self.max, self.sum)
    }
}

/// Natural-log sum of exponentials from a row's maximum (log2 units) and sum.
pub(crate) fn lse(max: f32, sum: f32) -> f32 {
    if sum == 0.0 { f32::NEG_INFINITY } else { (max + sum.log2()) * std::f32::consts::LN_2 }
}

/// Merges `(max, sum, out)` of other keys into a row's own; an empty side changes nothing.
pub(crate) fn merge_row(own: (&mut f32, &mut f32, &mut [f32]), other: (f32, f32, &[f32])) {
    let (max, sum, out) = own;
    let (other_max, other_sum, other_out) = other;
    if other_max == f32::NEG_INFINITY {
        return;
    }
    if *max == f32::NEG_INFINITY {
        *max = other_max;
        *sum = other_sum;
        out.copy_from_slice(other_out);
        return;
    }
    let top = if other_max > *max { other_max } else { *max };
    let (keep, take) = (exp2(*max - top), exp2(other_max - top));
    *sum = *sum * keep + other_sum * take;
    for (o, x) in out.iter_mut().zip(other_out) {
        *o = *o * keep + x * take;
    }
    *max = top;
}

/// The coefficients of `2^f` on `[-1/2, 1/2]`, lowest power first: a minimax polynomial of degree 6 whose
/// error is below an ulp of f32. All backends use it, so that a power of two is the same bits on every path.
pub(crate) const EXP2_POLY: [f32; 7] =
    [1.0, std::f32::consts::LN_2, 0.240_226_5, 0.055_504_11, 0.009_618_03, 0.001_333_386, 0.000_154_034_6];

/// Adding and subtracting this rounds a small f32 to an integer, which is left in the low mantissa bits.
pub(crate) const ROUND_MAGIC: f32 = 12_582_912.0;

/// `2^x` for `x <= 126`, bit for bit what the vector kernels compute; at or below -126 it is `2^-126`.
pub(crate) fn exp2(x: f32) -> f32 {
    let x = if x.is_nan() || x > -126.0 { x } else { -126.0 };
    let n = x + ROUND_MAGIC;
    let f = x - (n - ROUND_MAGIC);
    let mut p = EXP2_POLY[6];
    for c in EXP2_POLY[..6].iter().rev() {
        p = p.mul_add(f, *c);
    }
    f32::from_bits(p.to_bits().wrapping_add(n.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_within_two_ulp_of_the_true_power() {
        let mut worst = 0.0f64;
        for i in -125_000..8_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp2();
            worst = worst.max(((f64::from(exp2(x)) - want) / want).abs());
        }
        assert!(worst < 2.4e-7, "relative error {worst}");
    }

    #[test]
    fn merging_an_empty_state_changes_no_bit() {
        let state = SoftmaxState { max: 1.5, sum: 2.25, out: vec![0.1, -0.0, 3.0] };
        let mut left = SoftmaxState::empty(3);
        left.merge(&state);
        assert_eq!(left, state);
        let mut right = state.clone();
        right.merge(&SoftmaxState::empty(3));
        assert_eq!(right, state);
    }
}
