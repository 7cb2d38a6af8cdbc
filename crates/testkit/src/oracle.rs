//! Attention in f64, as its definition reads.

/// Which keys a query may see; the definition of each is in the library's documentation of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// Every key.
    Full,
    /// Up to the query's position, the last query aligned with the last key.
    Causal,
    /// Inclusive radii around the query's position, and causal or not.
    Window(Option<u32>, Option<u32>, bool),
}

impl Visible {
    /// Whether query `i` of `n` sees key `j` of `s`.
    pub fn sees(self, i: usize, n: usize, j: usize, s: usize) -> bool {
        let causal = j as i64 <= i as i64 + (s as i64 - n as i64).max(0);
        match self {
            Self::Full => true,
            Self::Causal => causal,
            Self::Window(left, right, and_causal) => {
                let distance = j as i64 - (i as i64 + s as i64 - n as i64);
                left.is_none_or(|left| distance >= -i64::from(left))
                    && right.is_none_or(|right| distance <= i64::from(right))
                    && (!and_causal || causal)
            }
        }
    }
}

/// One head of one sequence: `q` `[n, d]`, `k` `[s, d]`, `v` `[s, dv]`.
pub struct Head<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// Elements of a query.
    pub head_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// Factor on scores.
    pub scale: f64,
    /// The mask.
    pub visible: Visible,
}

/// The outputs `[n, dv]` and natural-log sums of exponentials `[n]`; zeros and `-inf` where a query sees no key.
pub fn attention(head: &Head<'_>) -> (Vec<f64>, Vec<f64>) {
    let (n, s) = (head.q.len() / head.head_dim, head.k.len() / head.head_dim);
    let mut out = vec![0.0; n * head.value_dim];
    let mut lse = vec![f64::NEG_INFINITY; n];
    for i in 0..n {
        let q = &head.q[i * head.head_dim..(i + 1) * head.head_dim];
        let score = |j: usize| {
            let k = &head.k[j * head.head_dim..(j + 1) * head.head_dim];
            head.scale * q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let scores: Vec<(usize, f64)> =
            (0..s).filter(|&j| head.visible.sees(i, n, j, s)).map(|j| (j, score(j))).collect();
        let max = scores.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|(_, score)| (score - max).exp()).sum();
        if scores.is_empty() {
            continue;
        }
        lse[i] = max + sum.ln();
        for (j, score) in scores {
            let weight = (score - max).exp() / sum;
            for d in 0..head.value_dim {
                out[i * head.value_dim + d] += weight * f64::from(head.v[j * head.value_dim + d]);
            }
        }
    }
    (out, lse)
}

/// `x W^T + bias` in f64, `weight` `[out, in]`.
pub fn linear(weight: &[f32], bias: Option<&[f32]>, x: &[f32], inputs: usize) -> Vec<f64> {
    let row = |x: &[f32]| -> Vec<f64> {
        let dot = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        let products = weight.chunks_exact(inputs).map(dot);
        products.enumerate().map(|(n, y)| y + bias.map_or(0.0, |bias| f64::from(bias[n]))).collect()
    };
    x.chunks_exact(inputs).flat_map(row).collect()
}
