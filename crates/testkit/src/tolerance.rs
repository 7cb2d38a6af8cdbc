//! How far a result may be from the f64 oracle.

/// An element type, as far as rounding is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 24 bits.
    F32,
    /// 11 bits.
    F16,
    /// 8 bits.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The value as the type holds it.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => half::f16::from_f32(x).to_f32(),
            Self::Bf16 => half::bf16::from_f32(x).to_f32(),
        }
    }

    /// Half the distance between neighbours, relative.
    pub fn epsilon(self) -> f64 {
        match self {
            Self::F32 => 2.0f64.powi(-24),
            Self::F16 => 2.0f64.powi(-11),
            Self::Bf16 => 2.0f64.powi(-8),
        }
    }
}

/// The absolute error allowed in attention over `keys` keys of unit variance, written as `out`.
///
/// Accumulation is f32 whatever the inputs, which the oracle is given as rounded; the error of a weighted mean of
/// `keys` values grows slower than the square root of their number, that of a score of unit variance with the
/// chain over the head. Eight times the resulting estimate, and the rounding of the output itself.
pub fn attention(out: Precision, keys: usize, head_dim: usize) -> f64 {
    let chain = ((head_dim + 16) as f64).sqrt() + (keys as f64).sqrt();
    8.0 * Precision::F32.epsilon() * chain + 4.0 * rounding(out)
}

/// The absolute error allowed in a chain of `len` products of unit variance.
pub fn chain(len: usize) -> f64 {
    8.0 * Precision::F32.epsilon() * len as f64
}

/// The same where matrix units take the products of 16-bit keys and values.
///
/// Queries and weights are rounded to f16 on their way into the units, which hold sums in f32: the error of a weighted
/// mean is then that of an f16 output at least, whatever the types outside are.
pub fn attention_by_matrix_units(out: Precision, keys: usize, head_dim: usize) -> f64 {
    attention(out, keys, head_dim).max(attention(Precision::F16, keys, head_dim))
}

/// The absolute error allowed in a product by matrix units, f16 inputs and f32 sums: `magnitude` is the sum of
/// `|x| |w|` over its `len` terms, and `|bias|`.
///
/// Each activation is off by half a step of f16, and a weight, scaled by a power of two, by as much at most: four
/// halves of a step, of which two are the estimate and two the margin, and the chain's own error.
pub fn linear_by_matrix_units(magnitude: f64, len: usize) -> f64 {
    4.0 * Precision::F16.epsilon() * magnitude + chain(len)
}

fn rounding(out: Precision) -> f64 {
    if out == Precision::F32 { 0.0 } else { out.epsilon() }
}
