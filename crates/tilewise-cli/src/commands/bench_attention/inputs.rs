//! Random queries, keys and values, on the host and on the device.

use std::sync::Arc;

use half::{bf16, f16};
use tilewise::{
    AttentionPlan, BatchLayout, DType, Device, HostTensor, Kv, KvCacheConfig, KvLayer, PageTable, Tensor,
    TokenView,
};

use super::super::shape::Shape;
use crate::args::Layout;
use crate::error::CliError;

/// Values as the kernels see them: rounded to their type, then widened.
pub(super) struct HostInputs {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
}

/// Inputs of one shape.
pub(super) struct Inputs {
    pub(super) shape: Shape,
    pub(super) layout: Arc<BatchLayout>,
    pub(super) host: HostInputs,
    q: Tensor,
    kv: Stored,
}

enum Stored {
    Contiguous { keys: Tensor, values: Tensor },
    Paged(KvLayer),
}

impl Inputs {
    pub(super) fn new(device: &dyn Device, shape: &Shape) -> Result<Self, CliError> {
        let (params, Shape { batch, q_len, kv_len, .. }) = (&shape.params, shape);
        let queries = batch * params.num_qo_heads * q_len * params.head_dim;
        let keys = batch * params.num_kv_heads * kv_len * params.head_dim;
        let mut host = HostInputs {
            q: random(1, queries, params.q_dtype),
            k: random(2, keys, params.kv_dtype),
            v: random(3, keys, params.kv_dtype),
        };
        share(shape, &mut host.k);
        share(shape, &mut host.v);
        let q = upload(device, &axes(shape, params.num_qo_heads, *q_len), params.q_dtype, &host.q)?;
        let kv_axes = axes(shape, params.num_kv_heads, *kv_len);
        let paged = shape.layout == Layout::Paged;
        let kv_dtype = if paged { DType::F32 } else { params.kv_dtype };
        let keys = upload(device, &kv_axes, kv_dtype, &host.k)?;
        let values = upload(device, &kv_axes, kv_dtype, &host.v)?;
        let (layout, kv) = match paged {
            false => (BatchLayout::dense(*batch, *q_len, *kv_len)?, Stored::Contiguous { keys, values }),
            true => (
                paged_layout(shape, *q_len, shape.shared_prefix)?,
                Stored::Paged(fill_pages(device, shape, &keys, &values)?),
            ),
        };
        Ok(Self { shape: shape.clone(), layout: Arc::new(layout), host, q, kv })
    }

    pub(super) fn attend(
        &self,
        device: &dyn Device,
        plan: &AttentionPlan,
        out: &mut Tensor,
    ) -> Result<(), CliError> {
        let dense = self.shape.layout == Layout::Dense;
        let view = |tensor| if dense { TokenView::dense(tensor) } else { TokenView::ragged(tensor) };
        let kv = match &self.kv {
            Stored::Paged(layer) => Kv::Paged(layer),
            Stored::Contiguous { keys, values } => {
                Kv::Contiguous { keys: view(keys)?, values: view(values)? }
            }
        };
        Ok(device.attention(plan, view(&self.q)?, kv, out, None)?)
    }

    /// The shape of the output, and of the queries where values are as wide.
    pub(super) fn out_axes(&self) -> Vec<usize> {
        axes(&self.shape, self.shape.params.num_qo_heads, self.shape.q_len)
    }
}

/// Gives all sequences the first keys or values of the first one, as many as they share.
fn share(shape: &Shape, vectors: &mut [f32]) {
    let token = shape.params.num_kv_heads * shape.params.head_dim;
    let (first, others) = vectors.split_at_mut(shape.kv_len * token);
    for other in others.chunks_mut(shape.kv_len * token) {
        other[..shape.shared_prefix * token].copy_from_slice(&first[..shape.shared_prefix * token]);
    }
}

/// `[batch, heads, tokens, head_dim]`, or `[batch * tokens, heads, head_dim]`.
fn axes(shape: &Shape, heads: usize, tokens: usize) -> Vec<usize> {
    match shape.layout {
        Layout::Dense => vec![shape.batch, heads, tokens, shape.params.head_dim],
        Layout::Ragged | Layout::Paged => vec![shape.batch * tokens, heads, shape.params.head_dim],
    }
}

/// The last `new_tokens` of each sequence are new; its pages are spread over the pool, as after long use, but for those of
/// the first `shared` tokens, which are the first sequence's.
fn paged_layout(shape: &Shape, new_tokens: usize, shared: usize) -> Result<BatchLayout, CliError> {
    let per_sequence = shape.kv_len.div_ceil(shape.page_size);
    let row = |sequence: usize, each: usize| (sequence * each) as u32;
    let pages = (0..shape.batch).flat_map(|sequence| {
        (0..per_sequence).map(move |page| {
            let owner = if page < shared / shape.page_size { 0 } else { sequence };
            (page * shape.batch + (owner + page) % shape.batch) as u32
        })
    });
    let table = PageTable {
        page_size: shape.page_size,
        indptr: (0..=shape.batch).map(|sequence| row(sequence, per_sequence)).collect(),
        pages: pages.collect(),
    };
    let qo_indptr = (0..=shape.batch).map(|sequence| row(sequence, new_tokens)).collect();
    Ok(BatchLayout::paged(qo_indptr, vec![shape.kv_len as u32; shape.batch], table)?)
}

fn fill_pages(
    device: &dyn Device,
    shape: &Shape,
    keys: &Tensor,
    values: &Tensor,
) -> Result<KvLayer, CliError> {
    let params = &shape.params;
    let config = KvCacheConfig {
        num_layers: 1,
        num_pages: shape.batch * shape.kv_len.div_ceil(shape.page_size),
        page_size: shape.page_size,
        num_kv_heads: params.num_kv_heads,
        head_dim: params.head_dim,
        value_dim: params.value_dim,
        dtype: params.kv_dtype,
    };
    let missing = || CliError::Failed("the device made a cache without a layer".to_owned());
    let mut layer = device.alloc_kv(&config)?.layers.pop().ok_or_else(missing)?;
    // Each writes all its own pages: none may be written by two.
    let plan = device.plan_attention(params, &Arc::new(paged_layout(shape, shape.kv_len, 0)?), None)?;
    device.append_kv(&plan, TokenView::ragged(keys)?, TokenView::ragged(values)?, &mut layer)?;
    Ok(layer)
}

fn upload(device: &dyn Device, axes: &[usize], dtype: DType, values: &[f32]) -> Result<Tensor, CliError> {
    let bytes: Vec<u8> = match dtype {
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_ne_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_ne_bytes()).collect(),
        _ => return Ok(device.upload(HostTensor::f32(axes, values)?)?),
    };
    Ok(device.upload(HostTensor::new(axes, dtype, &bytes)?)?)
}

/// Numbers of mean 0 and variance 1, nearly normal, rounded to `dtype`.
fn random(seed: u64, len: usize, dtype: DType) -> Vec<f32> {
    let value = |index: u64| {
        let mut x = (seed << 56 ^ index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        x ^= x >> 32;
        let sum: u64 = (0..4).map(|part| (x >> (16 * part)) & 0xffff).sum();
        (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
    };
    let round = |x: f32| match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        _ => x,
    };
    (0..len as u64).map(|index| round(value(index))).collect()
}
