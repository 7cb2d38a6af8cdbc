//! Laws of attention, compared in bits: whatever surrounds a query, its row is the same.
//!
//! Every law runs on every instruction set, kernel and type of keys; the masks take turns. Lengths straddle vectors
//! (16), blocks (128) and chunks (1024) of keys.
#![allow(missing_docs)]

mod common;

use std::ops::Range;
use std::sync::Arc;

use testkit::random::Random;
use testkit::tolerance::Precision;
use tilewise::backend::cpu::CpuDevice;
use tilewise::{
    AttentionParams, AttentionPlan, BatchLayout, Device, Kv, KvCacheConfig, Mask, PageTable, SoftmaxState,
    Tensor, TokenView,
};

const QO_HEADS: usize = 3;
const HEAD_DIM: usize = 24;
const VALUE_DIM: usize = 16;

const MASKS: [Mask; 3] = [
    Mask::Causal,
    Mask::Window { left: Some(40), right: None, causal: true },
    Mask::Window { left: Some(1030), right: Some(0), causal: false },
];

const PAGE_SIZES: [usize; 4] = [16, 32, 64, 128];

/// What is launched.
#[derive(Debug, Clone, Copy)]
struct Spec {
    /// `None` lets the rules choose.
    kernel: Option<&'static str>,
    precision: Precision,
    mask: Mask,
}

impl Spec {
    fn params(&self) -> AttentionParams {
        AttentionParams::new(QO_HEADS, 1, HEAD_DIM)
            .value_dim(VALUE_DIM)
            .mask(self.mask)
            .dtypes(tilewise::DType::F32, common::dtype(self.precision))
    }
}

/// Token-major tensors of a sequence; the last `tokens - cached` tokens are asked for.
#[derive(Clone)]
struct Sequence {
    cached: usize,
    tokens: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Sequence {
    fn new(cached: usize, tokens: usize, seed: u64, precision: Precision) -> Self {
        let mut random = Random::new(seed);
        let mut rounded = |len| random.normals(len).into_iter().map(|x| precision.round(x)).collect();
        let (k, v) = (rounded(tokens * HEAD_DIM), rounded(tokens * VALUE_DIM));
        Self { cached, tokens, q: random.normals(tokens * QO_HEADS * HEAD_DIM), k, v }
    }

    /// New tokens in chunks of `size`.
    fn chunks(&self, size: usize) -> Vec<Range<usize>> {
        (self.cached..self.tokens).step_by(size).map(|at| at..(at + size).min(self.tokens)).collect()
    }
}

fn sequences(precision: Precision) -> Vec<Sequence> {
    let lens = [(0, 147), (1000, 1041), (0, 17), (2035, 2057), (120, 131), (1000, 1041), (15, 16)];
    lens.iter()
        .enumerate()
        .map(|(seed, lens)| Sequence::new(lens.0, lens.1, seed as u64, precision))
        .collect()
}

/// Bits of a row: the outputs of all heads, then their lse.
type Row = Vec<u32>;

/// Runs a law for every instruction set, kernel and precision.
fn everywhere(kernels: &[Option<&'static str>], law: impl Fn(&dyn Device, &Spec, &str)) {
    for set in CpuDevice::instruction_sets() {
        let device = CpuDevice::with_instruction_set(Some(2), set).unwrap();
        for (turn, &kernel) in kernels.iter().enumerate() {
            for (index, precision) in Precision::ALL.into_iter().enumerate() {
                let spec = Spec { kernel, precision, mask: MASKS[(turn + index) % 3] };
                law(&device, &spec, &format!("{set} {spec:?}"));
            }
        }
    }
}

const KERNELS: [Option<&str>; 4] = [Some("prefill"), Some("decode-split-kv"), Some("reference"), None];

/// Appends `steps[i][b]` of each sequence to its pages and attends with them, step by step.
fn paged(
    device: &dyn Device,
    spec: &Spec,
    sequences: &[Sequence],
    page_size: usize,
    steps: &[Vec<Range<usize>>],
) -> Vec<Vec<Row>> {
    let (indptr, pages) = shuffled_pages(sequences, page_size);
    let config = KvCacheConfig {
        num_layers: 1,
        num_pages: pages.len(),
        page_size,
        num_kv_heads: 1,
        head_dim: HEAD_DIM,
        value_dim: VALUE_DIM,
        dtype: common::dtype(spec.precision),
    };
    let mut cache = device.alloc_kv(&config).unwrap();
    let layer = &mut cache.layers[0];
    let mut step = |ranges: &[Range<usize>], attend: bool, rows: &mut [Vec<Row>]| {
        let table = PageTable { page_size, indptr: indptr.clone(), pages: pages.clone() };
        let kv_len = ranges.iter().map(|range| range.end as u32).collect();
        let layout = BatchLayout::paged(ends(ranges), kv_len, table).unwrap();
        let plan = device.plan_attention(&spec.params(), &Arc::new(layout), spec.kernel).unwrap();
        let k = gather(device, sequences, ranges, HEAD_DIM, |s| &s.k);
        let v = gather(device, sequences, ranges, VALUE_DIM, |s| &s.v);
        let (k, v) = (TokenView::columns(&k, 0, 1, HEAD_DIM), TokenView::columns(&v, 0, 1, VALUE_DIM));
        device.append_kv(&plan, k.unwrap(), v.unwrap(), layer).unwrap();
        if attend {
            let q = gather(device, sequences, ranges, QO_HEADS * HEAD_DIM, |s| &s.q);
            let q = TokenView::columns(&q, 0, QO_HEADS, HEAD_DIM).unwrap();
            launch(device, &plan, q, Kv::Paged(layer), ranges, rows);
        }
    };
    let cached: Vec<Range<usize>> = sequences.iter().map(|s| 0..s.cached).collect();
    let mut rows = vec![Vec::new(); sequences.len()];
    step(&cached, false, &mut rows);
    steps.iter().for_each(|ranges| step(ranges, true, &mut rows));
    rows
}

/// All new tokens in one launch over pages of 16.
fn whole(device: &dyn Device, spec: &Spec, sequences: &[Sequence]) -> Vec<Vec<Row>> {
    let ranges = sequences.iter().map(|s| s.cached..s.tokens).collect();
    paged(device, spec, sequences, 16, &[ranges])
}

/// All new tokens in one launch over ragged keys of the precision.
fn ragged(device: &dyn Device, spec: &Spec, sequences: &[Sequence]) -> Vec<Vec<Row>> {
    let queries: Vec<Range<usize>> = sequences.iter().map(|s| s.cached..s.tokens).collect();
    let kv_len: Vec<u32> = sequences.iter().map(|s| s.tokens as u32).collect();
    let layout = Arc::new(BatchLayout::ragged(ends(&queries), kv_len).unwrap());
    let plan = device.plan_attention(&spec.params(), &layout, spec.kernel).unwrap();
    let total: usize = sequences.iter().map(|s| s.tokens).sum();
    let all = |of: fn(&Sequence) -> &[f32]| sequences.iter().flat_map(of).copied().collect::<Vec<f32>>();
    let k = common::upload(device, &[total, 1, HEAD_DIM], &all(|s| &s.k), spec.precision);
    let v = common::upload(device, &[total, 1, VALUE_DIM], &all(|s| &s.v), spec.precision);
    let q = gather(device, sequences, &queries, QO_HEADS * HEAD_DIM, |s| &s.q);
    let q = TokenView::columns(&q, 0, QO_HEADS, HEAD_DIM).unwrap();
    let kv = Kv::Contiguous { keys: TokenView::ragged(&k).unwrap(), values: TokenView::ragged(&v).unwrap() };
    let mut rows = vec![Vec::new(); sequences.len()];
    launch(device, &plan, q, kv, &queries, &mut rows);
    rows
}

/// The same over dense views `[batch, heads, tokens, dim]` of sequences of equal lengths.
fn dense(device: &dyn Device, spec: &Spec, sequences: &[Sequence]) -> Vec<Vec<Row>> {
    let (batch, keys) = (sequences.len(), sequences[0].tokens);
    let queries = keys - sequences[0].cached;
    let layout = Arc::new(BatchLayout::dense(batch, queries, keys).unwrap());
    let plan = device.plan_attention(&spec.params(), &layout, spec.kernel).unwrap();
    let mut q = Vec::new();
    for s in sequences {
        for head in 0..QO_HEADS {
            for token in s.cached..s.tokens {
                q.extend_from_slice(&s.q[(token * QO_HEADS + head) * HEAD_DIM..][..HEAD_DIM]);
            }
        }
    }
    let all = |of: fn(&Sequence) -> &[f32]| sequences.iter().flat_map(of).copied().collect::<Vec<f32>>();
    let q = common::upload(device, &[batch, QO_HEADS, queries, HEAD_DIM], &q, Precision::F32);
    let k = common::upload(device, &[batch, 1, keys, HEAD_DIM], &all(|s| &s.k), spec.precision);
    let v = common::upload(device, &[batch, 1, keys, VALUE_DIM], &all(|s| &s.v), spec.precision);
    let mut out = device.alloc(&[batch, QO_HEADS, queries, VALUE_DIM], tilewise::DType::F32).unwrap();
    let mut lse = device.alloc(&[batch, QO_HEADS, queries], tilewise::DType::F32).unwrap();
    let view = |tensor| TokenView::dense(tensor).unwrap();
    let kv = Kv::Contiguous { keys: view(&k), values: view(&v) };
    device.attention(&plan, view(&q), kv, &mut out, Some(&mut lse)).unwrap();
    let (out, lse) = (device.download(&out).unwrap(), device.download(&lse).unwrap());
    let row = |b: usize, query: usize| {
        let place = |head: usize| (b * QO_HEADS + head) * queries + query;
        let outs = (0..QO_HEADS).flat_map(|head| out[place(head) * VALUE_DIM..][..VALUE_DIM].to_vec());
        outs.chain((0..QO_HEADS).map(|head| lse[place(head)])).map(f32::to_bits).collect()
    };
    (0..batch).map(|b| (0..queries).map(|query| row(b, query)).collect()).collect()
}

fn launch(
    device: &dyn Device,
    plan: &AttentionPlan,
    q: TokenView<'_>,
    kv: Kv<'_>,
    ranges: &[Range<usize>],
    rows: &mut [Vec<Row>],
) {
    let total = plan.layout().total_queries();
    let unwritten = vec![f32::NAN; total * QO_HEADS * VALUE_DIM];
    let mut out = common::upload(device, &[total, QO_HEADS * VALUE_DIM], &unwritten, Precision::F32);
    let mut lse = device.alloc(&[total, QO_HEADS], tilewise::DType::F32).unwrap();
    device.attention(plan, q, kv, &mut out, Some(&mut lse)).unwrap();
    let (out, lse) = (device.download(&out).unwrap(), device.download(&lse).unwrap());
    let mut all = out.chunks(QO_HEADS * VALUE_DIM).zip(lse.chunks(QO_HEADS));
    for (rows, range) in rows.iter_mut().zip(ranges) {
        let own = all.by_ref().take(range.len());
        rows.extend(own.map(|(out, lse)| out.iter().chain(lse).map(|x| x.to_bits()).collect::<Row>()));
    }
}

fn ends(ranges: &[Range<usize>]) -> Vec<u32> {
    let mut ends = vec![0];
    ranges.iter().for_each(|range| ends.push(ends[ends.len() - 1] + range.len() as u32));
    ends
}

fn gather(
    device: &dyn Device,
    sequences: &[Sequence],
    ranges: &[Range<usize>],
    width: usize,
    of: fn(&Sequence) -> &[f32],
) -> Tensor {
    let rows = sequences.iter().zip(ranges);
    let values: Vec<f32> =
        rows.flat_map(|(s, range)| of(s)[range.start * width..range.end * width].to_vec()).collect();
    common::upload(device, &[values.len() / width, width], &values, Precision::F32)
}

/// A page table in which no sequence's pages are in order.
fn shuffled_pages(sequences: &[Sequence], page_size: usize) -> (Vec<u32>, Vec<u32>) {
    let needed: Vec<Range<usize>> = sequences.iter().map(|s| 0..s.tokens.div_ceil(page_size)).collect();
    let indptr = ends(&needed);
    let mut pages: Vec<u32> = (0..indptr[indptr.len() - 1]).collect();
    let mut random = Random::new(page_size as u64);
    (1..pages.len()).rev().for_each(|i| pages.swap(i, random.below(i + 1)));
    (indptr, pages)
}

/// Fails with the first row that differs.
fn assert_rows(got: &[Vec<Row>], want: &[Vec<Row>], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: sequences");
    for (sequence, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.len(), want.len(), "{what}: rows of sequence {sequence}");
        for (row, (got, want)) in got.iter().zip(want).enumerate() {
            if let Some(at) = (0..want.len()).find(|&at| got[at] != want[at]) {
                let (got, want) = (f32::from_bits(got[at]), f32::from_bits(want[at]));
                panic!("{what}: sequence {sequence} row {row} element {at}: {got:?}, not {want:?}");
            }
        }
    }
}

#[test]
fn pages_of_any_size_and_order_give_the_bits_of_contiguous_keys() {
    everywhere(&KERNELS, |device, spec, what| {
        let sequences = sequences(spec.precision);
        let want = ragged(device, spec, &sequences);
        let ranges: Vec<Range<usize>> = sequences.iter().map(|s| s.cached..s.tokens).collect();
        for page_size in PAGE_SIZES {
            let got = paged(device, spec, &sequences, page_size, std::slice::from_ref(&ranges));
            assert_rows(&got, &want, &format!("{what} pages of {page_size}"));
        }
    });
}

#[test]
fn dense_views_give_the_bits_of_ragged_ones() {
    everywhere(&KERNELS, |device, spec, what| {
        let all = sequences(spec.precision);
        let pair = [all[1].clone(), all[5].clone()];
        for sequences in [&pair[..], &all[..1], &all[2..3]] {
            assert_rows(&dense(device, spec, sequences), &ragged(device, spec, sequences), what);
        }
    });
}

#[test]
fn a_batch_is_its_sequences_one_by_one() {
    everywhere(&KERNELS, |device, spec, what| {
        let sequences = sequences(spec.precision);
        let want = whole(device, spec, &sequences);
        for (index, own) in sequences.iter().enumerate() {
            let got = whole(device, spec, std::slice::from_ref(own));
            assert_rows(&got, &want[index..=index], &format!("{what} sequence {index} alone"));
        }
    });
}

#[test]
fn chunks_of_any_size_and_single_tokens_give_the_bits_of_the_whole() {
    everywhere(&KERNELS, |device, spec, what| {
        let sequences = sequences(spec.precision);
        let want = whole(device, spec, &sequences);
        for size in [1, 5, 16, 33, 128] {
            let chunks: Vec<Vec<Range<usize>>> = sequences.iter().map(|s| s.chunks(size)).collect();
            let steps = chunks.iter().map(Vec::len).max().unwrap();
            // A sequence that is done takes no part, but keeps its place in the batch.
            let step = |i: usize| {
                let range = |(s, chunks): (&Sequence, &Vec<Range<usize>>)| {
                    chunks.get(i).cloned().unwrap_or(s.tokens..s.tokens)
                };
                sequences.iter().zip(&chunks).map(range).collect()
            };
            let steps: Vec<Vec<Range<usize>>> = (0..steps).map(step).collect();
            let got = paged(device, spec, &sequences, 32, &steps);
            assert_rows(&got, &want, &format!("{what} chunks of {size}"));
        }
    });
}

#[test]
fn prefill_and_decode_give_the_same_bits() {
    everywhere(&[Some("prefill")], |device, spec, what| {
        let sequences = sequences(spec.precision);
        let want = whole(device, spec, &sequences);
        for kernel in [Some("decode-split-kv"), None] {
            assert_rows(&whole(device, &Spec { kernel, ..*spec }, &sequences), &want, what);
        }
    });
}

/// Single queries over `heads` KV heads, the sequences of `lens` keys in one launch: the bits of each (sequence,
/// query head). Keys of KV head `h` of sequence `s` are the same whatever is launched with them.
fn single_queries(
    device: &dyn Device,
    precision: Precision,
    (sequences, heads): (Range<usize>, Range<usize>),
    len: usize,
    page_size: Option<usize>,
) -> Vec<Row> {
    let (batch, kv_heads) = (sequences.len(), heads.len());
    let normals = |salt: usize, dim: usize, tokens: usize| -> Vec<f32> {
        let of =
            |s: usize, head: usize| Random::new((salt * 1000 + s * 10 + head) as u64).normals(tokens * dim);
        let mut all = Vec::new();
        for s in sequences.clone() {
            let own: Vec<Vec<f32>> = heads.clone().map(|head| of(s, head)).collect();
            for token in 0..tokens {
                own.iter().for_each(|head| all.extend_from_slice(&head[token * dim..][..dim]));
            }
        }
        all
    };
    let q = common::upload(
        device,
        &[batch, 2 * kv_heads, HEAD_DIM],
        &normals(1, 2 * HEAD_DIM, 1),
        Precision::F32,
    );
    let of_keys = if page_size.is_some() { Precision::F32 } else { precision };
    let k = common::upload(device, &[batch * len, kv_heads, HEAD_DIM], &normals(2, HEAD_DIM, len), of_keys);
    let v = common::upload(device, &[batch * len, kv_heads, VALUE_DIM], &normals(3, VALUE_DIM, len), of_keys);
    let (k, v) = (TokenView::ragged(&k).unwrap(), TokenView::ragged(&v).unwrap());
    let params = AttentionParams::new(2 * kv_heads, kv_heads, HEAD_DIM)
        .value_dim(VALUE_DIM)
        .dtypes(tilewise::DType::F32, common::dtype(precision));
    let (kv_len, each) = (vec![len as u32; batch], |n: usize| (0..=batch).map(|b| (b * n) as u32).collect());
    let mut out = device.alloc(&[batch, 2 * kv_heads, VALUE_DIM], tilewise::DType::F32).unwrap();
    let mut attend = |layout: BatchLayout, kv: Kv<'_>| {
        let plan = device.plan_attention(&params, &Arc::new(layout), Some("decode-split-kv")).unwrap();
        device.attention(&plan, TokenView::ragged(&q).unwrap(), kv, &mut out, None).unwrap();
        plan.work().iter().map(|item| item.kv_heads.len()).max().unwrap_or(0)
    };
    let together = if let Some(page_size) = page_size {
        let pages = len.div_ceil(page_size);
        let table =
            PageTable { page_size, indptr: each(pages), pages: (0..(batch * pages) as u32).rev().collect() };
        let config = KvCacheConfig {
            num_layers: 1,
            num_pages: batch * pages,
            page_size,
            num_kv_heads: kv_heads,
            head_dim: HEAD_DIM,
            value_dim: VALUE_DIM,
            dtype: common::dtype(precision),
        };
        let mut cache = device.alloc_kv(&config).unwrap();
        let layout = BatchLayout::paged(each(len), kv_len.clone(), table.clone()).unwrap();
        let fill = device.plan_attention(&params, &Arc::new(layout), None).unwrap();
        device.append_kv(&fill, k, v, &mut cache.layers[0]).unwrap();
        attend(BatchLayout::paged(each(1), kv_len, table).unwrap(), Kv::Paged(&cache.layers[0]))
    } else {
        attend(BatchLayout::ragged(each(1), kv_len).unwrap(), Kv::Contiguous { keys: k, values: v })
    };
    assert_eq!(together, if batch == 1 { 1 } else { 2 }, "heads that share an item");
    let out = device.download(&out).unwrap();
    out.chunks(2 * VALUE_DIM).map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn a_query_that_is_not_a_number_has_no_answer_that_is() {
    everywhere(&KERNELS, |device, spec, what| {
        let mut sequences = sequences(spec.precision);
        sequences[3].q[2040 * QO_HEADS * HEAD_DIM] = f32::NAN;
        let rows = whole(device, spec, &sequences);
        let row = rows[3][2040 - 2035].iter().map(|bits| f32::from_bits(*bits)).collect::<Vec<f32>>();
        let (out, lse) = row.split_at(QO_HEADS * VALUE_DIM);
        assert!(out[..VALUE_DIM].iter().all(|x| x.is_nan()) && lse[0].is_nan(), "{what}: {out:?} {lse:?}");
        assert!(out[VALUE_DIM..].iter().chain(&lse[1..]).all(|x| x.is_finite()), "{what}: another head");
    });
}

#[test]
fn heads_that_share_an_item_give_the_bits_of_each_alone() {
    const HEADS: usize = 3;
    for set in CpuDevice::instruction_sets() {
        let device = CpuDevice::with_instruction_set(Some(2), set).unwrap();
        // Chunks of keys x sequences x heads are 72 units: enough for two heads to an item, the third alone.
        for ((len, batch), precision) in
            [(40, 24), (1100, 12)].into_iter().zip([Precision::Bf16, Precision::F32])
        {
            for page_size in [None, Some(16), Some(64)] {
                let all = single_queries(&device, precision, (0..batch, 0..HEADS), len, page_size);
                for s in [0, 1, batch - 1] {
                    for head in 0..HEADS {
                        let alone = (s..s + 1, head..head + 1);
                        let alone = single_queries(&device, precision, alone, len, page_size);
                        assert_eq!(all[s * HEADS + head], alone[0], "{set} {page_size:?} {s} {head}");
                    }
                }
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for (turn, kernel) in KERNELS.into_iter().enumerate() {
        let spec = Spec { kernel, precision: Precision::ALL[turn % 3], mask: MASKS[turn % 3] };
        let sequences = sequences(spec.precision);
        let run = |threads| whole(&CpuDevice::new(Some(threads)).unwrap(), &spec, &sequences);
        let want = run(1);
        for threads in [2, 3, 5] {
            assert_rows(&run(threads), &want, &format!("{spec:?} on {threads} threads"));
        }
    }
}

#[test]
fn any_instruction_set_gives_the_same_bits() {
    let scalar = CpuDevice::with_instruction_set(Some(2), "scalar").unwrap();
    everywhere(&KERNELS[..2], |device, spec, what| {
        for mask in MASKS {
            let spec = Spec { mask, ..*spec };
            let sequences = sequences(spec.precision);
            let want = whole(&scalar, &spec, &sequences[..3]);
            assert_rows(&whole(device, &spec, &sequences[..3]), &want, &format!("{what} {mask:?}"));
        }
    });
}

#[test]
fn keys_that_a_query_does_not_see_change_no_bit_of_its_row() {
    everywhere(&KERNELS, |device, spec, what| {
        for (cached, tokens, from) in [(0, 150, 70), (1000, 1060, 1021), (1000, 1060, 1030)] {
            let clean = Sequence::new(cached, tokens, 7, spec.precision);
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                // Future keys, and future queries.
                let mut later = clean.clone();
                later.k[from * HEAD_DIM..].fill(poison);
                later.v[from * VALUE_DIM..].fill(poison);
                later.q[from * QO_HEADS * HEAD_DIM..].fill(poison);
                let rows = 0..from - cached;
                assert_same_rows(device, spec, (&clean, &later), rows, &format!("{what} later {poison}"));
                // Keys that the window has left behind.
                let Mask::Window { left: Some(left), .. } = spec.mask else { continue };
                let mut earlier = clean.clone();
                earlier.k[..(from - left.min(from as u32) as usize) * HEAD_DIM].fill(poison);
                earlier.v[..(from - left.min(from as u32) as usize) * VALUE_DIM].fill(poison);
                let rows = from - cached..tokens - cached;
                assert_same_rows(device, spec, (&clean, &earlier), rows, &format!("{what} left {poison}"));
            }
        }
    });
}

fn assert_same_rows(
    device: &dyn Device,
    spec: &Spec,
    (clean, poisoned): (&Sequence, &Sequence),
    rows: Range<usize>,
    what: &str,
) {
    for run in [ragged, whole] {
        let want = run(device, spec, std::slice::from_ref(clean)).remove(0);
        let got = run(device, spec, std::slice::from_ref(poisoned)).remove(0);
        assert_rows(&[got[rows.clone()].to_vec()], &[want[rows.clone()].to_vec()], what);
    }
}

/// A state as a kernel might leave it.
fn state(random: &mut Random) -> SoftmaxState {
    let max = random.normal() * 10.0;
    SoftmaxState { max, sum: random.normal().abs() + 1.0, out: random.normals(5) }
}

#[test]
fn merge_is_associative_and_commutative_up_to_rounding() {
    let mut random = Random::new(1);
    let merged = |a: &SoftmaxState, b: &SoftmaxState| {
        let mut both = a.clone();
        both.merge(b);
        both
    };
    for _ in 0..1000 {
        let (a, b, c) = (state(&mut random), state(&mut random), state(&mut random));
        let left = merged(&merged(&a, &b), &c);
        for other in [merged(&a, &merged(&b, &c)), merged(&merged(&c, &b), &a)] {
            assert_eq!(left.max, other.max);
            let pairs = left.finish().into_iter().zip(other.finish());
            for (x, y) in pairs.chain([(left.lse(), other.lse())]) {
                assert!((x - y).abs() <= 4e-6 * x.abs().max(1.0), "{x} and {y} of {a:?} {b:?} {c:?}");
            }
        }
    }
}

#[test]
fn an_empty_state_is_the_identity_of_merge() {
    let mut random = Random::new(2);
    for _ in 0..100 {
        let own = state(&mut random);
        let (mut left, mut right) = (SoftmaxState::empty(5), own.clone());
        left.merge(&own);
        right.merge(&SoftmaxState::empty(5));
        assert_eq!((&left, &right), (&own, &own));
    }
    let mut empty = SoftmaxState::empty(5);
    empty.merge(&SoftmaxState::empty(5));
    assert_eq!((empty.finish(), empty.lse()), (vec![0.0; 5], f32::NEG_INFINITY));
}
