//! The shapes attention is tested on: sizes straddle the edges of lanes, tiles, blocks, pages and chunks.

use crate::oracle::Visible;
use crate::random::Random;
use crate::tolerance::Precision;

/// How keys and values are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[batch, heads, tokens, dim]`; all sequences have the same lengths.
    Dense,
    /// `[total tokens, heads, dim]`.
    Ragged,
    /// Pages of this many tokens, in shuffled order.
    Paged(usize),
}

/// One launch.
#[derive(Debug, Clone)]
pub struct AttentionCase {
    /// Query heads.
    pub num_qo_heads: usize,
    /// KV heads.
    pub num_kv_heads: usize,
    /// Elements of queries and keys.
    pub head_dim: usize,
    /// Elements of values.
    pub value_dim: usize,
    /// The mask.
    pub visible: Visible,
    /// Queries and keys of each sequence.
    pub lens: Vec<(usize, usize)>,
    /// Type of the keys and values; queries and outputs have it too, except with pages, where they are f32.
    pub precision: Precision,
    /// Where keys and values are.
    pub layout: Layout,
    /// First keys that all sequences have in common; where they fill pages, these are the same ones.
    pub shared: usize,
}

/// Random tensors of a case, per sequence and head, rounded to the case's precision.
#[derive(Debug, Clone)]
pub struct Data {
    /// `[sequence][qo head]` of `[queries, head_dim]`.
    pub q: Vec<Vec<Vec<f32>>>,
    /// `[sequence][kv head]` of `[keys, head_dim]`.
    pub k: Vec<Vec<Vec<f32>>>,
    /// `[sequence][kv head]` of `[keys, value_dim]`.
    pub v: Vec<Vec<Vec<f32>>>,
}

impl AttentionCase {
    /// A case with values as wide as keys.
    pub fn new(heads: (usize, usize), head_dim: usize, visible: Visible, lens: &[(usize, usize)]) -> Self {
        let (num_qo_heads, num_kv_heads) = heads;
        let (value_dim, lens) = (head_dim, lens.to_vec());
        let (precision, layout, shared) = (Precision::F32, Layout::Ragged, 0);
        Self { num_qo_heads, num_kv_heads, head_dim, value_dim, visible, lens, precision, layout, shared }
    }

    /// The type of queries and outputs.
    pub fn q_precision(&self) -> Precision {
        if matches!(self.layout, Layout::Paged(_)) { Precision::F32 } else { self.precision }
    }

    /// The case's data, the same every time.
    pub fn data(&self, seed: u64) -> Data {
        let mut random = Random::new(seed);
        let mut heads =
            |heads: usize, dim: usize, tokens: fn(&(usize, usize)) -> usize, precision: Precision| {
                let head = |random: &mut Random, len| {
                    random.normals(len).into_iter().map(|x| precision.round(x)).collect()
                };
                let sequence = |lens: &(usize, usize)| {
                    (0..heads).map(|_| head(&mut random, tokens(lens) * dim)).collect::<Vec<Vec<f32>>>()
                };
                self.lens.iter().map(sequence).collect::<Vec<_>>()
            };
        let q = heads(self.num_qo_heads, self.head_dim, |lens| lens.0, self.q_precision());
        let mut k = heads(self.num_kv_heads, self.head_dim, |lens| lens.1, self.precision);
        let mut v = heads(self.num_kv_heads, self.value_dim, |lens| lens.1, self.precision);
        for (vectors, dim) in [(&mut k, self.head_dim), (&mut v, self.value_dim)] {
            if let Some((first, others)) = vectors.split_first_mut() {
                for (own, first) in others.iter_mut().flat_map(|heads| heads.iter_mut().zip(&*first)) {
                    own[..self.shared * dim].copy_from_slice(&first[..self.shared * dim]);
                }
            }
        }
        Data { q, k, v }
    }
}

/// All attention cases.
pub fn attention() -> Vec<AttentionCase> {
    let mut cases = Vec::new();
    let window = |left, right, causal| Visible::Window(left, right, causal);
    // Lengths at every edge, with every mask, on a small head.
    for visible in [
        Visible::Full,
        Visible::Causal,
        window(Some(0), Some(0), false),
        window(Some(5), None, true),
        window(Some(17), Some(3), false),
        window(None, Some(40), false),
        window(Some(130), Some(0), true),
    ] {
        for lens in
            [(1, 1), (1, 15), (1, 16), (1, 17), (15, 15), (16, 17), (17, 16), (33, 129), (64, 64), (127, 128)]
        {
            cases.push(AttentionCase::new((2, 1), 16, visible, &[lens]));
        }
        for lens in
            [(1, 127), (1, 128), (1, 129), (3, 1023), (2, 1024), (1, 1025), (130, 1100), (5, 3), (40, 7)]
        {
            cases.push(AttentionCase::new((3, 1), 24, visible, &[lens]));
        }
    }
    // Head dimensions, specialised or not, with values of another width now and then.
    for head_dim in (8..=512).step_by(8).filter(|d| *d <= 136 || d % 64 == 0 || d % 104 == 0) {
        let mut case = AttentionCase::new((2, 2), head_dim, Visible::Causal, &[(9, 20), (1, 33)]);
        cases.push(case.clone());
        case.value_dim = 520 - head_dim;
        cases.push(case);
    }
    // Groups of query heads, and batches of sequences of all kinds, empty ones too.
    for heads in [(1, 1), (4, 4), (6, 2), (7, 1), (8, 1), (16, 8), (5, 5), (12, 1), (13, 1)] {
        let lens = [(1, 50), (0, 9), (20, 20), (7, 140), (1, 1), (3, 3)];
        cases.push(AttentionCase::new(heads, 64, Visible::Causal, &lens));
        cases.push(AttentionCase::new(heads, 40, window(Some(31), Some(0), true), &lens));
    }
    cases.push(AttentionCase::new((2, 1), 128, Visible::Causal, &[(1, 2500), (200, 2100)]));
    cases.push(AttentionCase::new((2, 1), 128, window(Some(1100), None, true), &[(1, 3000), (30, 2300)]));
    let mut all = vary(cases);
    // One chunk of keys in the same pages, or two; for single queries and for drafts.
    for page_size in [16, 32, 64, 128] {
        for (turn, precision) in Precision::ALL.into_iter().enumerate() {
            let (shared, lens) = [
                (1100, [(1, 1130), (3, 1150), (1, 1100 + page_size), (0, 1105)]),
                (2100, [(1, 2300), (2, 2190), (1, 2101), (4, 2140)]),
            ][turn % 2];
            let case = AttentionCase::new((4, 2), 24, Visible::Causal, &lens);
            all.push(AttentionCase { precision, layout: Layout::Paged(page_size), shared, ..case });
        }
    }
    all
}

/// Every case as it is; every third also in other precisions and layouts, in turn.
fn vary(cases: Vec<AttentionCase>) -> Vec<AttentionCase> {
    let mut all = Vec::new();
    let layouts =
        [Layout::Ragged, Layout::Paged(16), Layout::Paged(32), Layout::Paged(64), Layout::Paged(128)];
    for (index, case) in cases.into_iter().enumerate() {
        let uniform = case.lens.iter().all(|lens| *lens == case.lens[0] && lens.0 > 0);
        let appendable = case.lens.iter().all(|(queries, keys)| queries <= keys);
        for (turn, precision) in Precision::ALL.into_iter().enumerate() {
            let layout = layouts[(index + 2 * turn) % layouts.len()];
            if appendable || !matches!(layout, Layout::Paged(_)) {
                all.push(AttentionCase { precision, layout, ..case.clone() });
            }
            if uniform && turn == index % 3 {
                all.push(AttentionCase { precision, layout: Layout::Dense, ..case.clone() });
            }
        }
        all.push(case);
    }
    all
}
