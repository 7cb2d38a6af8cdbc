//! Chunks from a device through the tiers and back.

use std::sync::Arc;

use tilewise::{
    AttentionParams, BatchLayout, DType, Device, HostTensor, Kv, KvCache, KvCacheConfig, PageTable, TokenView,
};
use tilewise_engine::Error;
use tilewise_engine::cache::PageId;
use tilewise_engine::cache::keys::{KeySpace, ModelDigest, Namespace};
use tilewise_engine::cache::tiers::{DiskTier, HostTier, Source, download_chunk, upload_chunk};

use crate::common;
use crate::support::{LONG, Random, all, stack};

const TOKENS: usize = 600;

fn config(dtype: DType) -> KvCacheConfig {
    KvCacheConfig {
        num_layers: 2,
        num_pages: 24,
        page_size: 64,
        num_kv_heads: 2,
        head_dim: 32,
        value_dim: 32,
        dtype,
    }
}

fn params(config: &KvCacheConfig) -> AttentionParams {
    AttentionParams::new(4, config.num_kv_heads, config.head_dim).dtypes(DType::F32, config.dtype)
}

fn layout(pages: &[PageId], queries: usize) -> Arc<BatchLayout> {
    let pages: Vec<u32> = pages.iter().map(|page| page.0).collect();
    let table = PageTable { page_size: 64, indptr: vec![0, pages.len() as u32], pages };
    Arc::new(BatchLayout::paged(vec![0, queries as u32], vec![TOKENS as u32], table).unwrap())
}

fn noise(device: &dyn Device, seed: u64, shape: &[usize]) -> tilewise::Tensor {
    let mut random = Random::new(seed);
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| (random.below(2001) as f32 - 1000.0) / 500.0).collect();
    device.upload(HostTensor::f32(shape, &values).unwrap()).unwrap()
}

/// Stores the keys and values of all tokens.
fn fill(device: &dyn Device, kv: &mut KvCache, pages: &[PageId]) {
    let plan = device.plan_attention(&params(&kv.config), &layout(pages, TOKENS), None).unwrap();
    for (index, layer) in kv.layers.iter_mut().enumerate() {
        let shape = [TOKENS, 2, 32];
        let (keys, values) =
            (noise(device, 2 * index as u64, &shape), noise(device, 2 * index as u64 + 1, &shape));
        let (keys, values) = (TokenView::ragged(&keys).unwrap(), TokenView::ragged(&values).unwrap());
        device.append_kv(&plan, keys, values, layer).unwrap();
    }
}

fn attend(device: &dyn Device, kv: &KvCache, pages: &[PageId]) -> Vec<u32> {
    let plan = device.plan_attention(&params(&kv.config), &layout(pages, 3), None).unwrap();
    let q = noise(device, 77, &[3, 4, 32]);
    let mut bits = Vec::new();
    for layer in &kv.layers {
        let mut out = noise(device, 78, &[3, 4 * 32]);
        let q = TokenView::ragged(&q).unwrap();
        device.attention(&plan, q, Kv::Paged(layer), &mut out, None).unwrap();
        bits.extend(device.download(&out).unwrap().iter().map(|x| x.to_bits()));
    }
    bits
}

/// Demotes the whole chunks of a prompt, restarts, and promotes them to other pages of another cache.
fn round_trip(name: &str, device: &dyn Device, dtype: DType) {
    let config = config(dtype);
    let mut kv = device.alloc_kv(&config).unwrap();
    let pages: Vec<PageId> = (0..10).map(|n| PageId(2 * n + 1)).collect();
    fill(device, &mut kv, &pages);
    let want = attend(device, &kv, &pages);

    let digest = ModelDigest::from_bytes([3; 32]);
    let namespace = Namespace::new(&device.page_layout(&config), &config, DType::F32, digest);
    let tokens: Vec<u32> = (0..TOKENS as u32).collect();
    let keys = KeySpace::new(namespace, "model").unwrap().keys(&tokens, None);
    assert_eq!(keys.len(), 2);

    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let disk = DiskTier::open(folder.path(), 1 << 30).unwrap();
        stack(vec![Box::new(HostTier::new(1 << 30)), Box::new(disk)])
    };
    let tiers = open();
    for (key, pages) in keys.iter().zip(pages.chunks(4)) {
        assert!(tiers.demote(key.clone(), download_chunk(device, &kv, pages).unwrap()).unwrap());
    }
    assert!(tiers.flush(LONG));
    drop(tiers);

    let fetched = all(&mut open().fetch(keys));
    assert_eq!(fetched.iter().map(|chunk| chunk.source).collect::<Vec<_>>(), [Source::Disk; 2], "{name}");
    let mut other = device.alloc_kv(&config).unwrap();
    let elsewhere: Vec<PageId> = (0..10).map(|n| PageId(20 - 2 * n)).collect();
    // The tail that is in no chunk is computed again, as is all else here before it is overwritten.
    fill(device, &mut other, &elsewhere);
    let blank = vec![0; fetched[0].bytes.len()];
    for (chunk, pages) in fetched.iter().zip(elsewhere.chunks(4)) {
        upload_chunk(device, &mut other, pages, &blank).unwrap();
        assert_ne!(attend(device, &other, &elsewhere), want, "{name}: the chunk was not overwritten");
        upload_chunk(device, &mut other, pages, &chunk.bytes).unwrap();
    }
    assert_eq!(attend(device, &other, &elsewhere), want, "{name} {dtype}");
}

#[test]
fn attention_over_chunks_from_disk_has_the_bits_of_attention_over_the_pages_they_were() {
    let cpu = tilewise::open("cpu", Some(2)).unwrap();
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        round_trip("cpu", &*cpu, dtype);
        for gpu in common::gpus() {
            round_trip(&gpu.name, &*gpu.device, dtype);
        }
    }
    println!("cpu and {} GPUs: 3 cases each", common::gpus().len());
}

#[test]
fn pages_that_are_no_chunk_are_refused() {
    let device = tilewise::open("cpu", Some(1)).unwrap();
    let mut kv = device.alloc_kv(&config(DType::F32)).unwrap();
    let pages: Vec<PageId> = (0..5).map(PageId).collect();
    let chunk = download_chunk(&*device, &kv, &pages[..4]).unwrap();
    for bad in [&pages[..0], &pages[..3], &pages[..5]] {
        assert!(matches!(download_chunk(&*device, &kv, bad), Err(Error::Value { .. })));
        assert!(matches!(upload_chunk(&*device, &mut kv, bad, &chunk), Err(Error::Value { .. })));
    }
    let short = &chunk[1..];
    assert!(matches!(upload_chunk(&*device, &mut kv, &pages[..4], short), Err(Error::Value { .. })));
    let outside = [PageId(0), PageId(1), PageId(2), PageId(24)];
    assert!(matches!(download_chunk(&*device, &kv, &outside), Err(Error::Device(_))));
}
