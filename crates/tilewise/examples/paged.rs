//! Keys and values in pages, as a server keeps them: which pages they are in changes no bit of the output.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use tilewise::{
    AttentionParams, BatchLayout, DType, Device, HostTensor, Kv, KvCacheConfig, PageTable, TokenView,
};

const PAGE: usize = 16;
const TOKENS: usize = 40;
const DIM: usize = 64;

/// Some numbers between -1 and 1.
fn numbers(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * step).sin()).collect()
}

/// Causal attention of 40 tokens, 4 query heads over 2 KV heads, whose keys are put into these pages.
fn through_pages(device: &dyn Device, pages: [u32; 3]) -> tilewise::Result<Vec<f32>> {
    let config = KvCacheConfig {
        num_layers: 1,
        num_pages: 8,
        page_size: PAGE,
        num_kv_heads: 2,
        head_dim: DIM,
        value_dim: DIM,
        dtype: DType::F32,
    };
    let mut cache = device.alloc_kv(&config)?;
    let table = PageTable { page_size: PAGE, indptr: vec![0, 3], pages: pages.to_vec() };
    let layout = Arc::new(BatchLayout::paged(vec![0, TOKENS as u32], vec![TOKENS as u32], table)?);
    let plan = device.plan_attention(&AttentionParams::new(4, 2, DIM), &layout, None)?;

    let q = device.upload(HostTensor::f32(&[TOKENS, 4, DIM], &numbers(TOKENS * 4 * DIM, 0.37))?)?;
    let k = device.upload(HostTensor::f32(&[TOKENS, 2, DIM], &numbers(TOKENS * 2 * DIM, 0.73))?)?;
    let v = device.upload(HostTensor::f32(&[TOKENS, 2, DIM], &numbers(TOKENS * 2 * DIM, 0.11))?)?;
    let layer = &mut cache.layers[0];
    device.append_kv(&plan, TokenView::ragged(&k)?, TokenView::ragged(&v)?, layer)?;
    let mut out = device.alloc(&[TOKENS, 4, DIM], DType::F32)?;
    device.attention(&plan, TokenView::ragged(&q)?, Kv::Paged(layer), &mut out, None)?;
    device.download(&out)
}

fn main() -> tilewise::Result<()> {
    let device = tilewise::open("cpu", None)?;
    let in_order = through_pages(&*device, [0, 1, 2])?;
    let scattered = through_pages(&*device, [5, 0, 7])?;
    assert!(in_order.iter().zip(&scattered).all(|(a, b)| a.to_bits() == b.to_bits()));
    println!("{} outputs, the same bits from pages 0 1 2 and 5 0 7", in_order.len());
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
