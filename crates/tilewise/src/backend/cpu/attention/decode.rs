//! Few queries: keys and values are read once, straight from where they are, and widened in registers.
//!
//! Memory decides the speed, so every tile prefetches what the next one reads, at the pace at which it reads its
//! own: two panels of keys the next two, across blocks too, and two panels of values the next two of the same rows.

use std::ops::Range;

use super::super::simd::{Element, Kernel, LANES, Simd};
use super::super::tile::{FLOWING, PACKED, Tile, with_rows};
use super::fold::{Item, SCORE_STRIDE, Scratch, SoftmaxBlock, blocks};
use super::source::KvSource;
use super::weigh::{Part, Values, WeighBlock};
use crate::plan::KV_BLOCK;

const GROUPS: usize = KV_BLOCK / LANES;

/// A cache line, in bytes.
const LINE: usize = 64;

/// Folds a chunk of keys into the item's rows.
#[inline(always)]
pub(super) fn fold_chunk<S: Simd, K: KvSource>(
    simd: S,
    item: &Item<'_>,
    source: K,
    chunk: Range<usize>,
    scratch: &mut Scratch,
) {
    let end = chunk.end;
    for block in blocks(chunk) {
        let groups = block.start / LANES..block.end.div_ceil(LANES);
        scratch.look_at(&block);
        // SAFETY: the block lies inside the sequence's keys, as does `end`.
        unsafe {
            score_block(simd, item, source, groups, end.div_ceil(LANES), scratch);
            simd.vectorize(SoftmaxBlock { item, block: &block, scratch });
            let values = Values::of_block(source, &block);
            for part in [Part::Before, Part::Common, Part::After] {
                simd.vectorize(WeighBlock { item, values: &values, block: &block, scratch, part });
            }
        }
    }
}

/// # Safety
/// `groups` must contain tokens of the sequence that `source` is of, in one block; so must all groups up to `end`,
/// in any.
#[inline(always)]
unsafe fn score_block<S: Simd, K: KvSource>(
    simd: S,
    item: &Item<'_>,
    source: K,
    groups: Range<usize>,
    end: usize,
    scratch: &mut Scratch,
) {
    let head_dim = item.params.head_dim;
    let mut group = groups.start;
    while group < groups.end {
        let count = if group + 1 < groups.end { 2 } else { 1 };
        let local = group % GROUPS;
        // SAFETY: as the caller says; the widened panels have room for a block.
        unsafe {
            for own in group..group + count {
                prefetch_values(simd, item, source, own);
            }
            if let (Some(first), Some(second)) =
                (source.key_panel(group), source.key_panel(group + count - 1))
            {
                let panels = [first, second];
                let ahead = [2, 3].map(|next| {
                    let panel = if group + next < end { source.key_panel(group + next) } else { None };
                    panel.unwrap_or(first)
                });
                simd.vectorize(ScorePanels { item, panels, ahead, local, count, scratch });
            } else {
                let keys = scratch.panel[..2 * LANES * head_dim].as_mut_ptr();
                let second = keys.add((count - 1) * LANES * head_dim);
                for (own, to) in [(group, keys), (group + count - 1, second)] {
                    let tokens = (item.num_keys - own * LANES).min(LANES);
                    source.widen_keys(simd, own, tokens, head_dim, to);
                }
                let panels = [keys.cast_const(), second.cast_const()];
                simd.vectorize(ScorePanels { item, panels, ahead: panels, local, count, scratch });
            }
        }
        group += count;
    }
}

/// Scores of all rows against one or two panels of keys.
struct ScorePanels<'a, E> {
    item: &'a Item<'a>,
    /// Each `[head_dim][16]`.
    panels: [*const E; 2],
    /// The panels that come next.
    ahead: [*const E; 2],
    /// The first panel's place in the block.
    local: usize,
    count: usize,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for ScorePanels<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { item, panels, ahead, local, count, scratch } = self;
        let ahead = [ahead[0].cast::<u8>(), ahead[1].cast()];
        let head_dim = item.params.head_dim;
        for tile in item.tiles() {
            let q = scratch.q[tile.start * head_dim..tile.end * head_dim].as_ptr();
            let scores = scratch.scores[tile.start * SCORE_STRIDE..tile.end * SCORE_STRIDE].as_mut_ptr();
            let c = scores.wrapping_add(local * LANES);
            // `q` is `[head_dim][rows]`, panels as `score_block` made them, and scores `[rows][SCORE_STRIDE]`.
            with_rows!(tile.len(), R => if R * 2 <= S::MAX_ROWS && count == 2 {
                simd.vectorize(Tile::<E, R, 2, PACKED, LANES, FLOWING> {
                    a: q, b: panels, b_step: LANES, len: head_dim, ahead,
                    c, c_row: SCORE_STRIDE, c_panel: LANES, from_zero: true,
                });
            } else {
                for (p, panel) in panels.into_iter().take(count).enumerate() {
                    simd.vectorize(Tile::<E, R, 1, PACKED, LANES, FLOWING> {
                        a: q, b: [panel], b_step: LANES, len: head_dim, ahead: [ahead[p]],
                        c: c.wrapping_add(p * LANES), c_row: SCORE_STRIDE, c_panel: 0, from_zero: true,
                    });
                }
            });
        }
    }
}

/// Prefetches the first two panels of a group's values; the tiles prefetch the others as they go.
#[inline(always)]
unsafe fn prefetch_values<S: Simd, K: KvSource>(simd: S, item: &Item<'_>, source: K, group: usize) {
    // SAFETY: the group contains a token of the sequence; a prefetch reads nothing.
    unsafe {
        let (rows, stride) = source.value_rows(group);
        for token in 0..(item.num_keys - group * LANES).min(LANES) {
            for at in (0..2 * LANES * size_of::<K::E>()).step_by(LINE) {
                simd.prefetch(rows.wrapping_add(token * stride).cast::<u8>().wrapping_add(at));
            }
        }
    }
}
