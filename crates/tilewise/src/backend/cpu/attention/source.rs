//! Where the keys and values of one KV head of one sequence are.

use super::super::simd::{Element, LANES, PairedBf16, Simd};
use super::super::tile::{load_some, widen};
use crate::plan::KV_BLOCK;

/// Keys and values of one head, by groups of sixteen tokens from the sequence's start.
///
/// # Safety
/// Implementations hold pointers; every method requires that the group contains a token of the sequence.
pub(super) trait KvSource: Copy + Send + Sync {
    type E: Element + bytemuck::Zeroable;

    /// The group's keys as `[head_dim][16]`, where they are stored so.
    unsafe fn key_panel(&self, group: usize) -> Option<*const Self::E>;

    /// The first sixteen elements of the first of the group's values.
    unsafe fn values(&self, group: usize) -> *const Self::E;

    /// The elements between tokens, and between panels of sixteen elements, of a group's values.
    fn value_strides(&self) -> (usize, usize);

    /// Whether values are padded to sixteen elements.
    fn padded_values(&self) -> bool;

    /// The tokens whose keys, and whose values, are beside each other.
    fn span(&self) -> usize;

    /// The source of a later head.
    fn later_head(&self, heads: usize) -> Self;

    /// Names the memory of a group's first `tokens` keys.
    unsafe fn key_memory(&self, group: usize, tokens: usize, head_dim: usize, to: &mut Vec<Region>);

    /// Names the memory of a group's first `tokens` values.
    unsafe fn value_memory(&self, group: usize, tokens: usize, value_dim: usize, to: &mut Vec<Region>);

    /// Widens the first `tokens` keys of a group to `[head_dim][16]`; other lanes are unspecified.
    unsafe fn widen_keys<S: Simd>(&self, simd: S, group: usize, tokens: usize, head_dim: usize, to: *mut f32);
}

/// Some bytes that will be read: where they start and how many.
pub(super) type Region = (*const u8, usize);

/// Adds a region, to the last one if it follows it.
fn push(to: &mut Vec<Region>, (start, len): Region) {
    match to.last_mut() {
        Some(last) if last.0.wrapping_add(last.1) == start => last.1 += len,
        _ => to.push((start, len)),
    }
}

/// Pages written by `append_kv`, by heads: keys in panels `[page_size / 16][head_dim][16]`, values in panels
/// `[value_dim / 16][page_size][16]`.
#[derive(Clone, Copy)]
pub(super) struct Paged<'a, E> {
    /// The head's part of page 0.
    pub keys: *const E,
    /// The head's part of page 0.
    pub values: *const E,
    /// Elements between heads.
    pub key_head: usize,
    pub value_head: usize,
    /// Elements between pages.
    pub key_page: usize,
    pub value_page: usize,
    pub pages: &'a [u32],
    pub page_size: usize,
    pub head_dim: usize,
}

// SAFETY: the pointers are to tensors borrowed for the launch, and only read.
unsafe impl<E: Sync> Send for Paged<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for Paged<'_, E> {}

impl<E: Element + bytemuck::Zeroable> KvSource for Paged<'_, E> {
    type E = E;

    #[inline(always)]
    unsafe fn key_panel(&self, group: usize) -> Option<*const E> {
        let token = group * LANES;
        let page = self.pages[token / self.page_size] as usize;
        // SAFETY: the plan checked that every page of the table lies inside the tensor.
        Some(unsafe { self.keys.add(page * self.key_page + token % self.page_size * self.head_dim) })
    }

    #[inline(always)]
    unsafe fn values(&self, group: usize) -> *const E {
        let token = group * LANES;
        let page = self.pages[token / self.page_size] as usize;
        // SAFETY: as above.
        unsafe { self.values.add(page * self.value_page + token % self.page_size * LANES) }
    }

    #[inline(always)]
    fn value_strides(&self) -> (usize, usize) {
        (LANES, self.page_size * LANES)
    }

    #[inline(always)]
    fn span(&self) -> usize {
        self.page_size
    }

    #[inline(always)]
    fn later_head(&self, heads: usize) -> Self {
        let keys = self.keys.wrapping_add(heads * self.key_head);
        let values = self.values.wrapping_add(heads * self.value_head);
        Self { keys, values, ..*self }
    }

    #[inline(always)]
    fn padded_values(&self) -> bool {
        true
    }

    #[inline(always)]
    unsafe fn key_memory(&self, group: usize, _: usize, head_dim: usize, to: &mut Vec<Region>) {
        // SAFETY: the caller says that the group exists.
        if let Some(panel) = unsafe { self.key_panel(group) } {
            push(to, (panel.cast(), head_dim * LANES * size_of::<E>()));
        }
    }

    #[inline(always)]
    unsafe fn value_memory(&self, group: usize, tokens: usize, value_dim: usize, to: &mut Vec<Region>) {
        for panel in 0..value_dim.div_ceil(LANES) {
            // SAFETY: the caller says that the group exists.
            let start = unsafe { self.values(group).add(panel * self.page_size * LANES) };
            push(to, (start.cast(), tokens * LANES * size_of::<E>()));
        }
    }

    #[inline(always)]
    unsafe fn widen_keys<S: Simd>(&self, simd: S, group: usize, _: usize, head_dim: usize, to: *mut f32) {
        // SAFETY: a panel is `head_dim` groups of sixteen; `to` has room for them by the caller's word.
        unsafe {
            if let Some(panel) = self.key_panel(group) {
                for d in 0..head_dim {
                    widen(simd, panel.add(d * LANES), to.add(d * LANES));
                }
            }
        }
    }
}

/// Token-major vectors at fixed strides.
#[derive(Clone, Copy)]
pub(super) struct Tokens<E> {
    pub keys: *const E,
    pub values: *const E,
    /// Elements between tokens.
    pub key_stride: usize,
    pub value_stride: usize,
    /// Elements between heads.
    pub key_head: usize,
    pub value_head: usize,
    pub value_dim: usize,
}

// SAFETY: the pointers are to tensors borrowed for the launch, and only read.
unsafe impl<E: Sync> Send for Tokens<E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for Tokens<E> {}

impl<E: Element + bytemuck::Zeroable> KvSource for Tokens<E> {
    type E = E;

    #[inline(always)]
    unsafe fn key_panel(&self, _: usize) -> Option<*const E> {
        None
    }

    #[inline(always)]
    unsafe fn values(&self, group: usize) -> *const E {
        // SAFETY: the group starts at a token of the sequence.
        unsafe { self.values.add(group * LANES * self.value_stride) }
    }

    #[inline(always)]
    fn value_strides(&self) -> (usize, usize) {
        (self.value_stride, LANES)
    }

    #[inline(always)]
    fn span(&self) -> usize {
        KV_BLOCK
    }

    #[inline(always)]
    fn later_head(&self, heads: usize) -> Self {
        let keys = self.keys.wrapping_add(heads * self.key_head);
        let values = self.values.wrapping_add(heads * self.value_head);
        Self { keys, values, ..*self }
    }

    #[inline(always)]
    fn padded_values(&self) -> bool {
        self.value_dim.is_multiple_of(LANES)
    }

    #[inline(always)]
    unsafe fn key_memory(&self, group: usize, tokens: usize, head_dim: usize, to: &mut Vec<Region>) {
        for token in group * LANES..group * LANES + tokens {
            let key = self.keys.wrapping_add(token * self.key_stride);
            push(to, (key.cast(), head_dim * size_of::<E>()));
        }
    }

    #[inline(always)]
    unsafe fn value_memory(&self, group: usize, tokens: usize, value_dim: usize, to: &mut Vec<Region>) {
        for token in group * LANES..group * LANES + tokens {
            let value = self.values.wrapping_add(token * self.value_stride);
            push(to, (value.cast(), value_dim * size_of::<E>()));
        }
    }

    #[inline(always)]
    unsafe fn widen_keys<S: Simd>(
        &self,
        simd: S,
        group: usize,
        tokens: usize,
        head_dim: usize,
        to: *mut f32,
    ) {
        // SAFETY: `tokens` keys of `head_dim` elements from the group's start on are readable; lanes beyond repeat
        // the last of them, and `to` has room for `head_dim` groups of sixteen.
        unsafe {
            let first = self.keys.add(group * LANES * self.key_stride);
            for d in (0..head_dim).step_by(LANES) {
                let mut rows = [simd.splat(0.0); LANES];
                for token in 0..LANES {
                    let key = first.add(token.min(tokens - 1) * self.key_stride + d);
                    rows[token] = load_some(simd, key, head_dim - d);
                }
                if head_dim - d >= LANES {
                    simd.store_transposed(&rows, to.add(d * LANES), LANES);
                } else {
                    let mut columns = [0.0f32; LANES * LANES];
                    simd.store_transposed(&rows, columns.as_mut_ptr(), LANES);
                    let rest = (head_dim - d) * LANES;
                    std::ptr::copy_nonoverlapping(columns.as_ptr(), to.add(d * LANES), rest);
                }
            }
        }
    }
}

/// The element type that a paged cache stores for each dtype's token-major type.
pub(super) trait Stored {
    type Paged: Element + bytemuck::Pod;
}

impl Stored for f32 {
    type Paged = Self;
}

impl Stored for half::f16 {
    type Paged = Self;
}

impl Stored for half::bf16 {
    type Paged = PairedBf16;
}
