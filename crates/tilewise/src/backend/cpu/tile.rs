//! The register tile that linear layers and attention share.

use super::simd::{Element, LANES, Simd};

/// `acc[r][p] += sum over k of a(r, k) * b[p][k]`, where `a(r, k)` is `a[r * a_row + k * a_step]` and `b[p][k]` the
/// sixteen elements from `b[p] + k * b_step`.
///
/// Each lane of each accumulator is one chain of fused multiply-adds in the order of `k`. That is the whole of the
/// determinism promise for products: how many rows or panels are computed together changes no chain.
///
/// # Safety
/// All elements so described must be readable.
#[inline(always)]
pub(crate) unsafe fn fma_tile<S: Simd, E: Element, const R: usize, const P: usize>(
    simd: S,
    (a, a_row, a_step): (*const f32, usize, usize),
    (b, b_step): ([*const E; P], usize),
    len: usize,
    acc: &mut [[S::V; P]; R],
) {
    const UNROLL: usize = 4;
    let mut k = 0;
    while k + UNROLL <= len {
        for u in 0..UNROLL {
            // SAFETY: `k + u < len`; the caller vouches for those elements.
            unsafe { fma_step(simd, (a.add(k * a_step), a_row, u * a_step), (b, (k + u) * b_step), acc) };
        }
        k += UNROLL;
    }
    while k < len {
        // SAFETY: as above.
        unsafe { fma_step(simd, (a.add(k * a_step), a_row, 0), (b, k * b_step), acc) };
        k += 1;
    }
}

/// One step of the chains: `a[r * a_row + a_at]` times the sixteen elements from `b[p] + b_at`.
#[inline(always)]
unsafe fn fma_step<S: Simd, E: Element, const R: usize, const P: usize>(
    simd: S,
    (a, a_row, a_at): (*const f32, usize, usize),
    (b, b_at): ([*const E; P], usize),
    acc: &mut [[S::V; P]; R],
) {
    // SAFETY: the caller of `fma_tile` vouches for these elements.
    unsafe {
        let mut columns = [simd.splat(0.0); P];
        for p in 0..P {
            columns[p] = E::load(simd, b[p].add(b_at));
        }
        for r in 0..R {
            let x = simd.splat(*a.add(r * a_row + a_at));
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
