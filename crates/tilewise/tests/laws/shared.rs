//! Chunks of keys that several sequences have in the same pages: the plan reads them once, and no bit changes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use testkit::random::Random;
use testkit::tolerance::Precision;
use tilewise::{
    AttentionParams, BatchLayout, DType, Device, Kv, KvCache, KvCacheConfig, Mask, PageTable, TokenView,
};

use crate::common::{self, Tested};
use crate::launches::{Row, assert_rows, launch, on_all};

const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 24;
const VALUE_DIM: usize = 16;

/// The last one hides the first chunk from sequences of two.
const MASKS: [Mask; 3] =
    [Mask::Causal, Mask::Full, Mask::Window { left: Some(1500), right: None, causal: true }];

/// What is launched.
#[derive(Debug, Clone, Copy)]
struct Spec {
    precision: Precision,
    page_size: usize,
    /// Query heads per KV head.
    group: usize,
    mask: Mask,
    /// `None` lets the rules choose.
    kernel: Option<&'static str>,
    /// Queries as `[batch, heads, tokens, head_dim]`: all sequences then have as many.
    dense: bool,
}

impl Spec {
    /// Every precision with every size of pages in twelve turns; the rest takes turns too.
    fn turn(turn: usize) -> Self {
        Self {
            precision: Precision::ALL[turn % 3],
            page_size: [16, 32, 64, 128][turn % 4],
            group: [1, 2, 4][(turn / 2) % 3],
            mask: MASKS[(turn / 4 + turn) % 3],
            kernel: [Some("decode-split-kv"), None][(turn / 3) % 2],
            dense: false,
        }
    }

    fn params(&self) -> AttentionParams {
        AttentionParams::new(KV_HEADS * self.group, KV_HEADS, HEAD_DIM)
            .value_dim(VALUE_DIM)
            .mask(self.mask)
            .dtypes(DType::F32, common::dtype(self.precision))
    }

    fn q_row(&self) -> usize {
        KV_HEADS * self.group * HEAD_DIM
    }
}

/// A sequence, whose first tokens are those of its family.
#[derive(Debug, Clone)]
struct Sequence {
    seed: u64,
    family: u64,
    prefix: usize,
    tokens: usize,
    queries: usize,
}

impl Sequence {
    /// Keys or values, token by token.
    fn vectors(&self, salt: u64, width: usize) -> Vec<f32> {
        let of = |seed: u64, len: usize| Random::new(salt << 32 | seed).normals(len);
        let mut all = of(self.family, self.prefix * width);
        all.extend(of(1000 + self.seed, (self.tokens - self.prefix) * width));
        all
    }

    fn queries(&self, spec: &Spec) -> Vec<f32> {
        Random::new(7 << 32 | self.seed).normals(self.queries * spec.q_row())
    }
}

/// Sequences that share one chunk, or two and a part, and others beside them. `many` of them verify drafts: with four
/// heads to a group those are more rows than an item has.
fn batch(many: usize) -> Vec<Sequence> {
    let mut all = Vec::new();
    let mut add = |family, prefix, tokens, queries| {
        let seed = all.len() as u64;
        all.push(Sequence { seed, family, prefix, tokens, queries });
    };
    // Part of the second chunk is shared too, and read by each.
    (0..many).for_each(|i| add(0, 1100, 1130 + 7 * i, 1 + i % 4));
    // Two chunks and a part: the first is also that of those above, whose families part later.
    (0..3).for_each(|i| add(0, 2100, 2150 + i, 1 + i));
    // The last key of the first of these is the last of a chunk: it finishes its rows, and others read what it writes.
    [1024, 1060, 1200].into_iter().for_each(|tokens| add(1, 1024, tokens, 1));
    // The last query of each is the last that sees the first key under the third mask.
    (0..4).for_each(|i| add(3, 1024, 1501, 1 + i % 2));
    // A chunk of a prompt, a sequence that is short, and one that waits.
    add(0, 1024, 1224, 100);
    add(2, 0, 17, 3);
    add(0, 1100, 1150, 0);
    all
}

/// Pages in no order: whole ones of a prefix are the family's if they are `shared`.
fn page_table(sequences: &[Sequence], page_size: usize, shared: bool) -> (PageTable, usize) {
    let num_pages = sequences.iter().map(|own| own.tokens.div_ceil(page_size)).sum();
    let mut free: Vec<u32> = (0..num_pages as u32).collect();
    let mut random = Random::new(page_size as u64);
    (1..free.len()).rev().for_each(|i| free.swap(i, random.below(i + 1)));
    let mut families: HashMap<(u64, usize), u32> = HashMap::new();
    let mut table = PageTable { page_size, indptr: vec![0], pages: Vec::new() };
    for own in sequences {
        for page in 0..own.tokens.div_ceil(page_size) {
            let mut take = || free.pop().unwrap();
            let of_family = shared && (page + 1) * page_size <= own.prefix;
            table.pages.push(if of_family {
                *families.entry((own.family, page)).or_insert_with(take)
            } else {
                take()
            });
        }
        table.indptr.push(table.pages.len() as u32);
    }
    (table, num_pages)
}

/// A cache with the keys and values of all sequences, each appended alone.
fn fill(
    device: &dyn Device,
    spec: &Spec,
    sequences: &[Sequence],
    (table, num_pages): (&PageTable, usize),
) -> KvCache {
    let config = KvCacheConfig {
        num_layers: 1,
        num_pages,
        page_size: spec.page_size,
        num_kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        value_dim: VALUE_DIM,
        dtype: common::dtype(spec.precision),
    };
    let mut cache = device.alloc_kv(&config).unwrap();
    for (index, own) in sequences.iter().enumerate() {
        let pages = &table.pages[table.indptr[index] as usize..table.indptr[index + 1] as usize];
        let (page_size, tokens) = (spec.page_size, own.tokens as u32);
        let table = PageTable { page_size, indptr: vec![0, pages.len() as u32], pages: pages.to_vec() };
        let layout = BatchLayout::paged(vec![0, tokens], vec![tokens], table).unwrap();
        let plan = device.plan_attention(&spec.params(), &Arc::new(layout), None).unwrap();
        let upload = |salt, dim| {
            let vectors = own.vectors(salt, KV_HEADS * dim);
            common::upload(device, &[own.tokens, KV_HEADS, dim], &vectors, Precision::F32)
        };
        let (k, v) = (upload(1, HEAD_DIM), upload(2, VALUE_DIM));
        let (k, v) = (TokenView::ragged(&k).unwrap(), TokenView::ragged(&v).unwrap());
        device.append_kv(&plan, k, v, &mut cache.layers[0]).unwrap();
    }
    cache
}

/// The rows of each sequence, and how many joint items the plan has.
fn attend(tested: &Tested, spec: &Spec, sequences: &[Sequence], shared: bool) -> (Vec<Vec<Row>>, usize) {
    let device = &*tested.device;
    let (table, num_pages) = page_table(sequences, spec.page_size, shared);
    let cache = fill(device, spec, sequences, (&table, num_pages));
    let mut qo_indptr = vec![0];
    sequences.iter().for_each(|own| qo_indptr.push(qo_indptr[qo_indptr.len() - 1] + own.queries as u32));
    let kv_len = sequences.iter().map(|own| own.tokens as u32).collect();
    let layout = BatchLayout::paged(qo_indptr, kv_len, table).unwrap();
    let plan = device.plan_attention(&spec.params(), &Arc::new(layout), spec.kernel).unwrap();
    let (heads, mut q) = (KV_HEADS * spec.group, Vec::new());
    for own in sequences {
        let rows = own.queries(spec);
        if !spec.dense {
            q.extend(rows);
            continue;
        }
        for head in 0..heads {
            rows.chunks(spec.q_row())
                .for_each(|row| q.extend_from_slice(&row[head * HEAD_DIM..][..HEAD_DIM]));
        }
    }
    let shape = [sequences.len(), heads, sequences[0].queries, HEAD_DIM];
    let total = q.len() / spec.q_row();
    let shape = if spec.dense { &shape[..] } else { &[total, heads, HEAD_DIM] };
    let q = common::upload(device, shape, &q, Precision::F32);
    let q = if spec.dense { TokenView::dense(&q) } else { TokenView::ragged(&q) };
    let ranges: Vec<Range<usize>> = sequences.iter().map(|own| 0..own.queries).collect();
    let mut rows = vec![Vec::new(); sequences.len()];
    launch(device, &plan, q.unwrap(), Kv::Paged(&cache.layers[0]), &ranges, &mut rows);
    (rows, plan.work().iter().filter(|item| !item.sharers.is_empty()).count())
}

/// Holds a batch on shared pages to the same on copies of them, and to the sequences at `alone` by themselves.
fn assert_shared(tested: &Tested, spec: &Spec, sequences: &[Sequence], alone: &[usize]) {
    let what = format!("{} {spec:?}", tested.name);
    let (got, joint) = attend(tested, spec, sequences, true);
    assert!(joint > 0, "{what}: nothing was read once for several sequences");
    if tested.gpu {
        println!("{what}: {joint} joint items");
    }
    let (want, joint) = attend(tested, spec, sequences, false);
    assert_eq!(joint, 0, "{what}: pages that differ were taken for the same");
    assert_rows(&got, &want, &format!("{what} copied"));
    for &index in alone {
        let (want, _) = attend(tested, spec, std::slice::from_ref(&sequences[index]), true);
        assert_rows(&got[index..=index], &want, &format!("{what} sequence {index} alone"));
    }
}

#[test]
fn a_chunk_in_shared_pages_gives_the_bits_of_copies_and_of_each_sequence_alone() {
    on_all(|tested| {
        let turns = match (tested.software, tested.matrices) {
            (false, _) => (0..12).collect(),
            (true, false) => vec![0, 2, 4],
            // Matrix units do not reach f32 keys.
            (true, true) => vec![2, 4],
        };
        let sequences = batch(if tested.software { 9 } else { 24 });
        let alone: Vec<usize> =
            if tested.software { vec![0, 3, 9] } else { (0..sequences.len()).step_by(5).collect() };
        for turn in turns {
            assert_shared(tested, &Spec::turn(turn), &sequences, &alone);
        }
    });
}

#[test]
fn queries_of_a_dense_view_find_their_sequences_in_a_joint_item() {
    on_all(|tested| {
        let sequences: Vec<Sequence> = (0..5)
            .map(|seed| Sequence { seed, family: 0, prefix: 1024, tokens: 1030 + seed as usize, queries: 2 })
            .collect();
        let ragged = Spec { mask: Mask::Causal, ..Spec::turn(5) };
        let dense = Spec { dense: true, ..ragged };
        let ((got, joint), (want, _)) =
            (attend(tested, &dense, &sequences, true), attend(tested, &ragged, &sequences, true));
        assert!(joint > 0, "{}: nothing was read once", tested.name);
        assert_rows(&got, &want, &tested.name);
    });
}
