//! Pages as bytes, to be kept elsewhere.

use super::buffer::{host, host_mut};
use super::simd::LANES;
use crate::{KvCache, KvCacheConfig, PageLayout, Result, Tensor, checks};

/// The panels of the attention kernels, which are the same on every instruction set; per layer keys, then values.
pub(super) fn layout(config: &KvCacheConfig) -> PageLayout {
    PageLayout { name: format!("panels-{LANES}"), dtype: config.dtype, bytes: config.page_bytes() }
}

/// Replaces `bytes` by a page.
pub(super) fn download(kv: &KvCache, page: u32, bytes: &mut Vec<u8>) -> Result<()> {
    let config = &kv.config;
    checks::page("download_page", kv, page, value_row(config))?;
    bytes.clear();
    bytes.reserve_exact(config.page_bytes());
    for tensor in kv.layers.iter().flat_map(|layer| [&layer.keys, &layer.values]) {
        let (start, len) = part(tensor, config, page);
        bytes.extend_from_slice(&host(tensor.buffer())?.bytes()[start..start + len]);
    }
    Ok(())
}

/// Overwrites a page.
pub(super) fn upload(kv: &mut KvCache, page: u32, bytes: &[u8]) -> Result<()> {
    let config = kv.config;
    checks::page("upload_page", kv, page, value_row(&config))?;
    checks::page_bytes("upload_page", bytes.len(), config.page_bytes())?;
    on_host(kv)?;
    let mut rest = bytes;
    for tensor in kv.layers.iter_mut().flat_map(|layer| [&mut layer.keys, &mut layer.values]) {
        let (start, len) = part(tensor, &config, page);
        let (own, behind) = rest.split_at(len);
        host_mut(tensor.buffer_mut())?.bytes_mut()[start..start + len].copy_from_slice(own);
        rest = behind;
    }
    Ok(())
}

/// Overwrites pages with others.
pub(super) fn copy(kv: &mut KvCache, copies: &[(u32, u32)]) -> Result<()> {
    let config = kv.config;
    checks::copies("copy_pages", kv, copies, value_row(&config))?;
    on_host(kv)?;
    for tensor in kv.layers.iter_mut().flat_map(|layer| [&mut layer.keys, &mut layer.values]) {
        for &(from, to) in copies {
            let ((from, len), (to, _)) = (part(tensor, &config, from), part(tensor, &config, to));
            host_mut(tensor.buffer_mut())?.bytes_mut().copy_within(from..from + len, to);
        }
    }
    Ok(())
}

/// Checks that all of a cache is in the host's memory.
fn on_host(kv: &KvCache) -> Result<()> {
    let mut tensors = kv.layers.iter().flat_map(|layer| [&layer.keys, &layer.values]);
    tensors.try_for_each(|tensor| host(tensor.buffer()).map(|_| ()))
}

/// Elements of a value, padded to whole panels.
fn value_row(config: &KvCacheConfig) -> usize {
    config.value_dim.next_multiple_of(LANES)
}

/// Where the bytes of a page are: the heads of a page lie beside each other.
fn part(tensor: &Tensor, config: &KvCacheConfig, page: u32) -> (usize, usize) {
    let len = config.num_kv_heads * tensor.row_len() * tensor.dtype().size();
    (page as usize * len, len)
}
