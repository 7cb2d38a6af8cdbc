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
    let in_registers = keeps_in_registers(x, heads);
    let kernel = kernel(in_registers, heads.norms.is_some(), &layer.config, layer.keys.dtype());
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
        let groups = if in_registers { count.div_ceil(HEADS) } else { count };
        context.run(kernel.clone(), &buffers, &args, spread(groups))?;
        // Queries go with the first part.
        q_heads = 0;
    }
    Ok(())
}

/// Heads of a work group that has them in registers.
const HEADS: usize = 4;

/// Whether threads have all that they need of heads: pairs that are a multiple of 64 elements apart, and rows that can be
/// read two elements at a time.
fn keeps_in_registers(x: &Tensor, heads: &RotaryHeads<'_>) -> bool {
    let dim = heads.queries.head_dim;
    let starts = [x.row_len(), heads.queries.offset, heads.keys.offset, heads.values.offset];
    dim.is_multiple_of(128)
        && dim <= 512
        && heads.table.row_len() == dim
        && heads.values.head_dim == dim
        && starts.iter().all(|start| start.is_multiple_of(2))
}

/// The kernel for pages of a shape and type.
fn kernel(in_registers: bool, normed: bool, pages: &KvCacheConfig, stored: DType) -> Specialisation {
    let kernel = if in_registers {
        Specialisation::new("rotate-registers", IN_REGISTERS)
            .set("X", "vec2<f32>")
            .set("HEADS", HEADS)
            .set("PAIRS", pages.head_dim / 64)
    } else {
        Specialisation::new("rotate-staged", STAGED).set("X", "f32")
    };
    let kernel = kernel
        .set("D", pages.head_dim)
        .set("DV", pages.value_dim)
        .set("PAGE", pages.page_size)
        .set("NORMED", u32::from(normed));
    page_type(kernel, stored)
}

const IN_REGISTERS: &str = concat!(include_str!("rotate.wgsl"), include_str!("rotate_registers.wgsl"));

const STAGED: &str = concat!(include_str!("rotate.wgsl"), include_str!("rotate_staged.wgsl"));

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
    let of = |in_registers, dtype| kernel(in_registers, dtype != DType::F16, &pages(dtype), dtype);
    [false, true]
        .into_iter()
        .flat_map(|in_registers| [DType::F32, DType::F16, DType::Bf16].map(|dtype| of(in_registers, dtype)))
        .collect()
}
