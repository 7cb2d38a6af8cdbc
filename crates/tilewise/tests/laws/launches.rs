//! What the laws launch, and on what.

use std::ops::Range;
use std::sync::Arc;

use testkit::random::Random;
use testkit::tolerance::Precision;
use tilewise::{
    AttentionParams, AttentionPlan, BatchLayout, DType, Device, Kv, KvCacheConfig, Mask, PageTable, Tensor,
    TokenView,
};

use crate::common::{self, Tested};

pub(crate) const MASKS: [Mask; 3] = [
    Mask::Causal,
    Mask::Window { left: Some(40), right: None, causal: true },
    Mask::Window { left: Some(1030), right: Some(0), causal: false },
];

/// Heads over one KV head, and their elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) qo_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
}

/// With edges everywhere.
pub(crate) const ODD: Shape = Shape { qo_heads: 3, head_dim: 24, value_dim: 16 };

/// As models have it.
const EVEN: Shape = Shape { qo_heads: 2, head_dim: 64, value_dim: 64 };

/// The same, longer.
pub(crate) const LONG: Shape = Shape { qo_heads: 2, head_dim: 128, value_dim: 128 };

/// Heads so long that subgroups share their rows.
const WIDE: [Shape; 2] = [
    Shape { qo_heads: 2, head_dim: 136, value_dim: 200 },
    Shape { qo_heads: 3, head_dim: 264, value_dim: 72 },
];

/// What is launched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    /// `None` lets the rules choose.
    pub(crate) kernel: Option<&'static str>,
    pub(crate) precision: Precision,
    pub(crate) mask: Mask,
    pub(crate) shape: Shape,
}

impl Spec {
    fn params(&self) -> AttentionParams {
        AttentionParams::new(self.shape.qo_heads, 1, self.shape.head_dim)
            .value_dim(self.shape.value_dim)
            .mask(self.mask)
            .dtypes(DType::F32, common::dtype(self.precision))
    }

    /// Sequences of lengths that straddle tiles, blocks and chunks of keys, with none, few and many of them cached.
    pub(crate) fn sequences(&self) -> Vec<Sequence> {
        let lens = [(0, 147), (1000, 1041), (0, 17), (2035, 2057), (120, 131), (1000, 1041), (15, 16)];
        (0..).zip(lens).map(|(seed, (cached, tokens))| Sequence::new(cached, tokens, seed, self)).collect()
    }

    /// Elements of a query token.
    pub(crate) fn q_row(&self) -> usize {
        self.shape.qo_heads * self.shape.head_dim
    }
}

/// Token-major tensors of a sequence; the last `tokens - cached` tokens are asked for.
#[derive(Clone)]
pub(crate) struct Sequence {
    pub(crate) cached: usize,
    pub(crate) tokens: usize,
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Sequence {
    pub(crate) fn new(cached: usize, tokens: usize, seed: u64, spec: &Spec) -> Self {
        let mut random = Random::new(seed);
        let mut rounded = |len| random.normals(len).into_iter().map(|x| spec.precision.round(x)).collect();
        let (k, v) = (rounded(tokens * spec.shape.head_dim), rounded(tokens * spec.shape.value_dim));
        Self { cached, tokens, q: random.normals(tokens * spec.q_row()), k, v }
    }

    /// New tokens in chunks of `size`.
    pub(crate) fn chunks(&self, size: usize) -> Vec<Range<usize>> {
        (self.cached..self.tokens).step_by(size).map(|at| at..(at + size).min(self.tokens)).collect()
    }
}

/// Bits of a row: the outputs of all heads, then their lse.
pub(crate) type Row = Vec<u32>;

/// The kernels of a device, and the choice of its rules.
pub(crate) fn kernels(device: &dyn Device) -> Vec<Option<&'static str>> {
    device.policy().kernels.iter().map(|kernel| Some(kernel.name)).chain([None]).collect()
}

/// Every instruction set of the processor, and every GPU.
pub(crate) fn on_all(run: impl FnMut(&Tested)) {
    common::cpus().iter().chain(common::gpus()).for_each(run);
}

/// Runs a law on a device for every kernel and type of keys; the masks take turns. On a GPU, 16-bit keys come in heads
/// of other shapes too, as kernels for matrix units have more paths for those.
///
/// A processor that plays a GPU spends its time compiling: there the shapes take turns too, and one that plays matrix
/// units, which f32 keys do not reach, gets 16-bit keys only.
pub(crate) fn on(tested: &Tested, kernels: &[Option<&'static str>], law: impl Fn(&Tested, &Spec, &str)) {
    let mut specs = Vec::new();
    for (turn, &kernel) in kernels.iter().enumerate() {
        for (index, precision) in Precision::ALL.into_iter().enumerate() {
            let mask = MASKS[(turn + index) % 3];
            let shapes = match (tested.gpu, tested.software) {
                (true, _) if precision == Precision::F32 && tested.software && tested.matrices => &[][..],
                (true, true) => &[[ODD, EVEN, LONG][(turn + index) % 3]],
                (true, false) if precision != Precision::F32 => &[ODD, EVEN, LONG, WIDE[0], WIDE[1]],
                _ => &[ODD],
            };
            specs.extend(shapes.iter().map(|&shape| Spec { kernel, precision, mask, shape }));
        }
    }
    if tested.gpu {
        println!("{}: {} of {} kinds of launches", tested.name, specs.len(), 11 * kernels.len());
    }
    specs.iter().for_each(|spec| law(tested, spec, &format!("{} {spec:?}", tested.name)));
}

/// Runs a law on every instruction set and GPU with every kernel. A processor that plays a GPU leaves out the choice of
/// the rules, which is one of the kernels.
pub(crate) fn everywhere(law: impl Fn(&Tested, &Spec, &str)) {
    on_all(|tested| {
        let mut kernels = kernels(&*tested.device);
        kernels.retain(|kernel| kernel.is_some() || !tested.software);
        on(tested, &kernels, &law);
    });
}

/// Appends `steps[i][b]` of each sequence to its pages and attends with them, step by step.
pub(crate) fn paged(
    tested: &Tested,
    spec: &Spec,
    sequences: &[Sequence],
    page_size: usize,
    steps: &[Vec<Range<usize>>],
) -> Vec<Vec<Row>> {
    let (device, Shape { qo_heads, head_dim, value_dim }) = (&*tested.device, spec.shape);
    let (indptr, pages) = shuffled_pages(sequences, page_size);
    let config = KvCacheConfig {
        num_layers: 1,
        num_pages: pages.len(),
        page_size,
        num_kv_heads: 1,
        head_dim,
        value_dim,
        dtype: common::dtype(spec.precision),
    };
    let mut cache = device.alloc_kv(&config).unwrap();
    let layer = &mut cache.layers[0];
    let mut step = |ranges: &[Range<usize>], attend: bool, rows: &mut [Vec<Row>]| {
        let table = PageTable { page_size, indptr: indptr.clone(), pages: pages.clone() };
        let kv_len = ranges.iter().map(|range| range.end as u32).collect();
        let layout = BatchLayout::paged(ends(ranges), kv_len, table).unwrap();
        let plan = device.plan_attention(&spec.params(), &Arc::new(layout), spec.kernel).unwrap();
        let k = gather(device, sequences, ranges, head_dim, |s| &s.k);
        let v = gather(device, sequences, ranges, value_dim, |s| &s.v);
        let (k, v) = (TokenView::columns(&k, 0, 1, head_dim), TokenView::columns(&v, 0, 1, value_dim));
        device.append_kv(&plan, k.unwrap(), v.unwrap(), layer).unwrap();
        if attend {
            let q = gather(device, sequences, ranges, qo_heads * head_dim, |s| &s.q);
            let q = TokenView::columns(&q, 0, qo_heads, head_dim).unwrap();
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
pub(crate) fn whole(tested: &Tested, spec: &Spec, sequences: &[Sequence]) -> Vec<Vec<Row>> {
    let ranges = sequences.iter().map(|s| s.cached..s.tokens).collect();
    paged(tested, spec, sequences, 16, &[ranges])
}

/// All new tokens in one launch over ragged keys of the precision.
pub(crate) fn ragged(tested: &Tested, spec: &Spec, sequences: &[Sequence]) -> Vec<Vec<Row>> {
    let (device, Shape { qo_heads, head_dim, value_dim }) = (&*tested.device, spec.shape);
    let queries: Vec<Range<usize>> = sequences.iter().map(|s| s.cached..s.tokens).collect();
    let kv_len: Vec<u32> = sequences.iter().map(|s| s.tokens as u32).collect();
    let layout = Arc::new(BatchLayout::ragged(ends(&queries), kv_len).unwrap());
    let plan = device.plan_attention(&spec.params(), &layout, spec.kernel).unwrap();
    let total: usize = sequences.iter().map(|s| s.tokens).sum();
    let all = |of: fn(&Sequence) -> &[f32]| sequences.iter().flat_map(of).copied().collect::<Vec<f32>>();
    let k = common::upload(device, &[total, 1, head_dim], &all(|s| &s.k), spec.precision);
    let v = common::upload(device, &[total, 1, value_dim], &all(|s| &s.v), spec.precision);
    let q = gather(device, sequences, &queries, qo_heads * head_dim, |s| &s.q);
    let q = TokenView::columns(&q, 0, qo_heads, head_dim).unwrap();
    let kv = Kv::Contiguous { keys: TokenView::ragged(&k).unwrap(), values: TokenView::ragged(&v).unwrap() };
    let mut rows = vec![Vec::new(); sequences.len()];
    launch(device, &plan, q, kv, &queries, &mut rows);
    rows
}

/// Rows of queries of a sequence without a key, which is beside one with keys.
pub(crate) fn keyless(tested: &Tested, spec: &Spec, queries: usize) -> Vec<Row> {
    let (device, Shape { qo_heads, head_dim, value_dim }) = (&*tested.device, spec.shape);
    let other = Sequence::new(0, 5, 3, spec);
    let ranges = [0..queries, 0..other.tokens];
    let layout = Arc::new(BatchLayout::ragged(ends(&ranges), vec![0, other.tokens as u32]).unwrap());
    let plan = device.plan_attention(&spec.params(), &layout, spec.kernel).unwrap();
    let k = common::upload(device, &[other.tokens, 1, head_dim], &other.k, spec.precision);
    let v = common::upload(device, &[other.tokens, 1, value_dim], &other.v, spec.precision);
    let width = qo_heads * head_dim;
    let q = Random::new(4).normals((queries + other.tokens) * width);
    let q = common::upload(device, &[queries + other.tokens, width], &q, Precision::F32);
    let q = TokenView::columns(&q, 0, qo_heads, head_dim).unwrap();
    let kv = Kv::Contiguous { keys: TokenView::ragged(&k).unwrap(), values: TokenView::ragged(&v).unwrap() };
    let mut rows = vec![Vec::new(); 2];
    launch(device, &plan, q, kv, &ranges, &mut rows);
    rows.remove(0)
}

/// [`ragged`] over dense views `[batch, heads, tokens, dim]` of sequences of equal lengths.
pub(crate) fn dense(tested: &Tested, spec: &Spec, sequences: &[Sequence]) -> Vec<Vec<Row>> {
    let (device, Shape { qo_heads, head_dim, value_dim }) = (&*tested.device, spec.shape);
    let (batch, keys) = (sequences.len(), sequences[0].tokens);
    let queries = keys - sequences[0].cached;
    let layout = Arc::new(BatchLayout::dense(batch, queries, keys).unwrap());
    let plan = device.plan_attention(&spec.params(), &layout, spec.kernel).unwrap();
    let mut q = Vec::new();
    for s in sequences {
        for head in 0..qo_heads {
            for token in s.cached..s.tokens {
                q.extend_from_slice(&s.q[(token * qo_heads + head) * head_dim..][..head_dim]);
            }
        }
    }
    let all = |of: fn(&Sequence) -> &[f32]| sequences.iter().flat_map(of).copied().collect::<Vec<f32>>();
    let q = common::upload(device, &[batch, qo_heads, queries, head_dim], &q, Precision::F32);
    let k = common::upload(device, &[batch, 1, keys, head_dim], &all(|s| &s.k), spec.precision);
    let v = common::upload(device, &[batch, 1, keys, value_dim], &all(|s| &s.v), spec.precision);
    let mut out = device.alloc(&[batch, qo_heads, queries, value_dim], DType::F32).unwrap();
    let mut lse = device.alloc(&[batch, qo_heads, queries], DType::F32).unwrap();
    let view = |tensor| TokenView::dense(tensor).unwrap();
    let kv = Kv::Contiguous { keys: view(&k), values: view(&v) };
    device.attention(&plan, view(&q), kv, &mut out, Some(&mut lse)).unwrap();
    let (out, lse) = (device.download(&out).unwrap(), device.download(&lse).unwrap());
    let row = |b: usize, query: usize| {
        let place = |head: usize| (b * qo_heads + head) * queries + query;
        let outs = (0..qo_heads).flat_map(|head| out[place(head) * value_dim..][..value_dim].to_vec());
        outs.chain((0..qo_heads).map(|head| lse[place(head)])).map(f32::to_bits).collect()
    };
    (0..batch).map(|b| (0..queries).map(|query| row(b, query)).collect()).collect()
}

/// Attends, and adds the rows of each sequence.
pub(crate) fn launch(
    device: &dyn Device,
    plan: &AttentionPlan,
    q: TokenView<'_>,
    kv: Kv<'_>,
    ranges: &[Range<usize>],
    rows: &mut [Vec<Row>],
) {
    let (qo_heads, value_dim) = (plan.params().num_qo_heads, plan.params().value_dim);
    let total = plan.layout().total_queries();
    let unwritten = vec![f32::NAN; total * qo_heads * value_dim];
    let mut out = common::upload(device, &[total, qo_heads * value_dim], &unwritten, Precision::F32);
    let mut lse = device.alloc(&[total, qo_heads], DType::F32).unwrap();
    device.attention(plan, q, kv, &mut out, Some(&mut lse)).unwrap();
    let (out, lse) = (device.download(&out).unwrap(), device.download(&lse).unwrap());
    let mut all = out.chunks(qo_heads * value_dim).zip(lse.chunks(qo_heads));
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
pub(crate) fn assert_rows(got: &[Vec<Row>], want: &[Vec<Row>], what: &str) {
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
