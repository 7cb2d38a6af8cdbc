//! What is refused: bad input is a typed error that changes nothing.
#![allow(missing_docs, clippy::print_stdout)]
#![allow(clippy::needless_pass_by_value)] // results are made in place and looked at once

mod common;

use std::sync::Arc;

use testkit::tolerance::Precision;
use tilewise::backend::cpu::CpuDevice;
use tilewise::{
    AttentionParams, BatchLayout, DType, Device, Error, HeadSpan, HostTensor, Kv, KvCache, KvCacheConfig,
    NormedRows, PageTable, Result, Tensor, TokenView,
};

/// Runs a test on the processor and on every GPU.
fn on_all(test: impl Fn(&dyn Device)) {
    test(&CpuDevice::new(Some(2)).unwrap());
    for gpu in common::gpus() {
        println!("{}", gpu.name);
        test(&*gpu.device);
    }
}

fn ones(device: &dyn Device, shape: &[usize]) -> Tensor {
    common::upload(device, shape, &vec![1.0; shape.iter().product()], Precision::F32)
}

fn u32s(device: &dyn Device, values: &[u32]) -> Tensor {
    device.upload(HostTensor::u32(&[values.len()], values).unwrap()).unwrap()
}

fn is_shape<T: std::fmt::Debug>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Shape { .. }))
}

fn is_value<T: std::fmt::Debug>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Value { .. }))
}

/// A cache of 4 pages for 2 heads of 16.
fn cache(device: &dyn Device) -> KvCache {
    let config = KvCacheConfig {
        num_layers: 1,
        num_pages: 4,
        page_size: 16,
        num_kv_heads: 2,
        head_dim: 16,
        value_dim: 16,
        dtype: DType::F32,
    };
    device.alloc_kv(&config).unwrap()
}

/// One sequence of 3 new tokens and 3 keys on the given page.
fn on_page(page: u32, page_size: usize) -> Arc<BatchLayout> {
    let table = PageTable { page_size, indptr: vec![0, 1], pages: vec![page] };
    Arc::new(BatchLayout::paged(vec![0, 3], vec![3], table).unwrap())
}

fn contents(device: &dyn Device, cache: &KvCache) -> Vec<f32> {
    let layer = &cache.layers[0];
    [device.download(&layer.keys).unwrap(), device.download(&layer.values).unwrap()].concat()
}

#[test]
fn a_page_outside_the_cache_or_of_another_shape_is_never_touched() {
    on_all(|device| {
        let mut cache = cache(device);
        let (q, new) = (ones(device, &[3, 4, 16]), ones(device, &[3, 2, 16]));
        let before = contents(device, &cache);
        let params = AttentionParams::new(4, 2, 16);
        for (layout, params) in [
            (on_page(4, 16), params.clone()),
            (on_page(u32::MAX, 16), params.clone()),
            (on_page(0, 32), params.clone()),
            (on_page(0, 16), params.clone().dtypes(DType::F32, DType::F16)),
            (on_page(0, 16), params.clone().value_dim(24)),
            (on_page(0, 16), AttentionParams::new(4, 2, 24)),
            (on_page(0, 16), AttentionParams::new(4, 1, 16)),
            (Arc::new(BatchLayout::ragged(vec![0, 3], vec![3]).unwrap()), params),
        ] {
            let plan = device.plan_attention(&params, &layout, None).unwrap();
            let view = TokenView::ragged(&new).unwrap();
            assert!(is_shape(device.append_kv(&plan, view, view, &mut cache.layers[0])), "{params:?}");
            let mut out = ones(device, &[3, 4, 16]);
            let q = TokenView::ragged(&q).unwrap();
            let refused = device.attention(&plan, q, Kv::Paged(&cache.layers[0]), &mut out, None);
            assert!(is_shape(refused), "{params:?}");
            assert!(device.download(&out).unwrap().iter().all(|x| *x == 1.0), "{params:?}");
        }
        assert_eq!(contents(device, &cache), before);
    });
}

#[test]
fn views_that_do_not_fit_the_plan_are_refused_and_the_output_stays() {
    on_all(|device| {
        let layout = Arc::new(BatchLayout::ragged(vec![0, 3], vec![5]).unwrap());
        let plan = device.plan_attention(&AttentionParams::new(4, 2, 16), &layout, None).unwrap();
        let q = ones(device, &[3, 4, 16]);
        let kv = ones(device, &[5, 2, 16]);
        let half = common::upload(device, &[3, 4, 16], &[1.0; 3 * 4 * 16], Precision::F16);
        let attend = |q: &Tensor, k: &Tensor, v: &Tensor, out: &[usize], lse: &[usize]| {
            let (mut out, mut lse) = (ones(device, out), ones(device, lse));
            let views = (TokenView::ragged(q)?, TokenView::ragged(k)?, TokenView::ragged(v)?);
            let kv = Kv::Contiguous { keys: views.1, values: views.2 };
            let result = device.attention(&plan, views.0, kv, &mut out, Some(&mut lse));
            if result.is_err() {
                let (out, lse) = (device.download(&out)?, device.download(&lse)?);
                assert!(out.iter().chain(&lse).all(|x| *x == 1.0), "written in spite of {result:?}");
            }
            result
        };
        let (out, lse) = (&[3, 4, 16][..], &[3, 4][..]);
        attend(&q, &kv, &kv, out, lse).unwrap();
        assert!(is_shape(attend(&q, &kv, &kv, out, &[4, 3])), "lse in another order than out");
        assert!(is_shape(attend(&half, &kv, &kv, out, lse)), "q of another type");
        assert!(is_shape(attend(&ones(device, &[3, 2, 32]), &kv, &kv, out, lse)), "q of other heads");
        assert!(is_shape(attend(&ones(device, &[2, 4, 16]), &kv, &kv, out, lse)), "q too short");
        assert!(is_shape(attend(&q, &ones(device, &[4, 2, 16]), &kv, out, lse)), "keys too short");
        assert!(is_shape(attend(&q, &kv, &ones(device, &[5, 1, 32]), out, lse)), "values of other heads");
        assert!(is_shape(attend(&q, &kv, &kv, &[4, 4, 16], lse)), "out too long");
        assert!(is_shape(attend(&q, &kv, &kv, &[4, 3, 16], lse)), "out of other rows");
        assert!(is_shape(attend(&q, &kv, &kv, &[1, 4, 4, 12], lse)), "dense out of other tokens");
        assert!(is_shape(attend(&q, &kv, &kv, out, &[3, 3])), "lse too short");
    });
}

#[test]
fn plans_name_what_they_refuse() {
    on_all(|device| {
        let layout = Arc::new(BatchLayout::ragged(vec![0, 3], vec![5]).unwrap());
        let plan = |params: AttentionParams, kernel| device.plan_attention(&params, &layout, kernel);
        let unknown = plan(AttentionParams::new(4, 2, 16), Some("no-such-kernel")).unwrap_err();
        assert!(matches!(unknown, Error::Value { name: "kernel", .. }), "{unknown:?}");
        assert!(unknown.to_string().contains("no-such-kernel"), "{unknown}");
        assert!(is_value(plan(AttentionParams::new(3, 2, 16), None)));
        assert!(is_value(plan(AttentionParams::new(4, 2, 20), Some("prefill"))));
    });
}

#[test]
fn two_sequences_may_share_a_page_to_read_but_not_to_write() {
    let table = |pages: Vec<u32>| PageTable { page_size: 16, indptr: vec![0, 2, 4], pages };
    assert!(BatchLayout::paged(vec![0, 1, 2], vec![17, 20], table(vec![3, 1, 3, 2])).is_ok());
    assert!(is_shape(BatchLayout::paged(vec![0, 1, 2], vec![17, 20], table(vec![3, 1, 2, 1]))));
    assert!(is_shape(BatchLayout::paged(vec![0, 5, 6], vec![17, 20], table(vec![3, 1, 2, 3]))));
}

#[test]
fn devices_that_mean_nothing_are_refused() {
    let set = CpuDevice::with_instruction_set(Some(1), "mmx");
    assert!(matches!(set, Err(Error::Device { .. })));
    assert!(matches!(CpuDevice::new(Some(0)), Err(Error::Value { name: "threads", .. })));
    for name in ["tpu", "", "gpu:x", "gpu:-1", "gpu:4000000000"] {
        let refused = tilewise::open(name, None).map(|device| device.caps().clone());
        assert!(matches!(refused, Err(Error::Device { .. })), "{name}: {refused:?}");
    }
}

#[test]
fn tensors_of_another_device_are_refused() {
    let cpu = CpuDevice::new(Some(2)).unwrap();
    for gpu in common::gpus() {
        for (device, other) in [(&*gpu.device, &cpu as &dyn Device), (&cpu, &*gpu.device)] {
            let mut out = ones(device, &[2, 4]);
            let (own, others) = (ones(device, &[2, 4]), ones(other, &[2, 4]));
            assert!(is_shape(device.rms_norm(&others, &ones(device, &[4]), 1e-6, &mut out)), "{}", gpu.name);
            let matrix = HostTensor::f32(&[4, 4], &[1.0; 16]).unwrap();
            let weight = other.pack_linear(&[matrix], None, DType::F32).unwrap();
            assert!(is_shape(device.linear(&weight, &own, &mut out)), "{}", gpu.name);
            let (mut cache, new) = (cache(other), ones(device, &[3, 2, 16]));
            let plan = device.plan_attention(&AttentionParams::new(4, 2, 16), &on_page(0, 16), None).unwrap();
            let view = TokenView::ragged(&new).unwrap();
            assert!(is_shape(device.append_kv(&plan, view, view, &mut cache.layers[0])), "{}", gpu.name);
            assert!(device.download(&out).unwrap().iter().all(|x| *x == 1.0), "{}", gpu.name);
        }
    }
}

#[test]
fn caches_and_sizes_that_mean_nothing_are_refused() {
    on_all(|device| {
        let config = cache(device).config;
        assert!(is_value(device.alloc_kv(&KvCacheConfig { page_size: 24, ..config })));
        assert!(is_value(device.alloc_kv(&KvCacheConfig { dtype: DType::U32, ..config })));
        let huge = device.alloc(&[usize::MAX, 2], DType::F32);
        assert!(matches!(huge, Err(Error::OutOfMemory { .. })));
    });
}

#[test]
fn linear_layers_refuse_other_widths_and_types_and_leave_the_output() {
    on_all(|device| {
        let matrix = |shape| HostTensor::f32(shape, &[1.0; 12]).unwrap();
        let weight = device.pack_linear(&[matrix(&[3, 4])], None, DType::F32).unwrap();
        for (x, out) in [([2, 5], [2, 3]), ([2, 4], [2, 4]), ([2, 4], [3, 3])] {
            let (x, mut out) = (ones(device, &x), ones(device, &out));
            assert!(is_shape(device.linear(&weight, &x, &mut out)));
            assert!(is_shape(device.linear_add(&weight, &x, &mut out)));
            assert!(device.download(&out).unwrap().iter().all(|x| *x == 1.0));
        }
        // A GPU takes f16 too, as its matrix units do.
        let half = common::upload(device, &[2, 4], &[1.0; 8], Precision::Bf16);
        assert!(is_shape(device.linear(&weight, &half, &mut ones(device, &[2, 3]))));
        assert!(is_shape(device.pack_linear(&[], None, DType::F32)));
        assert!(is_shape(device.pack_linear(&[matrix(&[12])], None, DType::F32)));
        assert!(is_shape(device.pack_linear(&[matrix(&[3, 4]), matrix(&[4, 3])], None, DType::F32)));
        assert!(is_shape(device.pack_linear(&[matrix(&[3, 4])], Some(&[0.0; 4]), DType::F32)));
        assert!(matches!(
            device.pack_linear(&[matrix(&[3, 4])], None, DType::U32),
            Err(Error::Unsupported { .. })
        ));
        assert!(is_shape(HostTensor::f32(&[3, 5], &[1.0; 12])));
    });
}

#[test]
fn products_of_norms_refuse_other_widths_and_types_and_leave_the_output() {
    on_all(|device| {
        let matrix = HostTensor::f32(&[6, 4], &[1.0; 24]).unwrap();
        let weight = device.pack_linear(&[matrix], None, DType::F32).unwrap();
        // Of x, the norm's weight, its room, the product and what becomes of its halves.
        for [x, norm, normed, out, halves] in [
            [[2, 5], [1, 4], [2, 4], [2, 6], [2, 3]],
            [[2, 4], [1, 5], [2, 4], [2, 6], [2, 3]],
            [[2, 4], [1, 4], [2, 5], [2, 6], [2, 3]],
            [[2, 4], [1, 4], [3, 4], [2, 6], [2, 3]],
            [[3, 4], [1, 4], [2, 4], [2, 6], [2, 3]],
            [[2, 4], [1, 4], [2, 4], [2, 5], [2, 3]],
            [[2, 4], [1, 4], [2, 4], [3, 6], [3, 3]],
            [[2, 4], [1, 4], [2, 4], [2, 6], [2, 4]],
            [[2, 4], [1, 4], [2, 4], [2, 6], [3, 3]],
        ] {
            let what = format!("{x:?} {norm:?} {normed:?} {out:?} {halves:?}");
            let bad_halves = halves != [2, 3];
            let [x, norm, mut normed, mut out, mut halves] =
                [x, norm, normed, out, halves].map(|shape| ones(device, &shape));
            let rows = NormedRows { x: &x, weight: &norm, eps: 1e-6 };
            if !bad_halves {
                assert!(is_shape(device.norm_linear(&rows, &mut normed, &weight, &mut out)), "{what}");
            }
            let refused = device.norm_linear_silu_mul(&rows, &mut normed, &weight, &mut out, &mut halves);
            assert!(is_shape(refused), "{what}");
            for tensor in [&normed, &out, &halves] {
                assert!(device.download(tensor).unwrap().iter().all(|x| *x == 1.0), "{what}");
            }
        }
        // A GPU takes f16 norms too, as its matrix units do; never rows or weights of a norm.
        let bf16 = |shape: &[usize]| {
            common::upload(device, shape, &vec![1.0; shape.iter().product()], Precision::Bf16)
        };
        for (x, norm, mut normed) in [
            (bf16(&[2, 4]), ones(device, &[4]), ones(device, &[2, 4])),
            (ones(device, &[2, 4]), bf16(&[4]), ones(device, &[2, 4])),
            (ones(device, &[2, 4]), ones(device, &[4]), bf16(&[2, 4])),
        ] {
            let rows = NormedRows { x: &x, weight: &norm, eps: 1e-6 };
            let mut out = ones(device, &[2, 6]);
            let what = format!("{rows:?} into {normed:?}");
            assert!(is_shape(device.norm_linear(&rows, &mut normed, &weight, &mut out)), "{what}");
            let mut halves = ones(device, &[2, 3]);
            let refused = device.norm_linear_silu_mul(&rows, &mut normed, &weight, &mut out, &mut halves);
            assert!(is_shape(refused), "{what}");
            assert!(device.download(&halves).unwrap().iter().all(|x| *x == 1.0), "{what}");
        }
    });
}

#[test]
fn ids_positions_and_rows_outside_their_tables_are_refused_and_nothing_moves() {
    on_all(|device| {
        let table =
            device.pack_linear(&[HostTensor::f32(&[3, 4], &[2.0; 12]).unwrap()], None, DType::F32).unwrap();
        let mut out = ones(device, &[2, 4]);
        assert!(is_shape(device.embed(&table, &u32s(device, &[0, 3]), &mut out)), "id outside the table");
        assert!(is_shape(device.embed(&table, &ones(device, &[2]), &mut out)), "ids of another type");
        assert!(is_shape(device.embed(&table, &u32s(device, &[0]), &mut out)), "too few ids");
        assert!(is_shape(device.gather_rows(&ones(device, &[2, 4]), &[0, 2], &mut out)), "row outside");
        let span = HeadSpan { offset: 0, num_heads: 1, head_dim: 4 };
        let angles = ones(device, &[5, 4]);
        assert!(is_shape(device.rope(&mut out, span, &angles, &u32s(device, &[0, 5]))), "position outside");
        assert!(is_shape(device.rope(&mut out, span, &angles, &u32s(device, &[0]))), "too few positions");
        let zeros = device.alloc(&[2], DType::F32).unwrap();
        assert!(is_shape(device.rope(&mut out, span, &angles, &zeros)), "positions of another type");
        let wide = HeadSpan { offset: 2, ..span };
        assert!(
            is_shape(device.rope(&mut out, wide, &angles, &u32s(device, &[0, 1]))),
            "span outside the row"
        );
        assert!(is_shape(device.rms_norm_heads(&mut out, wide, &ones(device, &[4]), 1e-6)), "span outside");
        assert!(is_shape(device.rms_norm_heads(&mut out, span, &ones(device, &[3]), 1e-6)), "other weight");
        assert!(is_shape(device.rms_norm(&ones(device, &[2, 5]), &ones(device, &[5]), 1e-6, &mut out)));
        assert!(is_shape(device.silu_mul(&ones(device, &[2, 7]), &mut out)), "not twice as wide");
        assert!(device.download(&out).unwrap().iter().all(|x| *x == 1.0));
    });
}
