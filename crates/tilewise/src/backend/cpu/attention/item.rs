//! The rows of a work item, and its keys by chunks and blocks.

use std::ops::Range;

use super::super::simd::LANES;
use super::super::tile::row_tiles;
use crate::AttentionParams;
use crate::plan::{KV_BLOCK, KV_CHUNK, WorkItem};

/// What a row of a work item is of.
pub(super) struct Place {
    pub sequence: usize,
    /// In the sequence.
    pub query: usize,
    /// The query head.
    pub head: usize,
    /// Where in the workspace its state goes; `None` if the item finishes its rows.
    pub partial: Option<usize>,
}

/// The shape of one work item.
#[derive(Clone)]
pub(super) struct Item<'a> {
    pub params: &'a AttentionParams,
    pub work: &'a WorkItem,
    /// Queries and keys of the (first) sequence.
    pub num_queries: usize,
    pub num_keys: usize,
    /// Rows: for each KV head, for each sequence, for each query, the query heads that read it.
    pub rows: usize,
    pub head_rows: usize,
    pub max_rows: usize,
}

impl<'a> Item<'a> {
    pub(super) fn new(
        params: &'a AttentionParams,
        work: &'a WorkItem,
        lens: (usize, usize),
        max_rows: usize,
    ) -> Self {
        let head_rows = work.num_queries() * params.group_size();
        let rows = work.kv_heads.len() * head_rows;
        Self { params, work, num_queries: lens.0, num_keys: lens.1, rows, head_rows, max_rows }
    }

    /// The rows of each tile, head by head.
    pub(super) fn tiles(&self) -> impl Iterator<Item = Range<usize>> + Clone {
        let (rows, max_rows) = (self.head_rows, self.max_rows);
        (0..self.work.kv_heads.len()).flat_map(move |head| {
            row_tiles(rows, max_rows).map(move |tile| head * rows + tile.start..head * rows + tile.end)
        })
    }

    /// The tiles of a head, counted within the item.
    pub(super) fn head_tiles(&self, head: usize) -> Range<usize> {
        let tiles = self.head_rows.div_ceil(self.max_rows);
        head * tiles..(head + 1) * tiles
    }

    /// What a row is of, and where its state goes.
    pub(super) fn place(&self, row: usize) -> Place {
        let (work, group) = (self.work, self.params.group_size());
        let (later, mut row) = (row / self.head_rows, row % self.head_rows);
        let (mut sequence, mut queries) = (work.sequence, work.queries.clone());
        let mut partial = work.partial.map(|first| first + later * work.partial_stride);
        for sharer in &work.sharers {
            if row < queries.len() * group {
                break;
            }
            row -= queries.len() * group;
            (sequence, queries, partial) = (sharer.sequence, 0..sharer.queries, Some(sharer.partial));
        }
        Place {
            sequence,
            query: queries.start + row / group,
            head: (work.kv_heads.start + later) * group + row % group,
            partial: partial.map(|first| first + row * (self.params.value_dim + 2)),
        }
    }

    /// The keys that a row sees, those of other items included.
    pub(super) fn visible(&self, row: usize) -> Range<usize> {
        if self.work.sharers.is_empty() {
            self.params.mask.visible(self.place(row).query, self.num_queries, self.num_keys)
        } else {
            self.work.keys.clone()
        }
    }

    pub(super) fn value_panels(&self) -> usize {
        self.params.value_dim.div_ceil(LANES)
    }

    /// The chunks that the item's keys touch.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        pieces(self.work.keys.clone(), KV_CHUNK)
    }
}

/// Cuts a range at multiples of `size`.
pub(super) fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let pieces = if range.is_empty() { 0..0 } else { range.start / size..range.end.div_ceil(size) };
    pieces.map(move |piece| range.start.max(piece * size)..range.end.min((piece + 1) * size))
}

/// The blocks that a range of keys touches, each clipped to it.
pub(super) fn blocks(keys: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    pieces(keys, KV_BLOCK)
}
