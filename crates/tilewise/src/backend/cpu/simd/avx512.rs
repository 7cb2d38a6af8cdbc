//! AVX-512F with AVX2, FMA and F16C: a vector is one register.

use std::arch::x86_64::*;

use super::avx2::transpose_8x8;
use super::{Kernel, PairedBf16, Simd};

/// Proof that AVX-512F, AVX-512DQ, AVX2, FMA and F16C are there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// A token, if this machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

/// Runs intrinsics whose instructions the token proves and that touch no memory.
macro_rules! proven {
    ($($body:tt)*) => {{
        // SAFETY: a token exists only where `detect` found the features; registers only.
        unsafe { $($body)* }
    }};
}

impl Simd for Avx512 {
    type V = __m512;

    // Eight accumulators hide the latency of the two multiply-add units.
    const MAX_ROWS: usize = 8;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512dq,avx2,fma,f16c")]
        fn with_features<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: the token proves the features.
        unsafe { with_features(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        proven!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for sixteen writable elements.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const half::f16) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const half::bf16) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        let halves = unsafe { _mm256_loadu_si256(p.cast()) };
        proven!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))))
    }

    #[inline(always)]
    unsafe fn load_paired_bf16(self, p: *const PairedBf16) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        let words = unsafe { _mm256_loadu_si256(p.cast()) };
        proven! {
            let even = _mm256_slli_epi32::<16>(words);
            let odd = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            _mm512_castsi512_ps(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(even), odd))
        }
    }

    #[inline(always)]
    unsafe fn store_columns(self, rows: &[Self::V; 8], p: *mut f32, stride: usize) {
        let (mut low, mut high) =
            ([proven!(_mm512_castps512_ps256(rows[0])); 8], [proven!(_mm256_setzero_ps()); 8]);
        for i in 0..8 {
            low[i] = proven!(_mm512_castps512_ps256(rows[i]));
            high[i] = proven!(_mm512_extractf32x8_ps::<1>(rows[i]));
        }
        let columns = [proven!(transpose_8x8(low)), proven!(transpose_8x8(high))];
        for j in 0..16 {
            // SAFETY: the caller vouches for eight elements at sixteen multiples of `stride`.
            unsafe { _mm256_storeu_ps(p.add(j * stride), columns[j / 8][j % 8]) };
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut half::f16, v: Self::V) {
        let narrow = proven!(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
        // SAFETY: the caller vouches for sixteen writable elements.
        unsafe { _mm256_storeu_si256(p.cast(), narrow) };
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        proven!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn keep_range(self, v: Self::V, start: usize, end: usize, fill: f32) -> Self::V {
        let below = |lane: usize| ((1u32 << lane.min(16)) - 1) as u16;
        proven!(_mm512_mask_blend_ps(below(end) & !below(start), _mm512_set1_ps(fill), v))
    }

    #[inline(always)]
    fn scale_by_exponent(self, mantissa: Self::V, shifted: Self::V) -> Self::V {
        proven! {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(mantissa), exponent))
        }
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        proven!(_mm512_reduce_max_ps(v))
    }

    #[inline(always)]
    fn reduce_sum(self, v: Self::V) -> f32 {
        proven! {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), high);
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
}
