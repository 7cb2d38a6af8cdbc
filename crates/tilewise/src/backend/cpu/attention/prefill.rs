//! Many queries: a panel of keys or values is widened into the first cache, then used by all row tiles.
//!
//! The 8 KiB of a panel stay in the first cache while the tiles of queries or weights stream past them from the
//! second. Key panels that no row of a tile sees are skipped; keys that only some rows of a tile see are weighed
//! straight from where they are.

use std::ops::Range;

use super::super::simd::{Kernel, LANES, Simd};
use super::super::tile::{NOTHING, PACKED, Tile, with_rows};
use super::fold::{SCORE_STRIDE, Scratch, SoftmaxBlock, TileView};
use super::item::{Item, blocks};
use super::source::KvSource;
use super::weigh::{Part, Values, WeighBlock};
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
        unsafe {
            score_block(simd, item, source, &block, scratch);
            simd.vectorize(SoftmaxBlock { item, block: &block, scratch });
            weigh_block(simd, item, source, &block, scratch);
        }
    }
}

/// # Safety
/// `block` must be keys of the sequence that `source` is of.
#[inline(always)]
unsafe fn score_block<S: Simd, K: KvSource>(
    simd: S,
    item: &Item<'_>,
    source: K,
    block: &Range<usize>,
    scratch: &mut Scratch,
) {
    let groups = block.start / LANES..block.end.div_ceil(LANES);
    scratch.upcoming.clear();
    for group in groups.clone() {
        let tokens = (item.num_keys - group * LANES).min(LANES);
        // SAFETY: the group contains keys of the block.
        unsafe { source.value_memory(group, tokens, item.params.value_dim, &mut scratch.upcoming.regions) };
    }
    scratch.upcoming.pace(groups.len() * scratch.tiles.len());
    for group in groups {
        let tokens = (item.num_keys - group * LANES).min(LANES);
        // SAFETY: the group has `tokens` tokens; `keys` is a whole panel.
        unsafe { source.widen_keys(simd, group, tokens, item.params.head_dim, scratch.panel.as_mut_ptr()) };
        simd.vectorize(ScorePanel { item, panel: group % (KV_BLOCK / LANES), scratch });
    }
}

/// Scores of all rows against the widened panel of keys.
struct ScorePanel<'a> {
    item: &'a Item<'a>,
    /// Its place in the block.
    panel: usize,
    scratch: &'a mut Scratch,
}

impl Kernel for ScorePanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { item, panel, scratch } = self;
        let head_dim = item.params.head_dim;
        let keys = scratch.panel[..LANES * head_dim].as_ptr();
        for TileView { rows: tile, union, .. } in &scratch.tiles {
            scratch.upcoming.prefetch(simd);
            if union.is_empty() || union.start >= (panel + 1) * LANES || union.end <= panel * LANES {
                continue;
            }
            let q = scratch.q[tile.start * head_dim..tile.end * head_dim].as_ptr();
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

/// # Safety
/// `block` must be keys of the sequence that `source` is of.
#[inline(always)]
unsafe fn weigh_block<S: Simd, K: KvSource>(
    simd: S,
    item: &Item<'_>,
    source: K,
    block: &Range<usize>,
    scratch: &mut Scratch,
) {
    let (value_dim, panels) = (item.params.value_dim, item.value_panels());
    scratch.upcoming.clear();
    for group in block.end.div_ceil(LANES)..(block.end + KV_BLOCK).min(item.work.keys.end).div_ceil(LANES) {
        let tokens = (item.num_keys - group * LANES).min(LANES);
        // SAFETY: the group contains keys of the item.
        unsafe { source.key_memory(group, tokens, item.params.head_dim, &mut scratch.upcoming.regions) };
    }
    scratch.upcoming.pace(panels * scratch.tiles.len());
    // SAFETY: as the caller says.
    let values = &unsafe { Values::of_block(source, block) };
    let start = block.start / KV_BLOCK * KV_BLOCK;
    let tokens = block.start - start..block.end - start;
    let keys = tokens.clone();
    simd.vectorize(WeighBlock { item, head: 0, values, block, keys, scratch, parts: &[Part::Before] });
    for panel in 0..panels {
        let left = value_dim - panel * LANES;
        // SAFETY: the tokens are the block's; the panel holds a block.
        unsafe { values.widen_panel(simd, tokens.clone(), (panel, left), scratch.panel.as_mut_ptr()) };
        simd.vectorize(WeighPanel { item, panel, scratch });
    }
    simd.vectorize(WeighBlock { item, head: 0, values, block, keys: tokens, scratch, parts: &[Part::After] });
}

/// Adds the widened panel of values, weighted, to the sums of all tiles, for the keys that all rows of a tile see.
struct WeighPanel<'a> {
    item: &'a Item<'a>,
    panel: usize,
    scratch: &'a mut Scratch,
}

impl Kernel for WeighPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { item, panel, scratch } = self;
        let panels = item.value_panels();
        let values = scratch.panel[..KV_BLOCK * LANES].as_ptr();
        for TileView { rows: tile, common, .. } in &scratch.tiles {
            scratch.upcoming.prefetch(simd);
            if common.is_empty() {
                continue;
            }
            let rows = tile.len();
            let c = scratch.out[(tile.start * panels + panel * rows) * LANES..][..rows * LANES].as_mut_ptr();
            let weights = &scratch.scores[tile.start * SCORE_STRIDE..tile.end * SCORE_STRIDE];
            let (a, b) = (weights[common.start..].as_ptr(), values.wrapping_add(common.start * LANES));
            // Weights are `[rows][SCORE_STRIDE]`, `values` a panel `[KV_BLOCK][16]`, and the sums `[rows][16]`.
            with_rows!(rows, R => simd.vectorize(Tile::<f32, R, 1, SCORE_STRIDE, LANES, NOTHING> {
                a, b: [b], b_step: LANES, len: common.len(), c, c_row: LANES, c_panel: 0, from_zero: false,
                ahead: [std::ptr::null()],
            }));
        }
    }
}
