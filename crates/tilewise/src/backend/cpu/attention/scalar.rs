//! The reference: gathers a head and calls [`crate::reference`].

use super::super::simd::{LANES, Simd};
use super::super::tile::load_some;
use super::fold::Scratch;
use super::item::Item;
use super::source::KvSource;
use crate::{SoftmaxState, reference};

/// Attends with all rows of an item, one query head at a time.
///
/// # Safety
/// `source` must be of the item's sequence.
#[inline(always)]
pub(super) unsafe fn attend<S: Simd, K: KvSource>(
    simd: S,
    item: &Item<'_>,
    source: K,
    scratch: &mut Scratch,
    mut store: impl FnMut(usize, SoftmaxState),
) {
    let (head_dim, value_dim, keys) = (item.params.head_dim, item.params.value_dim, item.num_keys);
    let mut k = vec![0.0f32; keys * head_dim];
    let mut v = vec![0.0f32; keys * value_dim];
    for group in 0..keys.div_ceil(LANES) {
        let tokens = (keys - group * LANES).min(LANES);
        // SAFETY: the group starts below `keys`; `scratch.panel` holds a panel, and every row `value_dim` elements.
        unsafe {
            source.widen_keys(simd, group, tokens, head_dim, scratch.panel.as_mut_ptr());
            let (first, (stride, panel_step)) = (source.values(group), source.value_strides());
            for token in 0..tokens {
                let at = group * LANES + token;
                for (d, key) in k[at * head_dim..][..head_dim].iter_mut().enumerate() {
                    *key = scratch.panel[d * LANES + token];
                }
                let mut lanes = [0.0f32; LANES];
                for (panel, to) in v[at * value_dim..][..value_dim].chunks_mut(LANES).enumerate() {
                    let from = first.add(token * stride + panel * panel_step);
                    let left = if source.padded_values() { LANES } else { to.len() };
                    simd.store(lanes.as_mut_ptr(), load_some(simd, from, left));
                    to.copy_from_slice(&lanes[..to.len()]);
                }
            }
        }
    }
    for tile in item.tiles() {
        for (r, row) in tile.clone().enumerate() {
            let packed = &scratch.q[tile.start * head_dim..tile.end * head_dim];
            let q: Vec<f32> = packed.iter().skip(r).step_by(tile.len()).copied().collect();
            let query = item.place(row).query;
            let sees = item.params.mask.visible(query, item.num_queries, item.num_keys);
            store(row, reference::attention_row(item.params, &q, &k, &v, sees));
        }
    }
}
