//! Sixteen lanes without vector instructions: the meaning of every operation.

use super::{Kernel, LANES, PairedBf16, Simd, paired};

/// The token that needs no proof.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn map(f: impl FnMut(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Simd for Scalar {
    type V = [f32; LANES];

    const MAX_ROWS: usize = 2;

    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for sixteen writable elements.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const half::f16) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        map(|i| unsafe { p.add(i).read_unaligned() }.to_f32())
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const half::bf16) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements.
        map(|i| unsafe { p.add(i).read_unaligned() }.to_f32())
    }

    #[inline(always)]
    unsafe fn load_paired_bf16(self, p: *const PairedBf16) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable elements, and `paired` permutes 0..16.
        map(|i| f32::from_bits(u32::from(unsafe { p.add(paired(i)).read_unaligned() }.0) << 16))
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        map(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        map(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        map(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        map(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        map(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        map(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn keep_range(self, v: Self::V, start: usize, end: usize, fill: f32) -> Self::V {
        map(|i| if (start..end).contains(&i) { v[i] } else { fill })
    }

    #[inline(always)]
    fn scale_by_exponent(self, mantissa: Self::V, shifted: Self::V) -> Self::V {
        map(|i| f32::from_bits(mantissa[i].to_bits().wrapping_add(shifted[i].to_bits() << 23)))
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn reduce_sum(self, mut v: Self::V) -> f32 {
        for apart in [8, 4, 2, 1] {
            for i in 0..apart {
                v[i] += v[i + apart];
            }
        }
        v[0]
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    fn prefetch_second(self, _: *const u8) {}
}
