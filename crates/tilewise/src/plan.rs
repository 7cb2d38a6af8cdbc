//! The plan of one attention launch: made once per batch, run once per layer.

mod cascade;

use std::ops::Range;
use std::sync::Arc;

use self::cascade::Chunked;
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

/// Some queries of some KV heads of one sequence, with the keys of some chunks. Or a *joint* item: one chunk of keys
/// that several sequences have in the very same pages, with all queries of all of them.
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
    /// The further sequences of a joint item, which has one KV head, and whose queries all see all of its keys.
    pub sharers: Vec<Sharer>,
}

/// A further sequence of a joint work item, whose rows follow those of the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharer {
    /// The sequence.
    pub sequence: usize,
    /// How many queries it has.
    pub queries: usize,
    /// Where in the workspace its partial states go, in elements.
    pub partial: usize,
}

impl WorkItem {
    /// The queries of all its sequences.
    pub fn num_queries(&self) -> usize {
        self.queries.len() + self.sharers.iter().map(|sharer| sharer.queries).sum::<usize>()
    }
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
    /// Rows of a joint item at most.
    pub joint_rows: usize,
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
    let mut most = 0;
    let mut chunked = Vec::new();
    let paged = layout.page_table().is_some();
    for sequence in 0..layout.num_sequences() {
        let regime =
            Regime { num_queries: layout.num_queries(sequence), num_keys: layout.num_keys(sequence), paged };
        if regime.num_queries == 0 {
            continue;
        }
        let kernel = policy.choose(params, &regime, forced)?.kernel;
        if regime.num_queries * regime.num_keys >= most {
            most = regime.num_queries * regime.num_keys;
            plan.kernel = policy.kernels[kernel].name;
        }
        match policy.kernels[kernel].split {
            Split::Queries => plan.split_queries(kernel, sequence, regime, tiling.rows),
            Split::Keys => chunked.push(plan.chunked(kernel, sequence, regime)),
        }
    }
    plan.join_chunks(&mut chunked, tiling.joint_rows);
    let split_units = chunked.iter().map(|own| own.alone().count()).sum::<usize>() * params.num_kv_heads;
    let most_heads = if tiling.join_heads { params.num_kv_heads } else { 1 };
    let heads_together = (split_units / SPLIT_ITEMS).clamp(1, most_heads);
    chunked.iter().for_each(|own| plan.split_keys(own, heads_together));
    plan.work
        .sort_by_key(|item| std::cmp::Reverse(item.num_queries() * item.keys.len() * item.kv_heads.len()));
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
                    sharers: Vec::new(),
                });
            }
        }
    }

    /// Gives the partial states of a sequence their place, and merges them.
    fn chunked(&mut self, kernel: usize, sequence: usize, regime: Regime) -> Chunked {
        let keys = self.visible(&(0..regime.num_queries), regime);
        let first = keys.start / KV_CHUNK;
        let chunks = first..keys.end.div_ceil(KV_CHUNK).max(first + 1);
        let states = regime.num_queries * self.params.group_size() * (self.params.value_dim + 2);
        let partial_stride = if chunks.len() > 1 { chunks.len() * states } else { 0 };
        let first_partial = self.workspace;
        self.workspace += self.params.num_kv_heads * partial_stride;
        if chunks.len() > 1 {
            self.merges.extend((0..self.params.num_kv_heads).map(|kv_head| MergeItem {
                sequence,
                kv_head,
                first_partial: first_partial + kv_head * partial_stride,
                chunks: chunks.len(),
            }));
        }
        let joint = Vec::new();
        Chunked { kernel, sequence, regime, keys, chunks, first_partial, states, partial_stride, joint }
    }

    /// The items of a sequence's chunks, but those that are in joint items.
    fn split_keys(&mut self, own: &Chunked, heads_together: usize) {
        let num_kv_heads = self.params.num_kv_heads;
        for first_head in (0..num_kv_heads).step_by(heads_together) {
            for chunk in own.alone() {
                let start = chunk * KV_CHUNK;
                self.work.push(WorkItem {
                    kernel: own.kernel,
                    sequence: own.sequence,
                    kv_heads: first_head..num_kv_heads.min(first_head + heads_together),
                    queries: 0..own.regime.num_queries,
                    keys: own.keys.start.max(start)..own.keys.end.min(start + KV_CHUNK),
                    partial: (own.chunks.len() > 1).then_some(own.partial(first_head, chunk)),
                    partial_stride: own.partial_stride,
                    sharers: Vec::new(),
                });
            }
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
