//! Where finished rows go.

use super::super::buffer::{SharedMut, elements_mut, f32s_mut};
use super::super::simd::{Kernel, LANES, Narrow, Simd};
use super::fold::Scratch;
use super::item::{Item, Place};
use crate::checks;
use crate::plan::MergeItem;
use crate::softmax::{lse, merge_row};
use crate::{AttentionPlan, DType, Error, Result, SoftmaxState, Tensor};

enum Elements {
    F32(SharedMut<f32>),
    F16(SharedMut<half::f16>),
    Bf16(SharedMut<half::bf16>),
}

/// The outputs of a launch, written by many threads, each its own rows.
pub(super) struct Output<'a> {
    out: Elements,
    lse: Option<SharedMut<f32>>,
    workspace: SharedMut<f32>,
    /// Elements between tokens and heads in units of one head's row, and, for dense outputs, between sequences.
    token_stride: usize,
    head_stride: usize,
    batch_stride: Option<usize>,
    borrowed: std::marker::PhantomData<&'a mut Tensor>,
}

impl<'a> Output<'a> {
    pub(super) fn new(
        plan: &AttentionPlan,
        out: &'a mut Tensor,
        lse: Option<&'a mut Tensor>,
        workspace: &'a mut [f32],
    ) -> Result<Self> {
        let dense = checks::attention_outputs(plan, out, lse.as_deref())?;
        let heads = plan.params.num_qo_heads;
        let tokens = if dense { out.shape()[2] } else { 0 };
        Ok(Self {
            out: match out.dtype() {
                DType::F32 => Elements::F32(SharedMut::new(elements_mut(out)?)),
                DType::F16 => Elements::F16(SharedMut::new(elements_mut(out)?)),
                DType::Bf16 => Elements::Bf16(SharedMut::new(elements_mut(out)?)),
                DType::U32 => return Err(Error::unsupported("attention", "u32 outputs")),
            },
            lse: lse.map(|lse| f32s_mut("attention lse", lse)).transpose()?.map(SharedMut::new),
            workspace: SharedMut::new(workspace),
            token_stride: if dense { 1 } else { heads },
            head_stride: if dense { tokens } else { 1 },
            batch_stride: dense.then_some(heads * tokens),
            borrowed: std::marker::PhantomData,
        })
    }

    /// Writes the item's rows, or their states if the item has only some of their keys.
    #[inline(always)]
    fn store<S: Simd>(&self, simd: S, plan: &AttentionPlan, item: &Item<'_>, scratch: &Scratch) {
        for tile in item.tiles() {
            for row in tile.clone() {
                let (max, sum, panels) = scratch.finished(item, &tile, row);
                let place = item.place(row);
                if let Some(at) = place.partial {
                    let dim = item.params.value_dim;
                    // SAFETY: the plan gives every item its own part of the workspace.
                    let state = unsafe { self.workspace.get(at, dim + 2) };
                    state[0] = max;
                    state[1] = sum;
                    for (to, panel) in state[2..].chunks_mut(LANES).zip(panels) {
                        to.copy_from_slice(&panel[..to.len()]);
                    }
                } else {
                    self.finish(simd, plan, &place, (max, sum), panels);
                }
            }
        }
    }

    /// Writes one row from its state.
    #[inline(always)]
    pub(super) fn store_state<S: Simd>(
        &self,
        simd: S,
        plan: &AttentionPlan,
        item: &Item<'_>,
        row: usize,
        state: &SoftmaxState,
    ) {
        self.finish(simd, plan, &item.place(row), (state.max, state.sum), state.out.chunks(LANES));
    }

    /// Normalises a row, given by panels, and writes it and its lse.
    #[inline(always)]
    fn finish<'p, S: Simd>(
        &self,
        simd: S,
        plan: &AttentionPlan,
        &Place { sequence, query, head, .. }: &Place,
        (max, sum): (f32, f32),
        panels: impl Iterator<Item = &'p [f32]>,
    ) {
        let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        let first = plan.layout.qo_indptr()[sequence] as usize;
        let start = self.batch_stride.map_or(first * self.token_stride, |stride| sequence * stride);
        let index = start + query * self.token_stride + head * self.head_stride;
        let len = plan.params.value_dim;
        let at = index * len;
        // SAFETY: every query and head is one row of one item or merge, so no two threads write the same row.
        unsafe {
            match &self.out {
                Elements::F32(out) => write(simd, panels, scale, out.get(at, len)),
                Elements::F16(out) => write(simd, panels, scale, out.get(at, len)),
                Elements::Bf16(out) => write(simd, panels, scale, out.get(at, len)),
            }
            if let Some(lses) = &self.lse {
                lses.get(index, 1)[0] = lse(max, sum);
            }
        }
    }
}

/// Writes an item's rows, or their states if the item has only some of their keys.
pub(super) struct Store<'a> {
    pub output: &'a Output<'a>,
    pub plan: &'a AttentionPlan,
    pub item: &'a Item<'a>,
    pub scratch: &'a Scratch,
}

impl Kernel for Store<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.output.store(simd, self.plan, self.item, self.scratch);
    }
}

/// Merges the states of all rows of a head in the order of their chunks, and writes the rows.
pub(super) struct Merge<'a> {
    pub output: &'a Output<'a>,
    pub plan: &'a AttentionPlan,
    pub merge: &'a MergeItem,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { output, plan, merge } = self;
        let dim = plan.params.value_dim;
        let group = plan.params.group_size();
        let rows = plan.layout.num_queries(merge.sequence) * group;
        for row in 0..rows {
            let at = |chunk: usize| merge.first_partial + (chunk * rows + row) * (dim + 2);
            // SAFETY: all items are done, and no other merge has these rows.
            let own = unsafe { output.workspace.get(at(0), dim + 2) };
            let (scalars, out) = own.split_at_mut(2);
            let (max, sum) = scalars.split_at_mut(1);
            for chunk in 1..merge.chunks {
                // SAFETY: as above; another chunk's part.
                let other = unsafe { output.workspace.get(at(chunk), dim + 2) };
                merge_row((&mut max[0], &mut sum[0], out), (other[0], other[1], &other[2..]));
            }
            let (query, head) = (row / group, merge.kv_head * group + row % group);
            let place = Place { sequence: merge.sequence, query, head, partial: None };
            output.finish(simd, plan, &place, (max[0], sum[0]), out.chunks(LANES));
        }
    }
}

/// Writes a row, given by panels, times `scale`.
#[inline(always)]
fn write<'p, S: Simd, T: Narrow>(
    simd: S,
    panels: impl Iterator<Item = &'p [f32]>,
    scale: f32,
    out: &mut [T],
) {
    let scale = simd.splat(scale);
    for (to, panel) in out.chunks_mut(LANES).zip(panels) {
        // SAFETY: both branches pass sixteen elements.
        unsafe {
            if to.len() == LANES && panel.len() == LANES {
                T::store(simd, simd.mul(simd.load(panel.as_ptr()), scale), to.as_mut_ptr());
            } else {
                let mut lanes = [0.0; LANES];
                lanes[..to.len()].copy_from_slice(&panel[..to.len()]);
                let mut narrow = [T::zeroed(); LANES];
                T::store(simd, simd.mul(simd.load(lanes.as_ptr()), scale), narrow.as_mut_ptr());
                to.copy_from_slice(&narrow[..to.len()]);
            }
        }
    }
}
