//! Vectors of sixteen f32 on every instruction set, and the element types they load from.
//!
//! A token ([`Scalar`], `Avx2`, `Avx512`, `Neon`) proves that its instructions exist: it can only be made by
//! detection. Every operation rounds alike on all of them (multiply-adds are fused everywhere, horizontal sums are
//! the same tree), so a kernel written over [`Simd`] returns the same bits on any machine.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) use {avx2::Avx2, avx512::Avx512};

use crate::softmax::{EXP2_POLY, ROUND_MAGIC};

/// Lanes of a vector, on every instruction set.
pub(crate) const LANES: usize = 16;

/// Code that runs on any instruction set. `run` must be `#[inline(always)]`, so that it is compiled anew inside
/// each token's [`Simd::vectorize`], with that token's instructions.
///
/// A kernel may call another through `vectorize`: a function call instead of one more copy of its code.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Sixteen lanes of f32.
///
/// # Safety of the pointer methods
/// Loads read and stores write sixteen elements from the pointer on; no alignment is needed.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type V: Copy;

    /// The rows of a register tile of one vector each that leave room for its operands.
    const MAX_ROWS: usize;

    /// Runs a kernel compiled for this instruction set.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// See the trait.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// See the trait.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// # Safety
    /// See the trait.
    unsafe fn load_f16(self, p: *const half::f16) -> Self::V;
    /// # Safety
    /// See the trait.
    unsafe fn load_bf16(self, p: *const half::bf16) -> Self::V;
    /// Loads bf16 stored as [`PairedBf16`].
    /// # Safety
    /// See the trait.
    unsafe fn load_paired_bf16(self, p: *const PairedBf16) -> Self::V;

    /// Rounds to f16, to nearest even, and stores.
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut half::f16, v: Self::V) {
        let mut lanes = [0.0f32; LANES];
        let mut narrow = [half::f16::ZERO; LANES];
        // SAFETY: `lanes` has sixteen elements; the caller vouches for `p`.
        unsafe {
            self.store(lanes.as_mut_ptr(), v);
            for i in 0..LANES {
                narrow[i] = half::f16::from_f32(lanes[i]);
            }
            p.cast::<[half::f16; LANES]>().write_unaligned(narrow);
        }
    }

    /// Rounds to bf16, to nearest even, and stores.
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut half::bf16, v: Self::V) {
        let mut lanes = [0.0f32; LANES];
        let mut narrow = [half::bf16::ZERO; LANES];
        // SAFETY: `lanes` has sixteen elements; the caller vouches for `p`.
        unsafe {
            self.store(lanes.as_mut_ptr(), v);
            for i in 0..LANES {
                narrow[i] = half::bf16::from_f32(lanes[i]);
            }
            p.cast::<[half::bf16; LANES]>().write_unaligned(narrow);
        }
    }

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger lanes; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// Lanes `start..end` of `v`, `fill` elsewhere.
    fn keep_range(self, v: Self::V, start: usize, end: usize, fill: f32) -> Self::V;
    /// `mantissa * 2^n`, where `n` is in the low bits of `shifted`, as [`ROUND_MAGIC`] leaves it.
    fn scale_by_exponent(self, mantissa: Self::V, shifted: Self::V) -> Self::V;
    /// The largest lane, if none is NaN.
    fn reduce_max(self, v: Self::V) -> f32;
    /// The sum: lane `i` and `i + 8`, then 4, 2 and 1 apart.
    fn reduce_sum(self, v: Self::V) -> f32;
    /// Asks for a cache line. Any address is allowed.
    fn prefetch(self, p: *const u8);
    /// Asks for a cache line in the second cache. Any address is allowed.
    fn prefetch_second(self, p: *const u8);

    /// Stores eight vectors as columns: lane `j` of `rows[i]` goes to `p[j * stride + i]`.
    ///
    /// Where the eight elements of column `j` and those of column `j + 1` overlap, the latter stay.
    /// # Safety
    /// `p` must be valid for writes of eight elements at each of sixteen multiples of `stride`.
    #[inline(always)]
    unsafe fn store_columns(self, rows: &[Self::V; 8], p: *mut f32, stride: usize) {
        let mut lanes = [[0.0f32; LANES]; 8];
        // SAFETY: every row of `lanes` has sixteen elements; the caller vouches for `p`.
        unsafe {
            for i in 0..8 {
                self.store(lanes[i].as_mut_ptr(), rows[i]);
            }
            for j in 0..LANES {
                for i in 0..8 {
                    *p.add(j * stride + i) = lanes[i][j];
                }
            }
        }
    }

    /// Stores sixteen vectors as columns: lane `j` of `rows[i]` goes to `p[j * stride + i]`.
    /// # Safety
    /// `p` must be valid for writes of sixteen elements at each of sixteen multiples of `stride`, at least 16.
    #[inline(always)]
    unsafe fn store_transposed(self, rows: &[Self::V; LANES], p: *mut f32, stride: usize) {
        let mut half = [rows[0]; 8];
        for start in [0, 8] {
            half.copy_from_slice(&rows[start..start + 8]);
            // SAFETY: as the caller says.
            unsafe { self.store_columns(&half, p.add(start), stride) };
        }
    }

    /// `2^x` for `x <= 126`; `2^-126` at or below -126; NaN for NaN. The same bits as [`crate::softmax::exp2`].
    #[inline(always)]
    fn exp2(self, x: Self::V) -> Self::V {
        let x = self.max(self.splat(-126.0), x);
        let magic = self.splat(ROUND_MAGIC);
        let n = self.add(x, magic);
        let f = self.sub(x, self.sub(n, magic));
        let mut p = self.splat(EXP2_POLY[6]);
        p = self.fma(p, f, self.splat(EXP2_POLY[5]));
        p = self.fma(p, f, self.splat(EXP2_POLY[4]));
        p = self.fma(p, f, self.splat(EXP2_POLY[3]));
        p = self.fma(p, f, self.splat(EXP2_POLY[2]));
        p = self.fma(p, f, self.splat(EXP2_POLY[1]));
        p = self.fma(p, f, self.splat(EXP2_POLY[0]));
        self.scale_by_exponent(p, n)
    }
}

/// An element type that widens to f32 as it is loaded.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// # Safety
    /// `p` must be valid for reads of sixteen elements.
    unsafe fn load<S: Simd>(simd: S, p: *const Self) -> S::V;
}

/// An element type that f32 are rounded to as they are stored.
pub(crate) trait Narrow: Copy + bytemuck::Zeroable {
    /// # Safety
    /// `p` must be valid for writes of sixteen elements.
    unsafe fn store<S: Simd>(simd: S, v: S::V, p: *mut Self);
}

impl Narrow for f32 {
    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, v: S::V, p: *mut Self) {
        // SAFETY: as the trait's.
        unsafe { simd.store(p, v) }
    }
}

impl Narrow for half::f16 {
    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, v: S::V, p: *mut Self) {
        // SAFETY: as the trait's.
        unsafe { simd.store_f16(p, v) }
    }
}

impl Narrow for half::bf16 {
    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, v: S::V, p: *mut Self) {
        // SAFETY: as the trait's.
        unsafe { simd.store_bf16(p, v) }
    }
}

/// bf16 in groups of sixteen, lane `i` beside lane `i + 8`.
///
/// One load, one shift and one mask then widen sixteen elements: the even halves of the words are lanes 0 to 7,
/// the odd ones lanes 8 to 15. Packed weights and pages are stored so.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct PairedBf16(pub(crate) u16);

/// Where lane `lane` of a group of sixteen stands in [`PairedBf16`] order.
pub(crate) const fn paired(lane: usize) -> usize {
    let group = lane / LANES * LANES;
    let lane = lane % LANES;
    group + if lane < 8 { 2 * lane } else { 2 * lane - 15 }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const Self) -> S::V {
        // SAFETY: as the trait's.
        unsafe { simd.load(p) }
    }
}

impl Element for half::f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const Self) -> S::V {
        // SAFETY: as the trait's.
        unsafe { simd.load_f16(p) }
    }
}

impl Element for half::bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const Self) -> S::V {
        // SAFETY: as the trait's.
        unsafe { simd.load_bf16(p) }
    }
}

impl Element for PairedBf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const Self) -> S::V {
        // SAFETY: as the trait's.
        unsafe { simd.load_paired_bf16(p) }
    }
}

/// The instruction sets of this machine, best first; [`Level::Scalar`] is always there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    Scalar(Scalar),
}

impl Level {
    /// All that this machine has, best first.
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx512::detect().map(Self::Avx512));
            levels.extend(Avx2::detect().map(Self::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        levels.extend(Neon::detect().map(Self::Neon));
        levels.push(Self::Scalar(Scalar));
        levels
    }

    /// Its name in device names and records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            Self::Scalar(_) => "scalar",
        }
    }

    /// Its [`Simd::MAX_ROWS`].
    pub(crate) fn max_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Avx512::MAX_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Avx2::MAX_ROWS,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => Neon::MAX_ROWS,
            Self::Scalar(_) => Scalar::MAX_ROWS,
        }
    }

    /// Runs a kernel with this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.vectorize(kernel),
            Self::Scalar(simd) => simd.vectorize(kernel),
        }
    }
}

#[cfg(test)]
mod tests;
