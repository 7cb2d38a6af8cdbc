//! Heads of one launch.

use std::ops::Range;
use std::sync::Arc;

use testkit::random::Random;
use testkit::tolerance::Precision;
use tilewise::{AttentionParams, BatchLayout, DType, Device, Kv, KvCacheConfig, PageTable, TokenView};

use crate::common;
use crate::launches::{Row, on_all};

const HEAD_DIM: usize = 24;
const VALUE_DIM: usize = 16;

/// Single queries over `heads` KV heads, the sequences of `lens` keys in one launch: the bits of each (sequence,
/// query head), and how many heads an item has at most. Keys of KV head `h` of sequence `s` are the same whatever is launched with them.
fn single_queries(
    device: &dyn Device,
    precision: Precision,
    (sequences, heads): (Range<usize>, Range<usize>),
    len: usize,
    page_size: Option<usize>,
) -> (Vec<Row>, usize) {
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
        .dtypes(DType::F32, common::dtype(precision));
    let (kv_len, each) = (vec![len as u32; batch], |n: usize| (0..=batch).map(|b| (b * n) as u32).collect());
    let mut out = device.alloc(&[batch, 2 * kv_heads, VALUE_DIM], DType::F32).unwrap();
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
    let out = device.download(&out).unwrap();
    let rows = out.chunks(2 * VALUE_DIM).map(|row| row.iter().map(|x| x.to_bits()).collect());
    (rows.collect(), together)
}

#[test]
fn heads_that_share_a_launch_or_an_item_give_the_bits_of_each_alone() {
    const HEADS: usize = 3;
    on_all(|tested| {
        // Chunks of keys x sequences x heads are 72 units: enough for two heads to an item where a device joins them,
        // the third alone.
        let together = if tested.gpu { 1 } else { 2 };
        for ((len, batch), precision) in
            [(40, 24), (1100, 12)].into_iter().zip([Precision::Bf16, Precision::F32])
        {
            for page_size in [None, Some(16), Some(64)] {
                let run = |sequences, heads, joined| {
                    let (rows, got) =
                        single_queries(&*tested.device, precision, (sequences, heads), len, page_size);
                    assert_eq!(got, joined, "{}: heads to an item", tested.name);
                    rows
                };
                let all = run(0..batch, 0..HEADS, together);
                for s in [0, 1, batch - 1] {
                    for head in 0..HEADS {
                        let alone = run(s..s + 1, head..head + 1, 1);
                        let what = format!("{} {page_size:?} {s} {head}", tested.name);
                        assert_eq!(all[s * HEADS + head], alone[0], "{what}");
                    }
                }
            }
        }
    });
}
