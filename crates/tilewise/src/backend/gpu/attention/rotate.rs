//! Norms, rotation and storing of a layer's new heads in one launch.

use super::super::context::Context;
use super::super::memory::gpu;
use super::super::pipeline::Specialisation;
use super::super::rows::{Args, f32_only, spread};
use super::{Pages, page_type, resident};
use crate::{AttentionPlan, DType, KvCacheConfig, KvLayer, Result, RotaryHeads, Tensor};

/// See [`crate::Device::append_rotated`], whose arguments were checked.
pub(in super::super) fn append(
    context: &Context,
    plan: &AttentionPlan,
    x: &Tensor,
    heads: &RotaryHeads<'_>,
    layer: &KvLayer,
) -> Result<()> {
    let resident = resident::of(plan)?;
    let tokens = plan.layout.total_queries();
    let (keys, values) = (Pages::of(&layer.keys)?, Pages::of(&layer.values)?);
    let kernel = kernel(heads.norms.is_some(), &layer.config, layer.keys.dtype());
    let mut q_heads = heads.queries.num_heads;
    for ((own, keys), (_, values)) in keys.parts.iter().zip(&values.parts) {
        let count = tokens * (q_heads + 2 * own.len());
        let args = Args::default()
            .numbers(&[count, q_heads, own.len(), own.start, x.row_len()])
            .numbers(&[heads.queries.offset, heads.keys.offset, heads.values.offset])
            .numbers(&[heads.table.row_len() / 2, resident.tokens_at])
            .float(heads.eps);
        let table = f32_only("append_rotated", heads.table)?;
        let mut buffers = vec![
            f32_only("append_rotated", x)?,
            &resident.buffer,
            keys,
            values,
            table,
            gpu(heads.positions)?,
        ];
        if let Some((queries, keys)) = heads.norms {
            buffers.extend([f32_only("append_rotated", queries)?, f32_only("append_rotated", keys)?]);
        }
        context.run(kernel.clone(), &buffers, &args, spread(count))?;
        // Queries go with the first part.
        q_heads = 0;
    }
    Ok(())
}

/// The kernel for pages of a shape and type.
fn kernel(normed: bool, pages: &KvCacheConfig, stored: DType) -> Specialisation {
    let kernel = Specialisation::new("rotate", include_str!("rotate.wgsl"))
        .set("D", pages.head_dim)
        .set("DV", pages.value_dim)
        .set("PAGE", pages.page_size)
        .set("NORMED", u32::from(normed));
    page_type(kernel, stored)
}

#[cfg(test)]
pub(super) fn samples() -> Vec<Specialisation> {
    let pages = |dtype| KvCacheConfig {
        num_layers: 1,
        num_pages: 4,
        page_size: 32,
        num_kv_heads: 2,
        head_dim: 128,
        value_dim: 128,
        dtype,
    };
    let all =
        [DType::F32, DType::F16, DType::Bf16].map(|dtype| kernel(dtype != DType::F16, &pages(dtype), dtype));
    all.into()
}
