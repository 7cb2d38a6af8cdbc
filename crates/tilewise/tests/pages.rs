//! Pages as bytes: what is taken out of a cache and put back, there or elsewhere, is attended to with the same bits.
#![allow(missing_docs, clippy::print_stdout)]
#![allow(clippy::needless_pass_by_value)] // results are made in place and looked at once

mod common;

use std::sync::Arc;

use common::Tested;
use testkit::random::Random;
use testkit::tolerance::Precision;
use tilewise::{
    AttentionParams, BatchLayout, DType, Device, Error, Kv, KvCache, KvCacheConfig, PageTable, Result,
    Tensor, TokenView,
};

/// Keys of the one sequence: the last page is not full.
const TOKENS: usize = 75;

/// Value rows that are whole panels and ones that are padded; several heads per query head and one.
const SHAPES: [(usize, usize, usize, usize); 3] = [(2, 64, 64, 16), (3, 24, 40, 32), (1, 8, 8, 16)];

fn config(shape: (usize, usize, usize, usize), dtype: DType) -> KvCacheConfig {
    let (num_kv_heads, head_dim, value_dim, page_size) = shape;
    KvCacheConfig { num_layers: 3, num_pages: 12, page_size, num_kv_heads, head_dim, value_dim, dtype }
}

fn params(config: &KvCacheConfig) -> AttentionParams {
    AttentionParams::new(2 * config.num_kv_heads, config.num_kv_heads, config.head_dim)
        .value_dim(config.value_dim)
        .dtypes(DType::F32, config.dtype)
}

/// One sequence on these pages, all of whose last `queries` tokens are new.
fn layout(config: &KvCacheConfig, pages: &[u32], queries: usize) -> Arc<BatchLayout> {
    let table =
        PageTable { page_size: config.page_size, indptr: vec![0, pages.len() as u32], pages: pages.to_vec() };
    Arc::new(BatchLayout::paged(vec![0, queries as u32], vec![TOKENS as u32], table).unwrap())
}

fn normals(device: &dyn Device, seed: u64, shape: &[usize]) -> Tensor {
    let values = Random::new(seed).normals(shape.iter().product());
    common::upload(device, shape, &values, Precision::F32)
}

/// Stores keys and values that differ by layer and seed.
fn append(device: &dyn Device, kv: &mut KvCache, pages: &[u32], seed: u64) {
    let config = kv.config;
    let plan = device.plan_attention(&params(&config), &layout(&config, pages, TOKENS), None).unwrap();
    for (index, layer) in kv.layers.iter_mut().enumerate() {
        let seed = seed + 2 * index as u64;
        let keys = normals(device, seed, &[TOKENS, config.num_kv_heads, config.head_dim]);
        let values = normals(device, seed + 1, &[TOKENS, config.num_kv_heads, config.value_dim]);
        let (keys, values) = (TokenView::ragged(&keys).unwrap(), TokenView::ragged(&values).unwrap());
        device.append_kv(&plan, keys, values, layer).unwrap();
    }
}

/// The outputs of all layers.
fn attend(device: &dyn Device, kv: &KvCache, pages: &[u32]) -> Vec<u32> {
    let config = kv.config;
    let plan = device.plan_attention(&params(&config), &layout(&config, pages, 5), None).unwrap();
    let heads = plan.params().num_qo_heads;
    let q = normals(device, 99, &[5, heads, config.head_dim]);
    let mut bits = Vec::new();
    for layer in &kv.layers {
        let mut out = normals(device, 98, &[5, heads * config.value_dim]);
        let q = TokenView::ragged(&q).unwrap();
        device.attention(&plan, q, Kv::Paged(layer), &mut out, None).unwrap();
        bits.extend(device.download(&out).unwrap().iter().map(|x| x.to_bits()));
    }
    bits
}

fn download(device: &dyn Device, kv: &KvCache, page: u32) -> Vec<u8> {
    let mut bytes = b"what was there before".to_vec();
    device.download_page(kv, page, &mut bytes).unwrap();
    bytes
}

fn each_case(run: impl Fn(&str, &dyn Device, KvCacheConfig)) {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        let mut cases = 0;
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for shape in SHAPES {
                run(name, &**device, config(shape, dtype));
                cases += 1;
            }
        }
        println!("{name}: {cases} cases");
    }
}

#[test]
fn a_page_that_was_overwritten_and_put_back_gives_the_same_bits() {
    each_case(|name, device, config| {
        let mut kv = device.alloc_kv(&config).unwrap();
        let pages: Vec<u32> = [7, 2, 9, 0, 4][..TOKENS.div_ceil(config.page_size)].to_vec();
        append(device, &mut kv, &pages, 1);
        let before = attend(device, &kv, &pages);
        let kept: Vec<Vec<u8>> = pages.iter().map(|&page| download(device, &kv, page)).collect();
        append(device, &mut kv, &pages, 50);
        assert_ne!(attend(device, &kv, &pages), before, "{name} {config:?}: nothing was overwritten");
        for (&page, bytes) in pages.iter().zip(&kept) {
            device.upload_page(&mut kv, page, bytes).unwrap();
        }
        assert_eq!(attend(device, &kv, &pages), before, "{name} {config:?}");
    });
}

#[test]
fn a_page_may_come_back_under_another_number_and_touches_no_other() {
    each_case(|name, device, config| {
        let (mut from, mut to) = (device.alloc_kv(&config).unwrap(), device.alloc_kv(&config).unwrap());
        let count = TOKENS.div_ceil(config.page_size);
        let (pages, elsewhere): (Vec<u32>, Vec<u32>) = (0..count as u32).map(|n| (n, 11 - 2 * n)).unzip();
        append(device, &mut from, &pages, 1);
        for (&page, &other) in pages.iter().zip(&elsewhere) {
            device.upload_page(&mut to, other, &download(device, &from, page)).unwrap();
        }
        let (want, got) = (attend(device, &from, &pages), attend(device, &to, &elsewhere));
        assert_eq!(got, want, "{name} {config:?}");
        let untouched = (0..12).filter(|page| !elsewhere.contains(page));
        for page in untouched {
            let zeros = download(device, &to, page).iter().all(|&byte| byte == 0);
            assert!(zeros, "{name} {config:?}: page {page} was written");
        }
    });
}

#[test]
fn the_layout_tells_who_computes_and_the_length_and_any_pages_are_one_read_back() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        // One of its own, since the tests that run beside this one are counted too.
        let device = tilewise::open(&device.caps().name, Some(1)).unwrap();
        let config = config(SHAPES[1], DType::Bf16);
        let mut kv = device.alloc_kv(&config).unwrap();
        append(&*device, &mut kv, &[3, 11, 5], 1);
        let counted = || device.counts().map(|counts| counts.downloads);
        let before = counted();
        let bytes = download(&*device, &kv, 3);
        assert_eq!(bytes.len(), device.page_layout(&config).bytes, "{name}");
        assert_eq!(counted(), before.map(|downloads| downloads + 1), "{name}");
        let mut three = b"what was there before".to_vec();
        device.download_pages(&kv, &[3, 11, 3], &mut three).unwrap();
        assert_eq!(counted(), before.map(|downloads| downloads + 2), "{name}");
        assert_eq!(three, [&bytes[..], &download(&*device, &kv, 11), &bytes].concat(), "{name}");
        assert!(is_shape(device.download_pages(&kv, &[3, 12], &mut three)), "{name}: page 12");
        // A GPU's arithmetic is its own.
        let layout = device.page_layout(&config).name;
        assert_eq!(layout.contains(&device.caps().description), counted().is_some(), "{name}: {layout}");
    }
}

#[test]
fn a_copied_page_gives_the_bits_of_its_source_and_no_other_is_touched() {
    each_case(|name, device, config| {
        let mut kv = device.alloc_kv(&config).unwrap();
        let pages: Vec<u32> = [7, 2, 9, 0, 4][..TOKENS.div_ceil(config.page_size)].to_vec();
        append(device, &mut kv, &pages, 1);
        let before = attend(device, &kv, &pages);
        let bytes: Vec<Vec<u8>> = (0..12).map(|page| download(device, &kv, page)).collect();
        device.copy_pages(&mut kv, &[]).unwrap();
        // One page twice, another once in between.
        let (last, first) = (*pages.last().unwrap(), pages[0]);
        device.copy_pages(&mut kv, &[(last, 11), (first, 5), (last, 3)]).unwrap();
        let copied = |page| match page {
            11 | 3 => last,
            5 => first,
            page => page,
        };
        for page in 0..12 {
            let same = download(device, &kv, page) == bytes[copied(page) as usize];
            assert!(same, "{name} {config:?}: page {page}");
        }
        for copy in [11, 3] {
            let forked = [&[5][..], &pages[1..pages.len() - 1], &[copy]].concat();
            assert_eq!(attend(device, &kv, &forked), before, "{name} {config:?}: page {copy}");
        }
    });
}

fn is_shape(result: Result<()>) -> bool {
    matches!(result, Err(Error::Shape { .. }))
}

#[test]
fn pages_that_do_not_exist_and_wrong_lengths_are_refused_and_nothing_is_written() {
    each_case(|name, device, config| {
        let mut kv = device.alloc_kv(&config).unwrap();
        let good = vec![1; device.page_layout(&config).bytes];
        for page in [12, u32::MAX] {
            assert!(is_shape(device.download_page(&kv, page, &mut Vec::new())), "{name}: page {page}");
            assert!(is_shape(device.upload_page(&mut kv, page, &good)), "{name}: page {page}");
        }
        for len in [0, 1, good.len() - 1, good.len() + 1] {
            assert!(is_shape(device.upload_page(&mut kv, 1, &vec![1; len])), "{name}: {len} bytes");
        }
        // One that overlaps is refused with all others.
        device.upload_page(&mut kv, 0, &good).unwrap();
        for copies in
            [[(0, 1), (12, 2)], [(0, 1), (0, 12)], [(0, 1), (2, 1)], [(0, 1), (1, 2)], [(0, 1), (3, 3)]]
        {
            assert!(is_shape(device.copy_pages(&mut kv, &copies)), "{name}: {copies:?}");
        }
        device.upload_page(&mut kv, 0, &vec![0; good.len()]).unwrap();
        // The fields of a cache are public, and so are their mistakes.
        let last = kv.layers.pop().unwrap();
        assert!(is_shape(device.copy_pages(&mut kv, &[(0, 1)])), "{name}: a layer is missing");
        assert!(is_shape(device.upload_page(&mut kv, 1, &good)), "{name}: a layer is missing");
        kv.layers.push(last);
        kv.config.num_pages += 1;
        assert!(is_shape(device.upload_page(&mut kv, 12, &good)), "{name}: a page that no layer has");
        kv.config.num_pages -= 1;
        for page in 0..12 {
            let zeros = download(device, &kv, page).iter().all(|&byte| byte == 0);
            assert!(zeros, "{name}: page {page} was written");
        }
    });
}

#[test]
fn pages_of_another_device_are_refused() {
    let devices: Vec<&Tested> = common::gpus().iter().collect();
    let cpus = common::cpus();
    for gpu in devices {
        let config = config(SHAPES[0], DType::F32);
        let mut kv = cpus[0].device.alloc_kv(&config).unwrap();
        let bytes = download(&*cpus[0].device, &kv, 0);
        assert!(is_shape(gpu.device.download_page(&kv, 0, &mut Vec::new())), "{}", gpu.name);
        assert!(is_shape(gpu.device.upload_page(&mut kv, 0, &bytes)), "{}", gpu.name);
        assert!(is_shape(gpu.device.copy_pages(&mut kv, &[(0, 1)])), "{}", gpu.name);
        let mut kv = gpu.device.alloc_kv(&config).unwrap();
        assert!(is_shape(cpus[0].device.upload_page(&mut kv, 0, &bytes)), "{}", gpu.name);
        assert!(is_shape(cpus[0].device.copy_pages(&mut kv, &[(0, 1)])), "{}", gpu.name);
    }
}
