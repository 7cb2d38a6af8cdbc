//! The plan of one attention launch: made once per batch, run once per layer.

use std::ops::Range;
use std::sync::Arc;

use crate::dispatch::{DispatchPolicy, Regime, Split};
use crate::{AttentionParams, BatchLayout, DeviceBuffer, Result};

/// A row of attention is a merge, in order, of chunks of this many keys at absolute positions. Every kernel
/// keeps to it, so that the number of queries computed together cannot change a row.
pub const KV_CHUNK: usize = 1024;

/// Inside a chunk, the running maximum is looked at once per block of this many keys at absolute positions.
pub const KV_BLOCK: usize = 128;

/// Under [`Split::Keys`], neighbouring KV heads share an item as long as the launch keeps this many items: their
/// pages lie beside each other, and long contiguous reads are faster.
const SPLIT_ITEMS: usize = 32;

/// Some queries of some KV heads of one sequence, with the keys of some chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkItem {
    /// Index in the device's table of kernels.
    pub kernel: usize,
    /// The sequence.
    pub sequence: usize,
    /// The KV heads; all query heads that read one are computed together.
    pub kv_heads: Range<usize>,
    /// Queries, counted within the sequence.
    pub queries: Range<usize>,
    /// Keys that at least one of the queries sees, clipped to the item's chunk if it is one of several.
    pub keys: Range<usize>,
    /// Where in the workspace the first head's partial states go, in elements; `None` if the item finishes its rows.
    pub partial: Option<usize>,
    /// Elements between the partial states of two heads.
    pub partial_stride: usize,
}

/// Partial states of all rows of one KV head of one sequence, to be merged in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeItem {
    /// The sequence.
    pub sequence: usize,
    /// The KV head.
    pub kv_head: usize,
    /// Where in the workspace the first chunk's states are, in elements.
    pub first_partial: usize,
    /// The number of chunks; their states follow each other.
    pub chunks: usize,
}

/// How a device wants its work cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Rows (queries times group size) of an item under [`Split::Queries`] at most.
    pub rows: usize,
    /// Whether neighbouring KV heads may share an item under [`Split::Keys`].
    pub join_heads: bool,
}

/// A device's own copy of a plan.
#[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "only GPUs have memory of their own"))]
#[derive(Clone)]
pub(crate) struct Resident(pub(crate) Arc<dyn DeviceBuffer>);

impl std::fmt::Debug for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resident")
    }
}

/// What an attention launch will do. Plain data, which only [`partition`] makes: kernels rely on it.
#[derive(Debug, Clone)]
pub struct AttentionPlan {
    /// The layer's arithmetic.
    pub(crate) params: AttentionParams,
    /// The batch.
    pub(crate) layout: Arc<BatchLayout>,
    /// The kernel of the sequence with the most work, by name.
    pub(crate) kernel: &'static str,
    /// In the order in which they are handed out: heaviest first.
    pub(crate) work: Vec<WorkItem>,
    /// What follows when all work is done.
    pub(crate) merges: Vec<MergeItem>,
    /// Elements of f32 workspace for partial states.
    pub(crate) workspace: usize,
    /// The same in the device's memory, where kernels read it there.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "only GPUs have memory of their own"))]
    pub(crate) resident: Option<Resident>,
}

/// Divides a batch into independent work items. Pure: no device, no thread count.
///
/// # Errors
/// As [`AttentionParams::validate`] and [`DispatchPolicy::choose`].
pub fn partition(
    params: &AttentionParams,
    layout: &Arc<BatchLayout>,
    policy: &DispatchPolicy,
    forced: Option<&str>,
    tiling: Tiling,
) -> Result<AttentionPlan> {
    params.validate()?;
    let mut plan = AttentionPlan {
        params: params.clone(),
        layout: layout.clone(),
        kernel: policy.kernels.first().map_or("", |kernel| kernel.name),
        work: Vec::new(),
        merges: Vec::new(),
        workspace: 0,
        resident: None,
    };
    let mut choices = Vec::with_capacity(layout.num_sequences());
    let (mut most, mut split_units) = (0, 0);
    let paged = layout.page_table().is_some();
    for sequence in 0..layout.num_sequences() {
        let regime =
            Regime { num_queries: layout.num_queries(sequence), num_keys: layout.num_keys(sequence), paged };
        if regime.num_queries == 0 {
            continue;
        }
        let choice = policy.choose(params, &regime, forced)?;
        if regime.num_queries * regime.num_keys >= most {
            most = regime.num_queries * regime.num_keys;
            plan.kernel = policy.kernels[choice.kernel].name;
        }
        if policy.kernels[choice.kernel].split == Split::Keys {
            split_units += regime.num_keys.div_ceil(KV_CHUNK) * params.num_kv_heads;
        }
        choices.push((sequence, regime, choice.kernel));
    }
    let most_heads = if tiling.join_heads { params.num_kv_heads } else { 1 };
    let heads_together = (split_units / SPLIT_ITEMS).clamp(1, most_heads);
    for (sequence, regime, kernel) in choices {
        match policy.kernels[kernel].split {
            Split::Queries => plan.split_queries(kernel, sequence, regime, tiling.rows),
            Split::Keys => plan.split_keys(kernel, sequence, regime, heads_together),
        }
    }
    plan.work
        .sort_by_key(|item| std::cmp::Reverse(item.queries.len() * item.keys.len() * item.kv_heads.len()));
    Ok(plan)
}

impl AttentionPlan {
    /// The layer's arithmetic.
    pub fn params(&self) -> &AttentionParams {
        &self.params
    }

    /// The batch.
    pub fn layout(&self) -> &BatchLayout {
        &self.layout
    }

    /// The kernel of the sequence with the most work.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// The work items, heaviest first.
    pub fn work(&self) -> &[WorkItem] {
        &self.work
    }

    fn split_queries(&mut self, kernel: usize, sequence: usize, regime: Regime, tile_rows: usize) {
        let tile = (tile_rows / self.params.group_size()).max(1);
        let tiles = regime.num_queries.div_ceil(tile);
        for index in 0..tiles {
            let queries = index * regime.num_queries / tiles..(index + 1) * regime.num_queries / tiles;
            let keys = self.visible(&queries, regime);
            for kv_head in 0..self.params.num_kv_heads {
                let (queries, keys, kv_heads) = (queries.clone(), keys.clone(), kv_head..kv_head + 1);
                let (partial, partial_stride) = (None, 0);
                self.work.push(WorkItem {
                    kernel,
                    sequence,
                    kv_heads,
                    queries,
                    keys,
                    partial,
                    partial_stride,
                });
            }
        }
    }

    fn split_keys(&mut self, kernel: usize, sequence: usize, regime: Regime, heads_together: usize) {
        let queries = 0..regime.num_queries;
        let keys = self.visible(&queries, regime);
        let first_chunk = keys.start / KV_CHUNK;
        let chunks = (keys.end.div_ceil(KV_CHUNK)).saturating_sub(first_chunk).max(1);
        let states = queries.len() * self.params.group_size() * (self.params.value_dim + 2);
        let partial_stride = if chunks > 1 { chunks * states } else { 0 };
        let (num_kv_heads, workspace) = (self.params.num_kv_heads, self.workspace);
        self.workspace += num_kv_heads * partial_stride;
        for first_head in (0..num_kv_heads).step_by(heads_together) {
            let first_partial = workspace + first_head * partial_stride;
            for chunk in 0..chunks {
                let start = (first_chunk + chunk) * KV_CHUNK;
                self.work.push(WorkItem {
                    kernel,
                    sequence,
                    kv_heads: first_head..num_kv_heads.min(first_head + heads_together),
                    queries: queries.clone(),
                    keys: keys.start.max(start)..keys.end.min(start + KV_CHUNK),
                    partial: (chunks > 1).then_some(first_partial + chunk * states),
                    partial_stride,
                });
            }
        }
        if chunks > 1 {
            self.merges.extend((0..num_kv_heads).map(|kv_head| MergeItem {
                sequence,
                kv_head,
                first_partial: workspace + kv_head * partial_stride,
                chunks,
            }));
        }
    }

    /// The keys that at least one of `queries` sees.
    fn visible(&self, queries: &Range<usize>, regime: Regime) -> Range<usize> {
        let mut all: Option<Range<usize>> = None;
        for query in queries.clone() {
            let keys = self.params.mask.visible(query, regime.num_queries, regime.num_keys);
            if !keys.is_empty() {
                let hull = all.unwrap_or_else(|| keys.clone());
                all = Some(hull.start.min(keys.start)..hull.end.max(keys.end));
            }
        }
        all.unwrap_or(0..0)
    }
}
