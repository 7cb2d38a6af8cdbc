//! Weighted values, straight from where they are and widened in registers.

use std::ops::Range;

use super::super::simd::{Element, Kernel, LANES, Simd};
use super::super::tile::{FLOWING, ROWS, STRIDED, Tile, load_some, with_rows};
use super::fold::{SCORE_STRIDE, Scratch, TileView};
use super::item::Item;
use super::source::KvSource;
use crate::plan::KV_BLOCK;

const GROUPS: usize = KV_BLOCK / LANES;

/// Which of a block's keys are weighed. In the order of keys, as a row's chains want it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Those before the common ones of a tile; all of each row's, where the tile has no common ones.
    Before,
    /// Those that all rows of a tile see.
    Common,
    /// Those after the common ones.
    After,
}

impl Part {
    /// The keys of this part that a row sees.
    fn of(self, sees: &Range<usize>, common: &Range<usize>) -> Range<usize> {
        match (self, common.is_empty()) {
            (Self::Before, true) => sees.clone(),
            (_, true) => 0..0,
            (Self::Before, false) => sees.start..common.start,
            (Self::Common, false) => common.clone(),
            (Self::After, false) => common.end..sees.end,
        }
    }
}

/// The value rows of a block.
#[derive(Clone, Copy)]
pub(super) struct Values<E> {
    /// The first value of each group of sixteen; null where the block has none.
    groups: [*const E; GROUPS],
    /// Elements between tokens.
    stride: usize,
    /// Elements between panels of sixteen elements.
    panel_step: usize,
    /// Whether values are padded to sixteen elements.
    padded: bool,
}

impl<E: Element + bytemuck::Zeroable> Values<E> {
    /// # Safety
    /// `block` must be keys of the sequence that `source` is of.
    #[inline(always)]
    pub(super) unsafe fn of_block<K: KvSource<E = E>>(source: K, block: &Range<usize>) -> Self {
        let (stride, panel_step) = source.value_strides();
        let padded = source.padded_values();
        let mut values = Self { groups: [std::ptr::null(); GROUPS], stride, panel_step, padded };
        for group in block.start / LANES..block.end.div_ceil(LANES) {
            // SAFETY: the group contains keys of the block.
            values.groups[group % GROUPS] = unsafe { source.values(group) };
        }
        values
    }

    /// Widens a panel of the block's values to `[KV_BLOCK][16]`; rows without a token stay as they are.
    ///
    /// # Safety
    /// `tokens`, within the block, must all exist, and `to` have room for a panel.
    #[inline(always)]
    pub(super) unsafe fn widen_panel<S: Simd>(
        &self,
        simd: S,
        tokens: Range<usize>,
        (panel, left): (usize, usize),
        to: *mut f32,
    ) {
        let left = if self.padded { LANES } else { left };
        for group in tokens.start / LANES..tokens.end.div_ceil(LANES) {
            let first = group * LANES;
            let (start, end) = (tokens.start.max(first), tokens.end.min(first + LANES));
            let mut row =
                self.groups[group].wrapping_add((start - first) * self.stride + panel * self.panel_step);
            for token in start..end {
                // SAFETY: the token has `left` elements from the panel on; `to` has sixteen for every token of a
                // block.
                unsafe { simd.store(to.add(token * LANES), load_some(simd, row, left)) };
                row = row.wrapping_add(self.stride);
            }
        }
    }
}

/// Adds some of a block's weighted values to the sums of a head's rows.
pub(super) struct WeighBlock<'a, E> {
    pub item: &'a Item<'a>,
    /// Counted within the item.
    pub head: usize,
    /// The head's.
    pub values: &'a Values<E>,
    pub block: &'a Range<usize>,
    /// The keys to weigh, within the block.
    pub keys: Range<usize>,
    pub scratch: &'a mut Scratch,
    pub parts: &'a [Part],
}

impl<E: Element + bytemuck::Zeroable> Kernel for WeighBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { item, head, values, block, keys, scratch, parts } = self;
        let panels = item.value_panels();
        for TileView { rows: tile, union, common } in &scratch.tiles[item.head_tiles(head)] {
            if union.is_empty() {
                continue;
            }
            let out = scratch.out[tile.start * panels * LANES..tile.end * panels * LANES].as_mut_ptr();
            let weights = scratch.scores[tile.start * SCORE_STRIDE..tile.end * SCORE_STRIDE].as_ptr();
            let (value_dim, stride) = (item.params.value_dim, tile.len());
            let weigh = Weigh { values, weights, keys: clip(common, &keys), panels, value_dim, out, stride };
            for part in parts {
                if *part == Part::Common {
                    with_rows!(stride, R => simd.vectorize(OfRows::<E, R>(weigh.clone())));
                } else if common != union {
                    for (r, row) in tile.clone().enumerate() {
                        let own = part.of(&scratch.row_view(row, block), common);
                        simd.vectorize(OfRows::<E, 1>(Weigh {
                            keys: clip(&own, &keys),
                            weights: weights.wrapping_add(r * SCORE_STRIDE),
                            out: out.wrapping_add(r * LANES),
                            ..weigh.clone()
                        }));
                    }
                }
            }
        }
    }
}

fn clip(range: &Range<usize>, to: &Range<usize>) -> Range<usize> {
    range.start.max(to.start)..range.end.min(to.end)
}

/// Some keys of a block, to be weighed.
#[derive(Clone)]
struct Weigh<'a, E> {
    values: &'a Values<E>,
    /// `[rows][SCORE_STRIDE]`.
    weights: *const f32,
    /// Within the block.
    keys: Range<usize>,
    panels: usize,
    value_dim: usize,
    /// `[panels][stride][16]`.
    out: *mut f32,
    stride: usize,
}

/// [`Weigh`] for `R` rows.
struct OfRows<'a, E, const R: usize>(Weigh<'a, E>);

impl<E: Element + bytemuck::Zeroable, const R: usize> Kernel for OfRows<'_, E, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let weigh = self.0;
        if R > S::MAX_ROWS || weigh.keys.is_empty() {
            return;
        }
        let mut panel = 0;
        while panel < weigh.panels {
            let left = weigh.panels - panel;
            if !weigh.values.padded {
                // SAFETY: `WeighBlock` made the pointers of the shapes that the fields tell.
                unsafe { weigh.unpadded::<S, R>(simd, panel) };
                panel += 1;
            } else if R * 4 <= S::MAX_ROWS && left >= 4 {
                weigh.padded::<S, R, 4>(simd, panel);
                panel += 4;
            } else if R * 2 <= S::MAX_ROWS && left >= 2 {
                weigh.padded::<S, R, 2>(simd, panel);
                panel += 2;
            } else {
                weigh.padded::<S, R, 1>(simd, panel);
                panel += 1;
            }
        }
    }
}

impl<E: Element + bytemuck::Zeroable> Weigh<'_, E> {
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
    fn padded<S: Simd, const R: usize, const P: usize>(&self, simd: S, panel: usize) {
        if self.values.stride == LANES {
            self.tiles::<S, R, P, LANES, FLOWING>(simd, panel);
        } else {
            self.tiles::<S, R, P, STRIDED, ROWS>(simd, panel);
        }
    }

    #[inline(always)]
    fn tiles<S: Simd, const R: usize, const P: usize, const STEP: usize, const AHEAD: usize>(
        &self,
        simd: S,
        panel: usize,
    ) {
        for (key, count, first) in self.groups() {
            simd.vectorize(Tile::<E, R, P, SCORE_STRIDE, STEP, AHEAD> {
                a: self.weights.wrapping_add(key),
                b: std::array::from_fn(|p| first.wrapping_add((panel + p) * self.values.panel_step)),
                b_step: self.values.stride,
                len: count,
                c: self.out.wrapping_add(panel * self.stride * LANES),
                c_row: LANES,
                c_panel: self.stride * LANES,
                from_zero: false,
                ahead: std::array::from_fn(|p| {
                    first.wrapping_add((panel + p + 2 * P) * self.values.panel_step).cast()
                }),
            });
        }
    }

    #[inline(always)]
    unsafe fn unpadded<S: Simd, const R: usize>(&self, simd: S, panel: usize) {
        // SAFETY: as the caller says; no more than the row's elements are read.
        unsafe {
            let out = self.out.add(panel * self.stride * LANES);
            for (key, count, first) in self.groups() {
                for token in 0..count {
                    let row = first.add(token * self.values.stride + panel * self.values.panel_step);
                    let column = load_some(simd, row, self.value_dim - panel * LANES);
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
