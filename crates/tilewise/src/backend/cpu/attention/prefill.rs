//! Many queries: keys and values of a block are widened once into panels, then used by all row tiles.
//!
//! Loops run panel by panel, so that 8 KiB of keys or values stay in the first cache while the tiles of queries
//! or weights stream past them from the second. Key panels that no row of a tile sees are skipped.

use std::ops::Range;

use super::super::simd::{Kernel, LANES, Simd};
use super::super::tile::{NOTHING, PACKED, Tile, load_some, with_rows};
use super::fold::{Item, SCORE_STRIDE, Scratch, SoftmaxBlock, TileView, blocks};
use super::source::KvSource;
use crate::plan::KV_BLOCK;

/// Folds a chunk of keys into the item's rows.
#[inline(always)]
pub(super) fn fold_chunk<S: Simd, K: KvSource>(
    simd: S,
    item: &Item<'_>,
    source: K,
    chunk: Range<usize>,
    scratch: &mut Scratch,
) {
    for block in blocks(chunk) {
        scratch.look_at(&block);
        // SAFETY: the block lies inside the sequence's keys.
        unsafe { widen_block(simd, item, source, &block, scratch) };
        scratch.upcoming.clear();
        for group in block.end.div_ceil(LANES)..(block.end + KV_BLOCK).min(item.work.keys.end).div_ceil(LANES)
        {
            let tokens = (item.num_keys - group * LANES).min(LANES);
            let (head_dim, value_dim) = (item.params.head_dim, item.params.value_dim);
            // SAFETY: the group contains keys of the item.
            unsafe { source.memory(group, tokens, head_dim, value_dim, &mut scratch.upcoming.regions) };
        }
        simd.vectorize(FoldBlock { item, block: &block, scratch });
    }
}

/// Widens the block's keys and values.
///
/// # Safety
/// `block` must be keys of the sequence that `source` is of.
#[inline(always)]
unsafe fn widen_block<S: Simd, K: KvSource>(
    simd: S,
    item: &Item<'_>,
    source: K,
    block: &Range<usize>,
    scratch: &mut Scratch,
) {
    let head_dim = item.params.head_dim;
    let value_dim = item.params.value_dim;
    for group in block.start / LANES..block.end.div_ceil(LANES) {
        let local = group % (KV_BLOCK / LANES);
        let tokens = (item.num_keys - group * LANES).min(LANES);
        let keys = &mut scratch.keys[local * LANES * head_dim..][..LANES * head_dim];
        // SAFETY: the group starts below `num_keys` and has `tokens` tokens; `keys` is a whole panel.
        unsafe { source.widen_keys(simd, group, tokens, head_dim, keys.as_mut_ptr()) };
        // SAFETY: as above.
        let (rows, stride) = unsafe { source.value_rows(group) };
        for panel in 0..item.value_panels() {
            let at = (panel * KV_BLOCK + local * LANES) * LANES;
            let values = &mut scratch.values[at..at + LANES * LANES];
            for (token, to) in values.chunks_exact_mut(LANES).take(tokens).enumerate() {
                // SAFETY: the token has `value_dim` elements, the padded row whole panels; `to` has sixteen.
                unsafe {
                    let from = rows.add(token * stride + panel * LANES);
                    let left = if source.padded_values() { LANES } else { value_dim - panel * LANES };
                    simd.store(to.as_mut_ptr(), load_some(simd, from, left));
                }
            }
        }
    }
}

/// Scores, weights and weighted values of a widened block; the same code for every source.
struct FoldBlock<'a> {
    item: &'a Item<'a>,
    block: &'a Range<usize>,
    scratch: &'a mut Scratch,
}

impl Kernel for FoldBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { item, block, scratch } = self;
        score_block(simd, item, block, scratch);
        simd.vectorize(SoftmaxBlock { item, block, scratch });
        weigh_block(simd, item, block, scratch);
    }
}

#[inline(always)]
fn score_block<S: Simd>(simd: S, item: &Item<'_>, block: &Range<usize>, scratch: &mut Scratch) {
    let head_dim = item.params.head_dim;
    let first = block.start % KV_BLOCK / LANES;
    let last = (block.end - block.start / KV_BLOCK * KV_BLOCK).div_ceil(LANES);
    let share = scratch.upcoming.lines().div_ceil((last - first) * scratch.tiles.len());
    for panel in first..last {
        for TileView { rows: tile, union, .. } in &scratch.tiles {
            scratch.upcoming.prefetch(simd, share);
            if union.is_empty() || union.start >= (panel + 1) * LANES || union.end <= panel * LANES {
                continue;
            }
            let q = scratch.q[tile.start * head_dim..tile.end * head_dim].as_ptr();
            let keys = scratch.keys[panel * LANES * head_dim..][..LANES * head_dim].as_ptr();
            let scores = &mut scratch.scores[tile.start * SCORE_STRIDE..tile.end * SCORE_STRIDE];
            let c = scores[panel * LANES..].as_mut_ptr();
            // `q` is `[head_dim][rows]`, `keys` a panel `[head_dim][16]`, and scores `[rows][SCORE_STRIDE]`.
            with_rows!(tile.len(), R => simd.vectorize(Tile::<f32, R, 1, PACKED, LANES, NOTHING> {
                a: q, b: [keys], b_step: LANES, len: head_dim, c, c_row: SCORE_STRIDE, c_panel: 0, from_zero: true,
                ahead: [std::ptr::null()],
            }));
        }
    }
}

#[inline(always)]
fn weigh_block<S: Simd>(simd: S, item: &Item<'_>, block: &Range<usize>, scratch: &mut Scratch) {
    let panels = item.value_panels();
    for panel in 0..panels {
        for TileView { rows: tile, union, common } in &scratch.tiles {
            if union.is_empty() {
                continue;
            }
            let rows = tile.len();
            let values = scratch.values[panel * KV_BLOCK * LANES..][..KV_BLOCK * LANES].as_ptr();
            let at = (tile.start * panels + panel * rows) * LANES;
            let out = scratch.out[at..at + rows * LANES].as_mut_ptr();
            let weights = scratch.scores[tile.start * SCORE_STRIDE..tile.end * SCORE_STRIDE].as_ptr();
            let all = Weigh { weights, values, out };
            if common == union {
                with_rows!(rows, R => all.run::<S, R>(simd, 0, common.clone()));
                continue;
            }
            let whole = !common.is_empty();
            for (r, row) in tile.clone().enumerate() {
                let sees = scratch.row_view(row, block);
                all.run::<S, 1>(simd, r, sees.start..if whole { common.start } else { sees.end });
            }
            if whole {
                with_rows!(rows, R => all.run::<S, R>(simd, 0, common.clone()));
                for (r, row) in tile.clone().enumerate() {
                    all.run::<S, 1>(simd, r, common.end..scratch.row_view(row, block).end);
                }
            }
        }
    }
}

/// A tile's weights, a panel of values, and the sums they go to.
#[derive(Clone, Copy)]
struct Weigh {
    /// `[rows][SCORE_STRIDE]`.
    weights: *const f32,
    /// `[KV_BLOCK][16]`.
    values: *const f32,
    /// `[rows][16]`.
    out: *mut f32,
}

impl Weigh {
    /// Adds the weighted values of `keys`, a range within the block, to `R` rows from `first` on.
    #[inline(always)]
    fn run<S: Simd, const R: usize>(self, simd: S, first: usize, keys: Range<usize>) {
        if keys.is_empty() {
            return;
        }
        simd.vectorize(Tile::<f32, R, 1, SCORE_STRIDE, LANES, NOTHING> {
            a: self.weights.wrapping_add(first * SCORE_STRIDE + keys.start),
            b: [self.values.wrapping_add(keys.start * LANES)],
            b_step: LANES,
            len: keys.len(),
            c: self.out.wrapping_add(first * LANES),
            c_row: LANES,
            c_panel: 0,
            from_zero: false,
            ahead: [std::ptr::null()],
        });
    }
}
