//! Few queries: keys and values are read once, straight from where they are, and widened in registers.
//!
//! Memory decides the speed. Keys, and then values, are read in the order in which they are stored: by spans of
//! tokens (pages), in a span by heads. Long contiguous reads keep the processor's own prefetching going; the tiles
//! add a prefetch a little ahead of what they read.

use std::ops::Range;

use super::super::simd::{Element, Kernel, LANES, Simd};
use super::super::tile::{FLOWING, PACKED, Tile, with_rows};
use super::fold::{SCORE_STRIDE, Scratch, SoftmaxBlock};
use super::item::{Item, blocks, pieces};
use super::source::KvSource;
use super::weigh::{Part, Values, WeighBlock};
use crate::plan::KV_BLOCK;

const GROUPS: usize = KV_BLOCK / LANES;

/// Bytes between a key's prefetch and its use.
const AHEAD: usize = 4096;

/// Folds a chunk of keys into the item's rows.
#[inline(always)]
pub(super) fn fold_chunk<S: Simd, K: KvSource>(
    simd: S,
    item: &Item<'_>,
    source: K,
    chunk: Range<usize>,
    scratch: &mut Scratch,
) {
    let heads = item.work.kv_heads.len();
    for block in blocks(chunk) {
        let origin = block.start / KV_BLOCK * KV_BLOCK;
        scratch.look_at(&block);
        for span in pieces(block.clone(), source.span().min(KV_BLOCK)) {
            for head in 0..heads {
                // SAFETY: the span lies inside the sequence's keys.
                unsafe { score_span(simd, item, source.later_head(head), head, &span, scratch) };
            }
        }
        simd.vectorize(SoftmaxBlock { item, block: &block, scratch });
        for span in pieces(block.clone(), source.span().min(KV_BLOCK)) {
            for head in 0..heads {
                // SAFETY: as above.
                let values = &unsafe { Values::of_block(source.later_head(head), &span) };
                let keys = span.start - origin..span.end - origin;
                let parts = &[Part::Before, Part::Common, Part::After];
                simd.vectorize(WeighBlock { item, head, values, block: &block, keys, scratch, parts });
            }
        }
    }
}

/// # Safety
/// `span` must be keys of the sequence that `source` is of, in one block.
#[inline(always)]
unsafe fn score_span<S: Simd, K: KvSource>(
    simd: S,
    item: &Item<'_>,
    source: K,
    head: usize,
    span: &Range<usize>,
    scratch: &mut Scratch,
) {
    let head_dim = item.params.head_dim;
    let groups = span.start / LANES..span.end.div_ceil(LANES);
    let mut group = groups.start;
    while group < groups.end {
        let count = if group + 1 < groups.end { 2 } else { 1 };
        let local = group % GROUPS;
        // SAFETY: as the caller says; the widened panels have room for two.
        unsafe {
            if let (Some(first), Some(second)) =
                (source.key_panel(group), source.key_panel(group + count - 1))
            {
                simd.vectorize(ScorePanels { item, head, panels: [first, second], local, count, scratch });
            } else {
                let keys = scratch.panel[..2 * LANES * head_dim].as_mut_ptr();
                let second = keys.add((count - 1) * LANES * head_dim);
                for (own, to) in [(group, keys), (group + count - 1, second)] {
                    let tokens = (item.num_keys - own * LANES).min(LANES);
                    source.widen_keys(simd, own, tokens, head_dim, to);
                }
                let panels = [keys.cast_const(), second.cast_const()];
                simd.vectorize(ScorePanels { item, head, panels, local, count, scratch });
            }
        }
        group += count;
    }
}

/// Scores of a head's rows against one or two panels of its keys.
struct ScorePanels<'a, E> {
    item: &'a Item<'a>,
    /// Counted within the item.
    head: usize,
    /// Each `[head_dim][16]`.
    panels: [*const E; 2],
    /// The first panel's place in the block.
    local: usize,
    count: usize,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for ScorePanels<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { item, head, panels, local, count, scratch } = self;
        let ahead = [0, 1].map(|p: usize| panels[p].cast::<u8>().wrapping_add(AHEAD));
        let head_dim = item.params.head_dim;
        for view in &scratch.tiles[item.head_tiles(head)] {
            let tile = &view.rows;
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
