//! A dense batch `[batch, heads, tokens, head_dim]`, as frameworks lay it out, against the scalar reference.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use tilewise::{AttentionParams, BatchLayout, DType, HostTensor, Kv, Mask, TokenView, reference};

const BATCH: usize = 2;
const HEADS: usize = 3;
const TOKENS: usize = 20;
const DIM: usize = 32;

/// Some numbers between -1 and 1.
fn numbers(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * step).sin()).collect()
}

fn main() -> tilewise::Result<()> {
    let device = tilewise::open("cpu", None)?;
    let params = AttentionParams::new(HEADS, HEADS, DIM).mask(Mask::Full);
    let layout = Arc::new(BatchLayout::dense(BATCH, TOKENS, TOKENS)?);
    let plan = device.plan_attention(&params, &layout, None)?;

    let shape = [BATCH, HEADS, TOKENS, DIM];
    let [q, k, v] = [0.37, 0.73, 0.11].map(|step| numbers(shape.iter().product(), step));
    let (queries, keys, values) = (
        device.upload(HostTensor::f32(&shape, &q)?)?,
        device.upload(HostTensor::f32(&shape, &k)?)?,
        device.upload(HostTensor::f32(&shape, &v)?)?,
    );
    let mut out = device.alloc(&shape, DType::F32)?;
    let kv = Kv::Contiguous { keys: TokenView::dense(&keys)?, values: TokenView::dense(&values)? };
    device.attention(&plan, TokenView::dense(&queries)?, kv, &mut out, None)?;

    let (out, head) = (device.download(&out)?, TOKENS * DIM);
    let mut worst = 0f32;
    for (row, got) in out.chunks_exact(DIM).enumerate() {
        // The row's head has its keys and values in one piece.
        let start = row / TOKENS * head;
        let (k, v) = (&k[start..start + head], &v[start..start + head]);
        let want = reference::attention_row(&params, &q[row * DIM..][..DIM], k, v, 0..TOKENS);
        let differences = got.iter().zip(&want.out).map(|(got, want_out)| (got - want_out / want.sum).abs());
        worst = differences.fold(worst, f32::max);
    }
    assert!(worst < 1e-5);
    println!("{} rows, at most {worst:.1e} from the reference", out.len() / DIM);
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
