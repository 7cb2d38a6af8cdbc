//! What prefill and decode share: the rows of a work item, the softmax of a block, and the end of a row.
//!
//! A row is computed as follows, whatever else is computed with it. Keys are taken in chunks of [`KV_CHUNK`] and
//! blocks of [`KV_BLOCK`] at absolute positions. In a block, scores are chains over `head_dim`; if their maximum
//! exceeds the chunk's running maximum by more than [`SLACK`], the chunk's sums are rescaled to it; weights are
//! `2^(score - maximum)`; their sum is kept in sixteen lanes by position; values are added in chains over the
//! visible keys in order. Chunks are merged in order. Invisible keys enter no chain, so not even their NaNs do.

use std::ops::Range;

use super::super::simd::{Kernel, LANES, Simd};
use super::item::Item;
use super::source::Region;
use crate::plan::KV_BLOCK;
use crate::softmax;

/// The running maximum follows only when it is this much (in log2) too small: weights stay below 2^8, and rows
/// whose maximum creeps up are not rescaled at every step.
const SLACK: f32 = 8.0;

/// Elements between the score rows of a tile. Not a power of two, so that rows fall into different cache sets.
pub(super) const SCORE_STRIDE: usize = KV_BLOCK + LANES;

/// Elements after the packed queries: they are stored by eight rows and sixteen columns.
pub(super) const Q_SLACK: usize = 8 * LANES + 8;

/// One row's running sums within a chunk.
#[derive(Clone, Copy)]
pub(super) struct RowState {
    max: f32,
    sum: [f32; LANES],
}

impl RowState {
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: [0.0; LANES] };
}

/// Reusable memory for floats that starts on a cache line, so that no vector of it lies in two.
#[derive(Default)]
pub(super) struct Floats(Vec<Line>);

/// A cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

impl Floats {
    /// Makes room for as many floats; their values are unspecified.
    fn grow(&mut self, floats: usize) {
        if self.len() < floats {
            self.0.resize(floats.div_ceil(LANES), Line([0.0; LANES]));
        }
    }
}

impl std::ops::Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl std::ops::DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// A thread's memory for work items.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Queries of each tile as `[head_dim][rows]`.
    pub(super) q: Floats,
    /// Scores, then weights, of a block: `[rows][SCORE_STRIDE]`.
    pub(super) scores: Floats,
    /// Weighted values of the chunk, of each tile as `[value panels][rows][16]`.
    pub(super) out: Floats,
    /// The same of all earlier chunks.
    total: Floats,
    /// Widened keys as `[head_dim][16]`, or values as `[KV_BLOCK][16]`.
    pub(super) panel: Floats,
    pub(super) rows: Vec<RowState>,
    /// `(max, sum)` of all earlier chunks.
    totals: Vec<(f32, f32)>,
    /// The keys each row sees.
    visible: Vec<Range<usize>>,
    /// The tiles and what they see of the current block.
    pub(super) tiles: Vec<TileView>,
    /// What will be read next, to be prefetched meanwhile.
    pub(super) upcoming: Upcoming,
}

/// Memory that will be read next: this block's values, or the next one's keys.
#[derive(Default)]
pub(super) struct Upcoming {
    pub(super) regions: Vec<Region>,
    /// The region and the byte in it to prefetch next.
    region: usize,
    at: usize,
    /// Cache lines at a time.
    pace: usize,
}

// SAFETY: the addresses are only prefetched, which reads nothing.
unsafe impl Send for Upcoming {}

impl Upcoming {
    pub(super) fn clear(&mut self) {
        (self.region, self.at) = (0, 0);
        self.regions.clear();
    }

    /// Spreads the regions over as many calls of [`Self::prefetch`].
    pub(super) fn pace(&mut self, calls: usize) {
        let lines: usize = self.regions.iter().map(|region| region.1.div_ceil(64)).sum();
        self.pace = lines.div_ceil(calls.max(1));
    }

    /// Prefetches some more lines.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&mut self, simd: S) {
        for _ in 0..self.pace {
            let Some(&(start, len)) = self.regions.get(self.region) else { return };
            simd.prefetch_second(start.wrapping_add(self.at));
            self.at += 64;
            if self.at >= len {
                (self.region, self.at) = (self.region + 1, 0);
            }
        }
    }
}

/// A tile of rows, and what its rows see of the current block, counted from the block's (absolute) start.
#[derive(Clone)]
pub(super) struct TileView {
    /// Rows of the item.
    pub rows: Range<usize>,
    /// Keys that some row sees: a hull.
    pub union: Range<usize>,
    /// Keys that every row sees.
    pub common: Range<usize>,
}

impl Scratch {
    pub(super) fn prepare(&mut self, item: &Item<'_>) {
        let padded = item.value_panels() * LANES;
        self.q.grow(item.rows * item.params.head_dim + Q_SLACK);
        self.scores.grow(item.rows * SCORE_STRIDE);
        self.out.grow(item.rows * padded);
        self.total.grow(item.rows * padded);
        self.panel.grow(item.params.head_dim.max(KV_BLOCK) * 2 * LANES);
        if item.work.keys.is_empty() {
            self.total[..item.rows * padded].fill(0.0);
        }
        self.rows.clear();
        self.rows.resize(item.rows, RowState::EMPTY);
        self.totals.clear();
        self.totals.resize(item.rows, (f32::NEG_INFINITY, 0.0));
        self.visible.clear();
        self.visible.extend((0..item.rows).map(|row| item.visible(row)));
        self.tiles.clear();
        self.tiles.extend(item.tiles().map(|rows| TileView { rows, union: 0..0, common: 0..0 }));
    }

    /// Starts a chunk: no row has seen a key of it.
    pub(super) fn start_chunk(&mut self, item: &Item<'_>) {
        self.rows.fill(RowState::EMPTY);
        self.out[..item.rows * item.value_panels() * LANES].fill(0.0);
    }

    /// What one row sees of a block, counted from the block's start.
    pub(super) fn row_view(&self, row: usize, block: &Range<usize>) -> Range<usize> {
        let origin = block.start / KV_BLOCK * KV_BLOCK;
        let sees = &self.visible[row];
        let start = sees.start.max(block.start);
        let end = sees.end.min(block.end).max(start);
        start - origin..end - origin
    }

    /// Sets what the tiles see of a block.
    pub(super) fn look_at(&mut self, block: &Range<usize>) {
        let mut tiles = std::mem::take(&mut self.tiles);
        for tile in &mut tiles {
            tile.union = self.row_view(tile.rows.start, block);
            tile.common = tile.union.clone();
            for row in tile.rows.start + 1..tile.rows.end {
                let sees = self.row_view(row, block);
                tile.common = tile.common.start.max(sees.start)..tile.common.end.min(sees.end);
                if tile.union.is_empty() {
                    tile.union = sees;
                } else if !sees.is_empty() {
                    tile.union = tile.union.start.min(sees.start)..tile.union.end.max(sees.end);
                }
            }
        }
        self.tiles = tiles;
    }

    /// Turns a tile's scores of a block into weights and takes them into the rows' sums.
    ///
    /// First all maxima, then all weights: rows wait for nothing but their own maximum, and the processor works on
    /// several at once.
    #[inline(always)]
    fn softmax<S: Simd>(&mut self, simd: S, item: &Item<'_>, tile: &TileView, block: &Range<usize>) {
        let union = &tile.union;
        if tile.common == *union && union.start.is_multiple_of(LANES) && union.end.is_multiple_of(LANES) {
            self.softmax_rows::<S, true>(simd, item, &tile.rows, block);
        } else {
            self.softmax_rows::<S, false>(simd, item, &tile.rows, block);
        }
    }

    /// [`Self::softmax`]. `WHOLE`: all lanes of all groups of keys that a row sees are visible to it.
    #[inline(always)]
    fn softmax_rows<S: Simd, const WHOLE: bool>(
        &mut self,
        simd: S,
        item: &Item<'_>,
        tile: &Range<usize>,
        block: &Range<usize>,
    ) {
        let scale = item.params.sm_scale * std::f32::consts::LOG2_E;
        for row in tile.clone() {
            let sees = self.row_view(row, block);
            if !sees.is_empty() {
                let scores = &self.scores[row * SCORE_STRIDE..][..KV_BLOCK];
                let mut max = row_max::<S, WHOLE>(simd, scores, &sees) * scale;
                // NaNs are passed over; a row that sees nothing else must not look like one that sees nothing.
                if max == f32::NEG_INFINITY && scores[sees].iter().any(|score| score.is_nan()) {
                    max = f32::NAN;
                }
                self.raise_max(item, tile, row, max);
            }
        }
        for row in tile.clone() {
            let sees = self.row_view(row, block);
            if !sees.is_empty() {
                let scores = &mut self.scores[row * SCORE_STRIDE..][..KV_BLOCK];
                row_weights::<S, WHOLE>(simd, scores, &sees, scale, &mut self.rows[row]);
            }
        }
    }

    /// Rescales a row's sums to a new maximum, if it is much larger than the old one.
    #[inline(always)]
    fn raise_max(&mut self, item: &Item<'_>, tile: &Range<usize>, row: usize, max: f32) {
        let state = &mut self.rows[row];
        if max <= state.max + SLACK && state.max != f32::NEG_INFINITY {
            return;
        }
        if state.max != f32::NEG_INFINITY {
            let factor = softmax::exp2(state.max - max);
            state.sum.iter_mut().for_each(|sum| *sum *= factor);
            let panels = item.value_panels();
            let out = &mut self.out[tile.start * panels * LANES..][..tile.len() * panels * LANES];
            for panel in out.chunks_exact_mut(tile.len() * LANES) {
                let own = &mut panel[(row - tile.start) * LANES..][..LANES];
                own.iter_mut().for_each(|o| *o *= factor);
            }
        }
        state.max = max;
    }

    /// Takes the chunk's sums of all rows into the totals.
    #[inline(always)]
    fn end_chunk<S: Simd>(&mut self, simd: S, item: &Item<'_>, first: bool) {
        if first {
            std::mem::swap(&mut self.out, &mut self.total);
            for (total, state) in self.totals.iter_mut().zip(&self.rows) {
                // SAFETY: `sum` has sixteen elements.
                *total = (state.max, simd.reduce_sum(unsafe { simd.load(state.sum.as_ptr()) }));
            }
            return;
        }
        let panels = item.value_panels();
        for tile in item.tiles() {
            for row in tile.clone() {
                let state = self.rows[row];
                // SAFETY: `sum` has sixteen elements.
                let sum = simd.reduce_sum(unsafe { simd.load(state.sum.as_ptr()) });
                let (max, total) = &mut self.totals[row];
                let before = *max;
                softmax::merge_row((max, total, &mut []), (state.max, sum, &[]));
                if state.max == f32::NEG_INFINITY {
                    continue;
                }
                let (keep, take) = (softmax::exp2(before - *max), softmax::exp2(state.max - *max));
                for panel in 0..panels {
                    let at = tile.start * panels * LANES + (panel * tile.len() + row - tile.start) * LANES;
                    let (own, new) = (&mut self.total[at..][..LANES], &self.out[at..][..LANES]);
                    if before == f32::NEG_INFINITY {
                        own.copy_from_slice(new);
                    } else {
                        own.iter_mut().zip(new).for_each(|(o, x)| *o = *o * keep + x * take);
                    }
                }
            }
        }
    }

    /// A finished row: its maximum, its sum, and its weighted values, by panels.
    pub(super) fn finished<'a>(
        &'a self,
        item: &Item<'_>,
        tile: &Range<usize>,
        row: usize,
    ) -> (f32, f32, impl Iterator<Item = &'a [f32]> + use<'a>) {
        let panels = item.value_panels();
        let rows = tile.len();
        let all = &self.total[tile.start * panels * LANES..][..rows * panels * LANES];
        let own = row - tile.start;
        let (max, sum) = self.totals[row];
        (max, sum, (0..panels).map(move |panel| &all[(panel * rows + own) * LANES..][..LANES]))
    }
}

/// Turns all scores of a block into weights and takes them into the rows' sums.
pub(super) struct SoftmaxBlock<'a> {
    pub item: &'a Item<'a>,
    pub block: &'a Range<usize>,
    pub scratch: &'a mut Scratch,
}

impl Kernel for SoftmaxBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for index in 0..self.scratch.tiles.len() {
            let tile = self.scratch.tiles[index].clone();
            if !tile.union.is_empty() {
                self.scratch.softmax(simd, self.item, &tile, self.block);
            }
        }
    }
}

/// Takes the chunk's sums of all rows into the totals.
pub(super) struct EndChunk<'a> {
    pub item: &'a Item<'a>,
    /// Whether it is the item's first chunk.
    pub first: bool,
    pub scratch: &'a mut Scratch,
}

impl Kernel for EndChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.scratch.end_chunk(simd, self.item, self.first);
    }
}

/// The largest of the visible scores; NaNs are passed over.
#[inline(always)]
fn row_max<S: Simd, const WHOLE: bool>(simd: S, scores: &[f32], sees: &Range<usize>) -> f32 {
    let mut max = simd.splat(f32::NEG_INFINITY);
    let groups = sees.start / LANES..sees.end.div_ceil(LANES);
    let mut at = groups.start * LANES;
    for lanes in &scores.as_chunks::<LANES>().0[groups] {
        // SAFETY: `lanes` has sixteen elements.
        let mut v = unsafe { simd.load(lanes.as_ptr()) };
        if !WHOLE && (sees.start > at || sees.end < at + LANES) {
            v = simd.keep_range(v, sees.start.saturating_sub(at), sees.end - at, f32::NEG_INFINITY);
        }
        max = simd.max(v, max);
        at += LANES;
    }
    simd.reduce_max(max)
}

/// Replaces the visible scores by weights and adds them to the row's sum; other lanes of their groups become 0.
#[inline(always)]
fn row_weights<S: Simd, const WHOLE: bool>(
    simd: S,
    scores: &mut [f32],
    sees: &Range<usize>,
    scale: f32,
    state: &mut RowState,
) {
    // SAFETY: `sum` has sixteen elements.
    let mut sum = unsafe { simd.load(state.sum.as_ptr()) };
    let (factor, shift) = (simd.splat(scale), simd.splat(-state.max));
    let groups = sees.start / LANES..sees.end.div_ceil(LANES);
    let lanes = &mut scores.as_chunks_mut::<LANES>().0[groups.clone()];
    if state.max == f32::NEG_INFINITY {
        lanes.fill([0.0; LANES]);
        return;
    }
    let mut at = groups.start * LANES;
    for lanes in lanes {
        // SAFETY: `lanes` has sixteen elements.
        let mut v = unsafe { simd.load(lanes.as_ptr()) };
        v = simd.exp2(simd.fma(v, factor, shift));
        if !WHOLE && (sees.start > at || sees.end < at + LANES) {
            v = simd.keep_range(v, sees.start.saturating_sub(at), sees.end - at, 0.0);
        }
        // SAFETY: as above.
        unsafe { simd.store(lanes.as_mut_ptr(), v) };
        sum = simd.add(sum, v);
        at += LANES;
    }
    // SAFETY: as above.
    unsafe { simd.store(state.sum.as_mut_ptr(), sum) };
}
