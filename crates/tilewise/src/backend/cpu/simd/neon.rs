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

#[inline(always)]
fn zip(
    a: [float32x4_t; 4],
    b: [float32x4_t; 4],
    f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t,
) -> [float32x4_t; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// Widens four halves. The intrinsic is not stable, the instruction is in every AArch64 (FCVTL).
#[inline(always)]
fn widen_f16(halves: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: converts one register into another; NEON is proven by the token of the only caller.
    unsafe {
        asm!("fcvtl {wide:v}.4s, {halves:v}.4h", wide = lateout(vreg) wide, halves = in(vreg) halves,
             options(pure, nomem, nostack, preserves_flags));
    }
    wide
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
    unsafe fn load_f16(self, p: *const half::f16) -> Self::V {
        let p = p.cast::<u16>();
        // SAFETY: the caller vouches for sixteen readable elements.
        unsafe { [0, 4, 8, 12].map(|i| widen_f16(vld1_u16(p.add(i)))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const half::bf16) -> Self::V {
        let p = p.cast::<u16>();
        // SAFETY: the caller vouches for sixteen readable elements.
        unsafe { [0, 4, 8, 12].map(|i| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(i))))) }
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
        zip(a, b, |a, b| proven!(vaddq_f32(a, b)))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| proven!(vsubq_f32(a, b)))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| proven!(vmulq_f32(a, b)))
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| proven!(vdivq_f32(a, b)))
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
        // A comparison and a selection, not FMAX, so that NaN and signed zeros come out as on x86.
        zip(a, b, |a, b| proven!(vbslq_f32(vcgtq_f32(a, b), a, b)))
    }

    #[inline(always)]
    fn keep_range(self, v: Self::V, start: usize, end: usize, fill: f32) -> Self::V {
        proven! {
            let (start, end) = (vdupq_n_u32(start as u32), vdupq_n_u32(end as u32));
            let fill = vdupq_n_f32(fill);
            let mut lanes = vld1q_u32([0, 1, 2, 3].as_ptr());
            v.map(|v| {
                let inside = vandq_u32(vcgeq_u32(lanes, start), vcltq_u32(lanes, end));
                lanes = vaddq_u32(lanes, vdupq_n_u32(4));
                vbslq_f32(inside, v, fill)
            })
        }
    }

    #[inline(always)]
    fn scale_by_exponent(self, mantissa: Self::V, shifted: Self::V) -> Self::V {
        zip(mantissa, shifted, |m, n| {
            proven! {
                let exponent = vshlq_n_u32::<23>(vreinterpretq_u32_f32(n));
                vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(m), exponent))
            }
        })
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
