//! Norms, rotation and storing of heads in one operation, against the operations one by one, in bits.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;

use common::Tested;
use testkit::random::Random;
use tilewise::{
    AttentionParams, AttentionPlan, BatchLayout, DType, Device, HeadSpan, HostTensor, KvCacheConfig, KvLayer,
    PageTable, RotaryHeads, Tensor,
};

const Q_HEADS: usize = 5;
const KV_HEADS: usize = 3;
const PAGES: usize = 7;

/// Two sequences, one in the middle of a page, over pages out of order.
fn layout(page_size: usize) -> Arc<BatchLayout> {
    let (first, second) = (page_size as u32 + 3, 2 * page_size as u32);
    let table = PageTable { page_size, indptr: vec![0, 2, 4], pages: vec![5, 1, 0, 6] };
    Arc::new(BatchLayout::paged(vec![0, 4, 11], vec![first, second], table).unwrap())
}

/// One combination of sizes and types.
struct Case {
    /// Elements of a row before the first head.
    before: usize,
    dim: usize,
    value_dim: usize,
    rotary_dim: usize,
    normed: bool,
    dtype: DType,
    page_size: usize,
}

struct Made {
    plan: AttentionPlan,
    x: Tensor,
    norms: [Tensor; 2],
    table: Tensor,
    positions: Tensor,
    layer: KvLayer,
}

fn make(device: &dyn Device, case: &Case) -> Made {
    let mut random = Random::new(case.dim as u64);
    let layout = layout(case.page_size);
    let tokens = layout.total_queries();
    let mut upload = |shape: &[usize]| {
        let values = random.normals(shape.iter().product());
        device.upload(HostTensor::f32(shape, &values).unwrap()).unwrap()
    };
    let width = case.before + (Q_HEADS + KV_HEADS) * case.dim + KV_HEADS * case.value_dim;
    let (x, norms) = (upload(&[tokens, width]), [upload(&[case.dim]), upload(&[case.dim])]);
    let table = upload(&[2 * case.page_size, case.rotary_dim]);
    let positions: Vec<u32> = (0..2)
        .flat_map(|s| (layout.num_keys(s) - layout.num_queries(s)) as u32..layout.num_keys(s) as u32)
        .collect();
    let config = KvCacheConfig {
        num_layers: 1,
        num_pages: PAGES,
        page_size: case.page_size,
        num_kv_heads: KV_HEADS,
        head_dim: case.dim,
        value_dim: case.value_dim,
        dtype: case.dtype,
    };
    let params = AttentionParams::new(KV_HEADS, KV_HEADS, case.dim)
        .value_dim(case.value_dim)
        .dtypes(DType::F32, case.dtype);
    Made {
        plan: device.plan_attention(&params, &layout, None).unwrap(),
        positions: device.upload(HostTensor::u32(&[tokens], &positions).unwrap()).unwrap(),
        layer: device.alloc_kv(&config).unwrap().layers.remove(0),
        x,
        norms,
        table,
    }
}

fn spans(case: &Case) -> [HeadSpan; 3] {
    let span = |offset, num_heads, head_dim| HeadSpan { offset, num_heads, head_dim };
    let keys = case.before + Q_HEADS * case.dim;
    let values = keys + KV_HEADS * case.dim;
    [
        span(case.before, Q_HEADS, case.dim),
        span(keys, KV_HEADS, case.dim),
        span(values, KV_HEADS, case.value_dim),
    ]
}

/// The query heads and the pages.
fn bits(device: &dyn Device, case: &Case, made: &Made) -> [Vec<u32>; 3] {
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let rows = device.download(&made.x).unwrap();
    let queries: Vec<f32> = rows
        .chunks(made.x.row_len())
        .flat_map(|row| row[case.before..][..Q_HEADS * case.dim].to_vec())
        .collect();
    let pages = |tensor| bits(&device.download(tensor).unwrap());
    [bits(&queries), pages(&made.layer.keys), pages(&made.layer.values)]
}

fn together(device: &dyn Device, case: &Case) -> [Vec<u32>; 3] {
    let mut made = make(device, case);
    let [queries, keys, values] = spans(case);
    let heads = RotaryHeads {
        queries,
        keys,
        values,
        norms: case.normed.then_some((&made.norms[0], &made.norms[1])),
        eps: 1e-5,
        table: &made.table,
        positions: &made.positions,
    };
    device.append_rotated(&made.plan, &mut made.x, &heads, &mut made.layer).unwrap();
    bits(device, case, &made)
}

fn one_by_one(device: &dyn Device, case: &Case) -> [Vec<u32>; 3] {
    let mut made = make(device, case);
    let [queries, keys, values] = spans(case);
    for (span, norm) in [queries, keys].into_iter().zip(&made.norms) {
        if case.normed {
            device.rms_norm_heads(&mut made.x, span, norm, 1e-5).unwrap();
        }
        device.rope(&mut made.x, span, &made.table, &made.positions).unwrap();
    }
    let (keys, values) = (keys.view(&made.x).unwrap(), values.view(&made.x).unwrap());
    device.append_kv(&made.plan, keys, values, &mut made.layer).unwrap();
    bits(device, case, &made)
}

#[test]
fn one_operation_has_the_bits_of_the_operations_that_it_joins() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        let cases = [
            (0, 64, 64, 64),
            (0, 128, 128, 128),
            (0, 24, 40, 16),
            (0, 512, 512, 512),
            (0, 136, 8, 2),
            (6, 256, 256, 256),
            // Like the second, but for a row that begins at an odd place, half a rotation, and narrower values.
            (1, 128, 128, 128),
            (0, 128, 128, 64),
            (0, 128, 64, 128),
        ];
        for (index, (before, dim, value_dim, rotary_dim)) in cases.into_iter().enumerate() {
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                for normed in [false, true] {
                    let page_size = [16, 32][index % 2];
                    let case = Case { before, dim, value_dim, rotary_dim, normed, dtype, page_size };
                    let (got, want) = (together(&**device, &case), one_by_one(&**device, &case));
                    let what = format!(
                        "{name}: {before}, {dim}, {value_dim}, {rotary_dim}, {dtype}, normed {normed}"
                    );
                    assert!(got == want, "{what}");
                    assert!(got[1].iter().chain(&got[2]).any(|&bits| bits != 0), "{what}: nothing is stored");
                }
            }
        }
    }
}

#[test]
fn heads_that_do_not_fit_are_refused_and_no_page_is_written() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        let case = Case {
            before: 0,
            dim: 64,
            value_dim: 64,
            rotary_dim: 64,
            normed: false,
            dtype: DType::F32,
            page_size: 16,
        };
        let Made { plan, mut x, norms, table, positions, mut layer } = make(&**device, &case);
        let [queries, keys, values] = spans(&case);
        let good = RotaryHeads {
            queries,
            keys,
            values,
            norms: None,
            eps: 1e-5,
            table: &table,
            positions: &positions,
        };
        let short = device.upload(HostTensor::f32(&[3, 64], &[0.5; 3 * 64]).unwrap()).unwrap();
        for (what, heads) in [
            ("positions outside the table", RotaryHeads { table: &short, ..good }),
            (
                "a head outside the row",
                RotaryHeads { values: HeadSpan { offset: 1 << 20, ..values }, ..good },
            ),
            ("another number of keys", RotaryHeads { keys: HeadSpan { num_heads: 2, ..keys }, ..good }),
            ("norms of another width", RotaryHeads { norms: Some((&norms[0], &table)), ..good }),
        ] {
            assert!(device.append_rotated(&plan, &mut x, &heads, &mut layer).is_err(), "{name}: {what}");
        }
        let pages = [&layer.keys, &layer.values].map(|tensor| device.download(tensor).unwrap());
        assert!(pages.iter().flatten().all(|&x| x == 0.0), "{name}");
    }
}
