//! Few queries: keys and values are read once, straight from where they are, and widened in registers.
//!
//! Memory decides the speed, so every tile prefetches what the next one reads, at the pace at which it reads its
//! own: two panels of keys the next two, across blocks too, and two panels of values the next two of the same rows.

use std::ops::Range;

use super::super::simd::{Element, Kernel, LANES, Simd};
use super::super::tile::{FLOWING, PACKED, ROWS, STRIDED, Tile, load_some, with_rows};
use super::fold::{Item, SCORE_STRIDE, Scratch, SoftmaxBlock, TileView, blocks};
use super::source::KvSource;
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
            weigh_block(simd, item, source, &block, scratch);
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
                let keys = scratch.keys[..2 * LANES * head_dim].as_mut_ptr();
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
    let mut values = Values { groups: [std::ptr::null(); GROUPS], stride: 0, padded: source.padded_values() };
    for group in block.start / LANES..block.end.div_ceil(LANES) {
        // SAFETY: the group contains keys of the block.
        (values.groups[group % GROUPS], values.stride) = unsafe { source.value_rows(group) };
    }
    simd.vectorize(WeighBlock { item, values, block, scratch });
}

/// The value rows of a block.
#[derive(Clone, Copy)]
struct Values<E> {
    /// The first row of each group of sixteen; null where the block has none.
    groups: [*const E; GROUPS],
    /// Elements between rows.
    stride: usize,
    /// Whether rows are padded to sixteen elements.
    padded: bool,
}

/// Adds a block's weighted values to all rows' sums.
struct WeighBlock<'a, E> {
    item: &'a Item<'a>,
    values: Values<E>,
    block: &'a Range<usize>,
    scratch: &'a mut Scratch,
}

impl<E: Element + bytemuck::Zeroable> Kernel for WeighBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { item, values, block, scratch } = self;
        let panels = item.value_panels();
        for TileView { rows: tile, union, common } in &scratch.tiles {
            let rows = tile.len();
            let same = common == union;
            for panel in (0..panels).step_by(2) {
                if union.is_empty() {
                    continue;
                }
                let count = (panels - panel).min(2);
                let at = (tile.start * panels + panel * rows) * LANES;
                let out = scratch.out[at..at + count * rows * LANES].as_mut_ptr();
                let weights = scratch.scores[tile.start * SCORE_STRIDE..tile.end * SCORE_STRIDE].as_ptr();
                let left = item.params.value_dim - panel * LANES;
                let all =
                    Weigh { values, weights, keys: common.clone(), panel, count, left, out, stride: rows };
                let one = |r: usize, keys| {
                    // SAFETY: row `r` of the tile.
                    let (weights, out) = unsafe { (weights.add(r * SCORE_STRIDE), out.add(r * LANES)) };
                    simd.vectorize(OfRows::<E, 1>(Weigh { weights, out, keys, ..all.clone() }));
                };
                if !same {
                    for (r, row) in tile.clone().enumerate() {
                        let sees = scratch.row_view(row, block);
                        one(r, sees.start..if common.is_empty() { sees.end } else { common.start });
                    }
                }
                if !common.is_empty() {
                    with_rows!(rows, R => simd.vectorize(OfRows::<E, R>(all.clone())));
                    if !same {
                        for (r, row) in tile.clone().enumerate() {
                            one(r, common.end..scratch.row_view(row, block).end);
                        }
                    }
                }
            }
        }
    }
}

/// Some keys of a block, to be weighed.
#[derive(Clone)]
struct Weigh<E> {
    values: Values<E>,
    /// `[rows][SCORE_STRIDE]`.
    weights: *const f32,
    /// Within the block.
    keys: Range<usize>,
    /// The first panel of values, the number of panels, and the elements of a row from there on.
    panel: usize,
    count: usize,
    left: usize,
    /// Sums of `count` panels, `[count][stride][16]`.
    out: *mut f32,
    stride: usize,
}

/// [`Weigh`] for `R` rows.
struct OfRows<E, const R: usize>(Weigh<E>);

impl<E: Element + bytemuck::Zeroable, const R: usize> Kernel for OfRows<E, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let weigh = self.0;
        if R > S::MAX_ROWS || weigh.keys.is_empty() {
            return;
        }
        if !weigh.values.padded {
            for p in 0..weigh.count {
                // SAFETY: `WeighBlock` made the pointers of the shapes that the fields tell.
                unsafe { weigh.unpadded::<S, R>(simd, p) };
            }
        } else if weigh.count == 2 && R * 2 <= S::MAX_ROWS {
            weigh.padded::<S, R, 2>(simd, 0);
        } else {
            for p in 0..weigh.count {
                weigh.padded::<S, R, 1>(simd, p);
            }
        }
    }
}

impl<E: Element + bytemuck::Zeroable> Weigh<E> {
    /// The keys, cut where their rows do not follow each other: the first key, the number, and the first row.
    #[inline(always)]
    fn groups(&self) -> impl Iterator<Item = (usize, usize, *const E)> {
        let (keys, values) = (self.keys.clone(), self.values);
        let mut start = keys.start;
        std::iter::from_fn(move || {
            if start >= keys.end {
                return None;
            }
            let first = start;
            let row = values.groups[first / LANES].wrapping_add(first % LANES * values.stride);
            let mut group = first / LANES;
            let follows = |group: usize| values.groups[group].wrapping_add(LANES * values.stride);
            while (group + 1) * LANES < keys.end && values.groups[group + 1] == follows(group) {
                group += 1;
            }
            start = keys.end.min((group + 1) * LANES);
            Some((first, start - first, row))
        })
    }

    #[inline(always)]
    fn padded<S: Simd, const R: usize, const P: usize>(&self, simd: S, skip: usize) {
        for (key, count, first) in self.groups() {
            simd.vectorize(Tile::<E, R, P, SCORE_STRIDE, STRIDED, ROWS> {
                a: self.weights.wrapping_add(key),
                b: std::array::from_fn(|p| first.wrapping_add((self.panel + skip + p) * LANES)),
                b_step: self.values.stride,
                len: count,
                c: self.out.wrapping_add(skip * self.stride * LANES),
                c_row: LANES,
                c_panel: self.stride * LANES,
                from_zero: false,
                ahead: std::array::from_fn(|p| {
                    first.wrapping_add((self.panel + skip + p + 2) * LANES).cast()
                }),
            });
        }
    }

    #[inline(always)]
    unsafe fn unpadded<S: Simd, const R: usize>(&self, simd: S, skip: usize) {
        // SAFETY: as the caller says; no more than the row's elements are read.
        unsafe {
            let out = self.out.add(skip * self.stride * LANES);
            for (key, count, first) in self.groups() {
                for token in 0..count {
                    let row = first.add(token * self.values.stride + (self.panel + skip) * LANES);
                    let column = load_some(simd, row, self.left - skip * LANES);
                    for r in 0..R {
                        let weight = simd.splat(*self.weights.add(r * SCORE_STRIDE + key + token));
                        let sum = out.add(r * LANES);
                        simd.store(sum, simd.fma(weight, column, simd.load(sum)));
                    }
                }
            }
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
