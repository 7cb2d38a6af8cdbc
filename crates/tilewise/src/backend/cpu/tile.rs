//! The register tile that linear layers and attention share.

use super::simd::{Element, Kernel, LANES, Simd};

/// `a(r, k)` of a [`Tile`] is `a[k * R + r]`.
pub(crate) const PACKED: usize = 0;

/// The steps of `b` of a [`Tile`] are told at run time.
pub(crate) const STRIDED: usize = 0;

/// A [`Tile`] prefetches nothing.
pub(crate) const NOTHING: usize = 0;

/// A [`Tile`] prefetches from each of `ahead` as many contiguous bytes as it reads from each of `b`.
pub(crate) const FLOWING: usize = 1;

/// A [`Tile`] prefetches half as much: another one does the other half.
pub(crate) const HALF: usize = 3;

/// A [`Tile`] prefetches from each of `ahead` one line per step, `b_step` elements apart.
pub(crate) const ROWS: usize = 2;

/// `c[r][p] += sum over k of a(r, k) * b[p][k]` for `R` rows and `P` vectors of sixteen.
///
/// `a(r, k)` is `a[r * A_ROW + k]`, or as [`PACKED`] says; `b[p][k]` are the sixteen elements from
/// `b[p] + k * B_STEP` (or `b_step`); `c[r][p]` the sixteen from `c + r * c_row + p * c_panel`. Meanwhile memory that
/// comes next is prefetched from `ahead[p]` on, as [`FLOWING`], [`HALF`] and [`ROWS`] say: a line now and then costs nothing,
/// many at once would stop the products until memory has answered.
///
/// Each lane of each accumulator is one chain of fused multiply-adds in the order of `k`. That is the whole of the
/// determinism promise for products: how many rows or panels are computed together changes no chain.
///
/// A tile is a function of its own, so that its accumulators stay in registers whatever surrounds its use.
///
/// # Safety
/// Whoever runs it vouches for the elements so described.
pub(crate) struct Tile<
    E,
    const R: usize,
    const P: usize,
    const A_ROW: usize,
    const B_STEP: usize,
    const AHEAD: usize,
> {
    pub a: *const f32,
    pub b: [*const E; P],
    pub b_step: usize,
    pub len: usize,
    pub c: *mut f32,
    pub c_row: usize,
    pub c_panel: usize,
    /// Whether the chains begin at zero instead of at `c`.
    pub from_zero: bool,
    /// Any addresses.
    pub ahead: [*const u8; P],
}

impl<E: Element, const R: usize, const P: usize, const A_ROW: usize, const B_STEP: usize, const AHEAD: usize>
    Kernel for Tile<E, R, P, A_ROW, B_STEP, AHEAD>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if R > S::MAX_ROWS {
            return; // Never asked for: `row_tiles` divides by MAX_ROWS. Keeps the code from being compiled.
        }
        let (a_row, a_step) = if A_ROW == PACKED { (1, R) } else { (A_ROW, 1) };
        let b_step = if B_STEP == STRIDED { self.b_step } else { B_STEP };
        let mut acc = [[simd.splat(0.0); P]; R];
        // SAFETY: whoever made the tile vouches for all elements; every step is below `len`.
        unsafe {
            if !self.from_zero {
                for r in 0..R {
                    for p in 0..P {
                        acc[r][p] = simd.load(self.c.add(r * self.c_row + p * self.c_panel));
                    }
                }
            }
            let (mut a, mut b, mut ahead) = (self.a, self.b, self.ahead);
            // Four steps written out: a loop around them would put `acc` into memory.
            for _ in 0..self.len / 4 {
                if AHEAD != NOTHING {
                    let line = if AHEAD == ROWS { b_step * size_of::<E>() } else { 64 };
                    let flow = (4 * LANES * size_of::<E>()).div_ceil(64);
                    let lines = [0, flow, 4, flow / 2][AHEAD];
                    for p in 0..P {
                        for _ in 0..lines {
                            simd.prefetch(ahead[p]);
                            ahead[p] = ahead[p].wrapping_add(line);
                        }
                    }
                }
                step(simd, (a, a_row), (b, 0), &mut acc);
                step(simd, (a.add(a_step), a_row), (b, b_step), &mut acc);
                step(simd, (a.add(2 * a_step), a_row), (b, 2 * b_step), &mut acc);
                step(simd, (a.add(3 * a_step), a_row), (b, 3 * b_step), &mut acc);
                a = a.wrapping_add(4 * a_step);
                for p in 0..P {
                    b[p] = b[p].wrapping_add(4 * b_step);
                }
            }
            for _ in 0..self.len % 4 {
                step(simd, (a, a_row), (b, 0), &mut acc);
                a = a.wrapping_add(a_step);
                for p in 0..P {
                    b[p] = b[p].wrapping_add(b_step);
                }
            }
            for r in 0..R {
                for p in 0..P {
                    simd.store(self.c.add(r * self.c_row + p * self.c_panel), acc[r][p]);
                }
            }
        }
    }
}

/// One step of the chains.
#[inline(always)]
unsafe fn step<S: Simd, E: Element, const R: usize, const P: usize>(
    simd: S,
    (a, a_row): (*const f32, usize),
    (b, b_at): ([*const E; P], usize),
    acc: &mut [[S::V; P]; R],
) {
    // Plain loops: a closure, as `map` takes, is compiled without the token's instructions.
    let mut columns = [simd.splat(0.0); P];
    // SAFETY: whoever made the tile vouches for these elements.
    unsafe {
        for p in 0..P {
            columns[p] = E::load(simd, b[p].add(b_at));
        }
        for r in 0..R {
            let x = simd.splat(*a.add(r * a_row));
            for p in 0..P {
                acc[r][p] = simd.fma(x, columns[p], acc[r][p]);
            }
        }
    }
}

/// Divides `rows` rows into tiles of nearly equal size, none above `max_rows`.
pub(crate) fn row_tiles(
    rows: usize,
    max_rows: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> + Clone {
    let tiles = rows.div_ceil(max_rows);
    (0..tiles).map(move |tile| tile * rows / tiles..(tile + 1) * rows / tiles)
}

/// Evaluates an expression with a constant number of rows.
macro_rules! with_rows {
    ($rows:expr, $R:ident => $body:expr) => {
        match $rows {
            1 => {
                const $R: usize = 1;
                $body
            }
            2 => {
                const $R: usize = 2;
                $body
            }
            3 => {
                const $R: usize = 3;
                $body
            }
            4 => {
                const $R: usize = 4;
                $body
            }
            5 => {
                const $R: usize = 5;
                $body
            }
            6 => {
                const $R: usize = 6;
                $body
            }
            7 => {
                const $R: usize = 7;
                $body
            }
            8 => {
                const $R: usize = 8;
                $body
            }
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(crate) use with_rows;

/// Widens and stores sixteen elements.
///
/// # Safety
/// `from` must be readable and `to` writable for sixteen elements.
#[inline(always)]
pub(crate) unsafe fn widen<S: Simd, E: Element>(simd: S, from: *const E, to: *mut f32) {
    // SAFETY: as the caller's.
    unsafe { simd.store(to, E::load(simd, from)) }
}

/// Loads the first `count` of sixteen elements; the others are zero.
///
/// # Safety
/// `from` must be readable for `count` elements.
#[inline(always)]
pub(crate) unsafe fn load_some<S: Simd, E: Element + bytemuck::Zeroable>(
    simd: S,
    from: *const E,
    count: usize,
) -> S::V {
    // SAFETY: `count` elements of `from` are readable by the caller's word; `padded` has sixteen.
    unsafe {
        if count >= LANES {
            return E::load(simd, from);
        }
        let mut padded = [E::zeroed(); LANES];
        std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), count);
        E::load(simd, padded.as_ptr())
    }
}
