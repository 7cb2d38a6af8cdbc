//! A ragged batch: sequences of different lengths in one launch.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use tilewise::{AttentionParams, BatchLayout, DType, HostTensor, Kv, TokenView};

fn main() -> tilewise::Result<()> {
    let device = tilewise::open("cpu", None)?;
    // Two sequences with 3 and 1 new tokens, which see 3 and 5 keys; 4 query heads over 2 KV heads of 64.
    let layout = Arc::new(BatchLayout::ragged(vec![0, 3, 4], vec![3, 5])?);
    let plan = device.plan_attention(&AttentionParams::new(4, 2, 64), &layout, None)?;

    let q = device.upload(HostTensor::f32(&[4, 4, 64], &[0.5; 4 * 4 * 64])?)?;
    let k = device.upload(HostTensor::f32(&[8, 2, 64], &[0.1; 8 * 2 * 64])?)?;
    let v = device.upload(HostTensor::f32(&[8, 2, 64], &[2.0; 8 * 2 * 64])?)?;
    let mut out = device.alloc(&[4, 4, 64], DType::F32)?;
    let kv = Kv::Contiguous { keys: TokenView::ragged(&k)?, values: TokenView::ragged(&v)? };
    device.attention(&plan, TokenView::ragged(&q)?, kv, &mut out, None)?;

    // All values are 2, and so is every weighted mean of them.
    let out = device.download(&out)?;
    assert!(out.iter().all(|x| (x - 2.0).abs() < 1e-6));
    println!("{} outputs, all 2", out.len());
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
