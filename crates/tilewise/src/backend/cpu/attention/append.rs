//! Writing keys and values into pages.

use super::super::buffer::{SharedMut, elements_mut, f32s};
use super::super::simd::{LANES, PairedBf16, paired};
use super::super::threads::Pool;
use super::value_row;
use crate::checks;
use crate::{AttentionPlan, DType, Error, KvLayer, Result, TokenView};

/// An element type that f32 narrows to, and where a lane of sixteen is stored.
trait Narrow: bytemuck::Pod + Send + Sync {
    fn narrow(x: f32) -> Self;

    fn place(lane: usize) -> usize {
        lane
    }
}

impl Narrow for f32 {
    fn narrow(x: f32) -> Self {
        x
    }
}

impl Narrow for half::f16 {
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
}

impl Narrow for PairedBf16 {
    fn narrow(x: f32) -> Self {
        Self(half::bf16::from_f32(x).to_bits())
    }

    fn place(lane: usize) -> usize {
        paired(lane)
    }
}

/// Writes a batch's new keys and values; see [`crate::Device::append_kv`].
pub(in super::super) fn append_kv(
    pool: &Pool,
    plan: &AttentionPlan,
    keys: TokenView<'_>,
    values: TokenView<'_>,
    layer: &mut KvLayer,
) -> Result<()> {
    checks::append(plan, &keys, &values, layer, value_row(plan.params.value_dim))?;
    match layer.config.dtype {
        DType::F32 => typed::<f32>(pool, plan, keys, values, layer),
        DType::F16 => typed::<half::f16>(pool, plan, keys, values, layer),
        DType::Bf16 => typed::<PairedBf16>(pool, plan, keys, values, layer),
        DType::U32 => Err(Error::unsupported("append_kv", "u32 pages")),
    }
}

fn typed<T: Narrow>(
    pool: &Pool,
    plan: &AttentionPlan,
    new_keys: TokenView<'_>,
    new_values: TokenView<'_>,
    layer: &mut KvLayer,
) -> Result<()> {
    let config = layer.config;
    let value_row = value_row(config.value_dim);
    let (k, v) = (f32s("append_kv", new_keys.tensor)?, f32s("append_kv", new_values.tensor)?);
    let key_pages = SharedMut::new(elements_mut::<T>(&mut layer.keys)?);
    let value_pages = SharedMut::new(elements_mut::<T>(&mut layer.values)?);
    // A sequence's head is one item: two sequences never share a page that is written to.
    pool.run(plan.layout.num_sequences() * config.num_kv_heads, &|_, item| {
        let (sequence, head) = (item / config.num_kv_heads, item % config.num_kv_heads);
        let queries = plan.layout.num_queries(sequence);
        let first_token = plan.layout.qo_indptr()[sequence] as usize;
        let first_position = plan.layout.num_keys(sequence) - queries;
        let pages = plan.layout.pages(sequence);
        let from = |view: &TokenView<'_>, token| {
            view.start(sequence, first_token) + token * view.token_stride + head * view.head_stride
        };
        for token in 0..queries {
            let position = first_position + token;
            let page = pages[position / config.page_size] as usize * config.num_kv_heads + head;
            let slot = position % config.page_size;
            let panel = page * config.page_size * config.head_dim + slot / LANES * LANES * config.head_dim;
            let values = config.page_size * value_row;
            // SAFETY: `checks::append` found the page inside the tensor; this item alone writes this head of it.
            let (panel, values) = unsafe {
                (key_pages.get(panel, LANES * config.head_dim), value_pages.get(page * values, values))
            };
            let lane = T::place(slot % LANES);
            for (d, x) in k[from(&new_keys, token)..][..config.head_dim].iter().enumerate() {
                panel[d * LANES + lane] = T::narrow(*x);
            }
            for (d, x) in v[from(&new_values, token)..][..config.value_dim].iter().enumerate() {
                let row = (d / LANES * config.page_size + slot) * LANES;
                values[row + T::place(d % LANES)] = T::narrow(*x);
            }
        }
    });
    Ok(())
}
