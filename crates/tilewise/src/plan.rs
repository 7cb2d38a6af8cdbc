//! The plan of one attention launch: made once per batch, run once per layer.

use std::ops::Range;
use std::sync::Arc;

use crate::dispatch::{DispatchPolicy, Regime, Split};
use crate::{AttentionParams, BatchLayout, Result};

/// A row of attention is a merge, in order, of chunks of this many keys at absolute positions. Every kernel
/// keeps to it, so that the number of queries computed together cannot change a row.
pub const KV_CHUNK: usize = 1024;

/// Inside a chunk, the running maximum is looked at once per block of this many keys at absolute positions.
pub const KV_BLOCK: usize = 128;

/// Some queries of one KV head of one sequence, with the keys of some chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkItem {
    /// Index in the device's table of kernels.
    pub kernel: usize,
    /// The sequence.
    pub sequence: usize,
    /// The KV head; all query heads that read it are computed together.
    pub kv_head: usize,
    /// Queries, counted within the sequence.
    pub queries: Range<usize>,
    /// Keys that at least one of the queries sees, clipped to the item's chunk if it is one of several.
    pub keys: Range<usize>,
    /// Where in the workspace the partial states go, in elements; `None` if the item finishes its rows.
    pub partial: Option<usize>,
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
}

/// Divides a batch into independent work items. Pure: no device, no thread count.
///
/// `tile_rows` bounds the rows (queries times group size) of an item under [`Split::Queries`].
///
/// # Errors
/// As [`AttentionParams::validate`] and [`DispatchPolicy::choose`].
pub fn partition(
    params: &AttentionParams,
    layout: &Arc<BatchLayout>,
    policy: &DispatchPolicy,
    forced: Option<&str>,
    tile_rows: usize,
) -> Result<AttentionPlan> {
    params.validate()?;
    let mut plan = AttentionPlan {
        params: params.clone(),
        layout: layout.clone(),
        kernel: policy.kernels.first().map_or("", |kernel| kernel.name),
        work: Vec::new(),
        merges: Vec::new(),
        workspace: 0,
    };
    let mut most = 0;
    for sequence in 0..layout.num_sequences() {
        let regime =
            Regime { num_queries: layout.num_queries(sequence), num_keys: layout.num_keys(sequence) };
        if regime.num_queries == 0 {
            continue;
        }
        let choice = policy.choose(params, &regime, forced)?;
        if regime.num_queries * regime.num_keys >= most {
            most = regime.num_queries * regime.num_keys;
            plan.kernel = policy.kernels[choice.kernel].name;
        }
        match policy.kernels[choice.kernel].split {
            Split::Queries => plan.split_queries(choice.kernel, sequence, regime, tile_rows),
            Split::Keys => plan.split_keys(choice.kernel, sequence, regime),
        }
    }
    plan.work.sort_by_key(|item| std::cmp::Reverse(item.queries.len() * item.keys.len()));
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
                let (queries, keys) = (queries.clone(), keys.clone());
                self.work.push(WorkItem { kernel, sequence, kv_head, queries, keys, partial: None });
            }
        }
    }

    fn split_keys(&mut self, kernel: usize, sequence: usize, regime: Regime) {
        let queries = 0..regime.num_queries;
        let keys = self.visible(&queries, regime);
        let first_chunk = keys.start / KV_CHUNK;
        let chunks = (keys.end.div_ceil(KV_CHUNK)).saturating_sub(first_chunk).max(1);
        let states = queries.len() * self.params.group_size() * (self.params.value_dim + 2);
        for kv_head in 0..self.params.num_kv_heads {
            let first_partial = self.workspace;
            for chunk in first_chunk..first_chunk + chunks {
                let keys = keys.start.max(chunk * KV_CHUNK)..keys.end.min((chunk + 1) * KV_CHUNK);
                let partial = (chunks > 1).then_some(self.workspace);
                self.workspace += if chunks > 1 { states } else { 0 };
                let queries = queries.clone();
                self.work.push(WorkItem { kernel, sequence, kv_head, queries, keys, partial });
            }
            if chunks > 1 {
                self.merges.push(MergeItem { sequence, kv_head, first_partial, chunks });
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
