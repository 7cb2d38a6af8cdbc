//! A prompt at once, in chunks, or token by token as in decode: every row has the same bits.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use tilewise::{
    AttentionParams, BatchLayout, DType, Device, HostTensor, Kv, KvCacheConfig, PageTable, TokenView,
};

const TOKENS: usize = 50;
const DIM: usize = 64;
/// Elements of a token's queries, and of its keys or values: 4 heads and 2 heads.
const QUERY: usize = 4 * DIM;
const KEY: usize = 2 * DIM;

/// Some numbers between -1 and 1.
fn numbers(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * step).sin()).collect()
}

/// The outputs of 50 tokens that enter the cache `chunk` at a time.
fn by_chunks(device: &dyn Device, chunk: usize) -> tilewise::Result<Vec<f32>> {
    let params = AttentionParams::new(4, 2, DIM);
    let (num_pages, page_size) = (4, 16);
    let config = KvCacheConfig {
        num_layers: 1,
        num_pages,
        page_size,
        num_kv_heads: 2,
        head_dim: DIM,
        value_dim: DIM,
        dtype: DType::F32,
    };
    let mut cache = device.alloc_kv(&config)?;
    let layer = &mut cache.layers[0];
    let (q, k, v) = (numbers(TOKENS * QUERY, 0.37), numbers(TOKENS * KEY, 0.73), numbers(TOKENS * KEY, 0.11));
    let mut outputs = Vec::new();
    for start in (0..TOKENS).step_by(chunk) {
        let end = (start + chunk).min(TOKENS);
        let (new, pages) = (end - start, end.div_ceil(page_size) as u32);
        let table = PageTable { page_size, indptr: vec![0, pages], pages: (0..pages).collect() };
        // The keys count the new tokens too.
        let layout = Arc::new(BatchLayout::paged(vec![0, new as u32], vec![end as u32], table)?);
        let plan = device.plan_attention(&params, &layout, None)?;
        let queries = device.upload(HostTensor::f32(&[new, 4, DIM], &q[start * QUERY..end * QUERY])?)?;
        let keys = device.upload(HostTensor::f32(&[new, 2, DIM], &k[start * KEY..end * KEY])?)?;
        let values = device.upload(HostTensor::f32(&[new, 2, DIM], &v[start * KEY..end * KEY])?)?;
        device.append_kv(&plan, TokenView::ragged(&keys)?, TokenView::ragged(&values)?, layer)?;
        let mut out = device.alloc(&[new, 4, DIM], DType::F32)?;
        device.attention(&plan, TokenView::ragged(&queries)?, Kv::Paged(layer), &mut out, None)?;
        outputs.extend(device.download(&out)?);
    }
    Ok(outputs)
}

fn main() -> tilewise::Result<()> {
    let device = tilewise::open("cpu", None)?;
    let at_once = by_chunks(&*device, TOKENS)?;
    for chunk in [1, 7, 16] {
        let outputs = by_chunks(&*device, chunk)?;
        assert!(outputs.iter().zip(&at_once).all(|(a, b)| a.to_bits() == b.to_bits()), "chunks of {chunk}");
    }
    println!("{TOKENS} tokens: the same bits at once, by 16, by 7 and one by one");
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
