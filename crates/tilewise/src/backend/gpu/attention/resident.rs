//! A plan in the device's memory.

use std::ops::Range;
use std::sync::Arc;

use super::super::context::Context;
use super::super::memory::GpuBuffer;
use super::KERNELS;
use super::shape::MatrixShape;
use crate::plan::{KV_CHUNK, WorkItem};
use crate::{AttentionPlan, BatchLayout, DeviceBuffer, Error, Result, plan};

/// Where the parts of a plan are in its buffer, in words.
pub(in super::super) struct Resident {
    pub buffer: GpuBuffer,
    /// Bound where a kernel takes an output that is not asked for.
    pub unused: GpuBuffer,
    pub sequences_at: usize,
    pub pages_at: usize,
    pub items_at: usize,
    /// The items of each kernel.
    pub items: [Range<usize>; KERNELS.len()],
    pub merges_at: usize,
    pub merges: usize,
    /// The most rows that a merge has.
    pub merge_rows: usize,
    pub tokens_at: usize,
    /// How the kernels for matrix units are laid out, where these run.
    pub(super) shapes: [Option<MatrixShape>; KERNELS.len()],
}

impl DeviceBuffer for Resident {}

/// The device's copy of a plan that this backend made.
pub(super) fn of(plan: &AttentionPlan) -> Result<&Resident> {
    let found = plan.resident.as_ref().and_then(|own| (&*own.0 as &dyn std::any::Any).downcast_ref());
    found.ok_or_else(|| Error::shape("attention", "the plan was made by another device than the gpu"))
}

/// A work group of a kernel.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Tile {
    /// The most rows it takes.
    pub rows: usize,
    /// Elements of workspace that it needs from one chunk to the next.
    pub carried: usize,
    /// How its kernel is laid out, where it is one for matrix units.
    pub(super) shape: Option<MatrixShape>,
}

/// Copies a plan to the device, cut to the work groups of each kernel.
pub(in super::super) fn reside(
    context: &Arc<Context>,
    plan: &mut AttentionPlan,
    tiles: [Tile; KERNELS.len()],
) -> Result<()> {
    let mut words = sequence_words(&plan.layout);
    let sequences_at = 0;
    let pages_at = words.len();
    words.extend(plan.layout.page_table().iter().flat_map(|table| &table.pages));
    let mut items = [0..0, 0..0];
    let (mut of_items, mut workspace) = (Vec::new(), plan.workspace);
    let mut end = 0;
    for (kernel, range) in items.iter_mut().enumerate() {
        let start = end;
        for work in plan.work.iter().filter(|work| work.kernel == kernel) {
            let rows_at = row_words(plan, work, &mut words);
            end += item_words(plan, (work, rows_at), tiles[kernel], &mut workspace, &mut of_items);
        }
        *range = start..end;
    }
    let items_at = words.len();
    words.append(&mut of_items);
    plan.workspace = workspace;
    let layout = &plan.layout;
    let merges_at = words.len();
    let mut merge_rows = 0;
    let group = plan.params.group_size();
    for merge in &plan.merges {
        let own_rows = layout.num_queries(merge.sequence) * group;
        merge_rows = merge_rows.max(own_rows);
        let apart = own_rows * (plan.params.value_dim + 2);
        words.extend([merge.sequence, merge.kv_head, 0, own_rows, merge.chunks, apart].map(|n| n as u32));
        words.extend([merge.first_partial as u32 + 1, 0]);
    }
    let tokens_at = words.len();
    write_tokens(layout, &mut words);
    if plan.workspace >= u32::MAX as usize || words.len() >= u32::MAX as usize {
        let bytes = plan.workspace.saturating_mul(4);
        return Err(Error::OutOfMemory { what: "partial states of attention".to_owned(), bytes });
    }
    let buffer = GpuBuffer::new(context, || "an attention plan".to_owned(), words.len() as u64 * 4)?;
    context.write(&buffer, 0, bytemuck::cast_slice(&words))?;
    let unused = GpuBuffer::new(context, || "an attention plan".to_owned(), 4)?;
    let merges = plan.merges.len();
    plan.resident = Some(plan::Resident(Arc::new(Resident {
        buffer,
        unused,
        sequences_at,
        pages_at,
        items_at,
        items,
        merges_at,
        merges,
        merge_rows,
        tokens_at,
        shapes: tiles.map(|tile| tile.shape),
    })));
    Ok(())
}

/// What kernels need to know of each sequence.
fn sequence_words(layout: &BatchLayout) -> Vec<u32> {
    let mut words = Vec::new();
    for sequence in 0..layout.num_sequences() {
        let page_begin = layout.page_table().map_or(0, |table| table.indptr[sequence]);
        words.extend([
            sequence as u32,
            layout.qo_indptr()[sequence],
            layout.num_queries(sequence) as u32,
            layout.kv_indptr()[sequence],
            layout.num_keys(sequence) as u32,
            page_begin,
        ]);
    }
    words
}

/// Writes where each new token goes, if it goes to a page.
fn write_tokens(layout: &BatchLayout, words: &mut Vec<u32>) {
    let Some(table) = layout.page_table() else { return };
    for sequence in 0..layout.num_sequences() {
        let queries = layout.num_queries(sequence);
        let first = layout.num_keys(sequence) - queries;
        for token in 0..queries {
            let position = first + token;
            let page = layout.pages(sequence)[position / table.page_size];
            words.extend([sequence as u32, token as u32, page, (position % table.page_size) as u32]);
        }
    }
}

/// Writes what each row of a joint item is of and where its state goes. Returns one more than where that is, 0 for
/// other items.
fn row_words(plan: &AttentionPlan, work: &WorkItem, words: &mut Vec<u32>) -> usize {
    if work.sharers.is_empty() {
        return 0;
    }
    let (group, state) = (plan.params.group_size(), plan.params.value_dim + 2);
    let at = words.len() + 1;
    let first = work.partial.map(|partial| (work.sequence, work.queries.len(), partial));
    let sharers = work.sharers.iter().map(|sharer| (sharer.sequence, sharer.queries, sharer.partial));
    for (sequence, queries, partial) in first.into_iter().chain(sharers) {
        let row = |row: usize| [sequence, row / group, partial + row * state].map(|n| n as u32);
        words.extend((0..queries * group).flat_map(row));
    }
    at
}

/// Cuts a work item into tiles of rows; returns how many. `rows_at` is what [`row_words`] returned.
///
/// A tile that finishes its rows over several chunks gets room for what it carries.
fn item_words(
    plan: &AttentionPlan,
    (work, rows_at): (&WorkItem, usize),
    tile: Tile,
    workspace: &mut usize,
    words: &mut Vec<u32>,
) -> usize {
    let (group, state) = (plan.params.group_size(), plan.params.value_dim + 2);
    let all = work.queries.start * group..(work.queries.start + work.num_queries()) * group;
    let mut tiles = 0;
    for begin in all.clone().step_by(tile.rows) {
        let end = all.end.min(begin + tile.rows);
        // Items that are split over keys have all rows of their sequence: states are in their order.
        let mut partial = work.partial.map_or(0, |first| first + begin * state + 1);
        if work.partial.is_none() && work.keys.start / KV_CHUNK + 1 < work.keys.end.div_ceil(KV_CHUNK) {
            // At vectors of four.
            partial = workspace.next_multiple_of(4);
            *workspace = partial + tile.carried;
        }
        words.extend([work.sequence, work.kv_heads.start, begin, end].map(|n| n as u32));
        let rows_at = if rows_at == 0 { 0 } else { rows_at + 3 * begin };
        words.extend([work.keys.start, work.keys.end, partial, rows_at].map(|n| n as u32));
        tiles += 1;
    }
    tiles
}
