//! NEON: a vector is four registers of four.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Kernel, PairedBf16, Simd};

/// Proof that NEON is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// A token, if this machine has the instructions; every AArch64 machine with an operating system does.
    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// Runs intrinsics whose instructions the token proves and that touch no memory.
macro_rules! proven {
    ($($body:tt)*) => {{
        // SAFETY: a token exists only where `detect` found NEON; registers only.
        unsafe { $($body)* }
    }};
}

/// An operation on each of the four registers, written out: closures are compiled as functions of their own.
macro_rules! each {
    ($op:ident($a:ident, $b:ident)) => {
        proven!([$op($a[0], $b[0]), $op($a[1], $b[1]), $op($a[2], $b[2]), $op($a[3], $b[3])])
    };
}

/// Widens eight halves. The intrinsics are not stable, the instructions are in every AArch64 (FCVTL, FCVTL2).
#[inline(always)]
fn widen_f16(halves: uint16x8_t) -> (float32x4_t, float32x4_t) {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: converts registers into registers; NEON is proven by the token of the only caller. `low` is written
    // before the last read of `halves`, so it is not a late output.
    unsafe {
        asm!("fcvtl {low:v}.4s, {halves:v}.4h", "fcvtl2 {high:v}.4s, {halves:v}.8h",
             low = out(vreg) low, high = lateout(vreg) high, halves = in(vreg) halves,
             options(pure, nomem, nostack, preserves_flags));
    }
    (low, high)
}

/// Widens four bf16, the upper halves of f32.
#[inline(always)]
fn widen_bf16(halves: uint16x4_t) -> float32x4_t {
    proven!(vreinterpretq_f32_u32(vshll_n_u16::<16>(halves)))
}

/// The larger lanes, `b` where either is NaN: a comparison and a selection, not FMAX, so that NaN and signed zeros
/// come out as on x86.
#[inline(always)]
fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    proven!(vbslq_f32(vcgtq_f32(a, b), a, b))
}

#[inline(always)]
fn add_exponent(mantissa: float32x4_t, shifted: float32x4_t) -> float32x4_t {
    proven! {
        let exponent = vshlq_n_u32::<23>(vreinterpretq_u32_f32(shifted));
        vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(mantissa), exponent))
    }
}

/// Lanes of `v` whose number, from `first` on, is in `start..end`; `fill` elsewhere.
#[inline(always)]
fn keep(v: float32x4_t, first: u32, start: usize, end: usize, fill: f32) -> float32x4_t {
    const NUMBERS: [u32; 4] = [0, 1, 2, 3];
    proven! {
        let lanes = vaddq_u32(vld1q_u32(NUMBERS.as_ptr()), vdupq_n_u32(first));
        let (start, end) = (vdupq_n_u32(start as u32), vdupq_n_u32(end as u32));
        vbslq_f32(vandq_u32(vcgeq_u32(lanes, start), vcltq_u32(lanes, end)), v, vdupq_n_f32(fill))
    }
}

#[inline(always)]
fn transpose_4x4(r: [float32x4_t; 4]) -> [float32x4_t; 4] {
    proven! {
        let (a, b) = (vzip1q_f32(r[0], r[2]), vzip2q_f32(r[0], r[2]));
        let (c, d) = (vzip1q_f32(r[1], r[3]), vzip2q_f32(r[1], r[3]));
        [vzip1q_f32(a, c), vzip2q_f32(a, c), vzip1q_f32(b, d), vzip2q_f32(b, d)]
    }
}

impl Simd for Neon {
    type V = [float32x4_t; 4];

    // Six rows of four registers are 24 accumulators of 32; multiply-add by element needs no broadcast registers.
    const MAX_ROWS: usize = 6;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn with_features<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: the token proves the feature.
        unsafe { with_features(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        let v = proven!(vdupq_n_f32(x));
        [v; 4]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for sixteen writable elements.
        unsafe {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
            vst1q_f32(p.add(8), v[2]);
            vst1q_f32(p.add(12), v[3]);
        }
    }

    #[inline(always)]
    unsafe fn store_columns(self, rows: &[Self::V; 8], p: *mut f32, stride: usize) {
        for quarter in 0..4 {
            let left =
                transpose_4x4([rows[0][quarter], rows[1][quarter], rows[2][quarter], rows[3][quarter]]);
            let right =
                transpose_4x4([rows[4][quarter], rows[5][quarter], rows[6][quarter], rows[7][quarter]]);
            for j in 0..4 {
                // SAFETY: the caller vouches for eight elements at sixteen multiples of `stride`.
                unsafe {
                    let column = p.add((4 * quarter + j) * stride);
                    vst1q_f32(column, left[j]);
                    vst1q_f32(column.add(4), right[j]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const half::f16) -> Self::V {
        let p = p.cast::<u16>();
        // SAFETY: the caller vouches for sixteen readable elements.
        let halves = unsafe { (vld1q_u16(p), vld1q_u16(p.add(8))) };
        let (low, high) = (widen_f16(halves.0), widen_f16(halves.1));
        [low.0, low.1, high.0, high.1]
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const half::bf16) -> Self::V {
        let p = p.cast::<u16>();
        // SAFETY: the caller vouches for sixteen readable elements.
        let h = unsafe { [vld1_u16(p), vld1_u16(p.add(4)), vld1_u16(p.add(8)), vld1_u16(p.add(12))] };
        [widen_bf16(h[0]), widen_bf16(h[1]), widen_bf16(h[2]), widen_bf16(h[3])]
    }

    #[inline(always)]
    unsafe fn load_paired_bf16(self, p: *const PairedBf16) -> Self::V {
        let p = p.cast::<u32>();
        // SAFETY: the caller vouches for sixteen readable elements, eight pairs. The load has no alignment needs.
        let words = unsafe { [vld1q_u32(p), vld1q_u32(p.add(4))] };
        proven! {
            let odd = vdupq_n_u32(0xffff_0000);
            [
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(words[0])),
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(words[1])),
                vreinterpretq_f32_u32(vandq_u32(words[0], odd)),
                vreinterpretq_f32_u32(vandq_u32(words[1], odd)),
            ]
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        each!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        proven! {
            [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ]
        }
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        [larger(a[0], b[0]), larger(a[1], b[1]), larger(a[2], b[2]), larger(a[3], b[3])]
    }

    #[inline(always)]
    fn keep_range(self, v: Self::V, start: usize, end: usize, fill: f32) -> Self::V {
        [
            keep(v[0], 0, start, end, fill),
            keep(v[1], 4, start, end, fill),
            keep(v[2], 8, start, end, fill),
            keep(v[3], 12, start, end, fill),
        ]
    }

    #[inline(always)]
    fn scale_by_exponent(self, mantissa: Self::V, shifted: Self::V) -> Self::V {
        let (m, n) = (mantissa, shifted);
        [
            add_exponent(m[0], n[0]),
            add_exponent(m[1], n[1]),
            add_exponent(m[2], n[2]),
            add_exponent(m[3], n[3]),
        ]
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        proven!(vmaxvq_f32(vmaxq_f32(vmaxq_f32(v[0], v[1]), vmaxq_f32(v[2], v[3]))))
    }

    #[inline(always)]
    fn reduce_sum(self, v: Self::V) -> f32 {
        proven! {
            let four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch of any address is a hint without effects.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags)) };
    }

    #[inline(always)]
    fn prefetch_second(self, p: *const u8) {
        // SAFETY: a prefetch of any address is a hint without effects.
        unsafe { asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags)) };
    }
}
