//! AVX2 with FMA and F16C: a vector is two registers of eight.

use std::arch::x86_64::*;

use super::{Kernel, PairedBf16, Simd};

/// Proof that AVX2, FMA and F16C are there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// A token, if this machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

/// Runs intrinsics whose instructions the token proves and that touch no memory.
macro_rules! proven {
    ($($body:tt)*) => {{
        // SAFETY: a token exists only where `detect` found AVX2, FMA and F16C; registers only.
        unsafe { $($body)* }
    }};
}

impl Simd for Avx2 {
    type V = [__m256; 2];

    // Six rows of two registers are 12 accumulators; two registers of the other operand and a broadcast make 15
    // of 16.
    const MAX_ROWS: usize = 6;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn with_features<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: the token proves the features.
        unsafe { with_features(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        let v = proven!(_mm256_set1_ps(x));
        [v, v]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for sixteen writable elements.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const half::f16) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))]
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const half::bf16) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        let (low, high) = unsafe { (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast())) };
        proven! {
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(low))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(high))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_paired_bf16(self, p: *const PairedBf16) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        let words = unsafe { _mm256_loadu_si256(p.cast()) };
        proven! {
            let odd = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(odd)]
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut half::f16, v: Self::V) {
        let low = proven!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
        let high = proven!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]));
        // SAFETY: the caller vouches for sixteen writable elements.
        unsafe {
            _mm_storeu_si128(p.cast(), low);
            _mm_storeu_si128(p.add(8).cast(), high);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        proven!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        proven!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        proven!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        proven!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        proven!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        proven!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn keep_range(self, v: Self::V, start: usize, end: usize, fill: f32) -> Self::V {
        proven! {
            let (start, end) = (_mm256_set1_epi32(start as i32 - 1), _mm256_set1_epi32(end as i32));
            let fill = _mm256_set1_ps(fill);
            let low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
            let low = _mm256_and_si256(_mm256_cmpgt_epi32(low, start), _mm256_cmpgt_epi32(end, low));
            let high = _mm256_and_si256(_mm256_cmpgt_epi32(high, start), _mm256_cmpgt_epi32(end, high));
            [
                _mm256_blendv_ps(fill, v[0], _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(fill, v[1], _mm256_castsi256_ps(high)),
            ]
        }
    }

    #[inline(always)]
    fn scale_by_exponent(self, mantissa: Self::V, shifted: Self::V) -> Self::V {
        proven! {
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted[0]));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted[1]));
            [
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(mantissa[0]), low)),
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(mantissa[1]), high)),
            ]
        }
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        proven! {
            let eight = _mm256_max_ps(v[0], v[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn reduce_sum(self, v: Self::V) -> f32 {
        proven! {
            let eight = _mm256_add_ps(v[0], v[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(p.cast()));
    }

    #[inline(always)]
    fn prefetch_second(self, p: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T1>(p.cast()));
    }

    #[inline(always)]
    unsafe fn store_columns(self, rows: &[Self::V; 8], p: *mut f32, stride: usize) {
        for half in 0..2 {
            let mut block = [rows[0][half]; 8];
            for i in 1..8 {
                block[i] = rows[i][half];
            }
            let columns = proven!(transpose_8x8(block));
            for j in 0..8 {
                // SAFETY: the caller vouches for eight elements at sixteen multiples of `stride`.
                unsafe { _mm256_storeu_ps(p.add((8 * half + j) * stride), columns[j]) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn transpose_8x8(r: [__m256; 8]) -> [__m256; 8] {
    let mut pairs = r;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    let mut fours = pairs;
    for i in 0..2 {
        let q = 4 * i;
        fours[q] = _mm256_shuffle_ps::<0x44>(pairs[q], pairs[q + 2]);
        fours[q + 1] = _mm256_shuffle_ps::<0xee>(pairs[q], pairs[q + 2]);
        fours[q + 2] = _mm256_shuffle_ps::<0x44>(pairs[q + 1], pairs[q + 3]);
        fours[q + 3] = _mm256_shuffle_ps::<0xee>(pairs[q + 1], pairs[q + 3]);
    }
    let mut out = fours;
    for i in 0..4 {
        out[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
        out[i + 4] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
    }
    out
}
