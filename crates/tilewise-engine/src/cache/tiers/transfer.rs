//! Chunks between the device and the host.

use tilewise::{Device, KvCache};

use crate::cache::PageId;
use crate::cache::keys::CHUNK_TOKENS;
use crate::{Error, Result};

/// The bytes of a chunk's pages, which are in the order of its tokens. Waits for the device.
///
/// # Errors
/// [`Error::Value`] if the pages do not hold a chunk; [`Error::Device`] for a page that does not exist or if the device
/// failed.
pub fn download_chunk(device: &dyn Device, kv: &KvCache, pages: &[PageId]) -> Result<Vec<u8>> {
    check_pages(kv, pages)?;
    let pages: Vec<u32> = pages.iter().map(|page| page.0).collect();
    let mut chunk = Vec::with_capacity(pages.len() * device.page_layout(&kv.config).bytes);
    device.download_pages(kv, &pages, &mut chunk)?;
    Ok(chunk)
}

/// Overwrites the pages of a chunk with what [`download_chunk`] gave on a device with the same layout.
///
/// # Errors
/// [`Error::Value`] if the pages do not hold a chunk or the bytes are none, and then nothing is written;
/// [`Error::Device`] for a page that does not exist or if the device failed, and then the pages hold anything.
pub fn upload_chunk(device: &dyn Device, kv: &mut KvCache, pages: &[PageId], chunk: &[u8]) -> Result<()> {
    check_pages(kv, pages)?;
    let page_bytes = device.page_layout(&kv.config).bytes;
    if chunk.len() != pages.len() * page_bytes {
        return Err(Error::value(
            "chunk",
            format!("{} pages of {page_bytes} bytes", pages.len()),
            chunk.len(),
        ));
    }
    for (page, bytes) in pages.iter().zip(chunk.chunks_exact(page_bytes)) {
        device.upload_page(kv, page.0, bytes)?;
    }
    Ok(())
}

fn check_pages(kv: &KvCache, pages: &[PageId]) -> Result<()> {
    let tokens = pages.len() * kv.config.page_size;
    if tokens != CHUNK_TOKENS {
        return Err(Error::value("pages of a chunk", format!("of {CHUNK_TOKENS} tokens"), tokens));
    }
    Ok(())
}
