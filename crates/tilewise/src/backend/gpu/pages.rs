//! Pages as bytes, to be kept elsewhere: copies between buffers, and one transfer for all layers.

use std::sync::Arc;

use super::attention::Pages;
use super::context::{Abilities, Context, Span};
use super::memory::GpuBuffer;
use crate::{DType, KvCache, KvCacheConfig, PageLayout, Result, Tensor, checks};

/// The type that pages of a cache are kept in. Matrix units take f16, which holds every bf16 between 2^-14 and 65504
/// exactly.
pub(super) fn stored(abilities: &Abilities, dtype: DType) -> DType {
    match dtype {
        DType::Bf16 if abilities.matrix_tile.is_some() => DType::F16,
        other => other,
    }
}

/// Per layer keys, then values, each `[head, slot, dim]`. Its name has the adapter and its driver, which compiles the
/// arithmetic, and whether and how matrix units are used, whose products round.
pub(super) fn layout(adapter: &str, abilities: &Abilities, config: &KvCacheConfig) -> PageLayout {
    let rows = abilities.matrix_tile.map_or("rows".to_owned(), |tile| format!("rows-tile-{tile}"));
    let elements = abilities.elements.map_or("", |_| "-elements");
    let name = format!("{rows}{elements} of {adapter}");
    let dtype = stored(abilities, config.dtype);
    PageLayout { name, dtype, bytes: page_bytes(config, dtype) }
}

fn page_bytes(config: &KvCacheConfig, dtype: DType) -> usize {
    let row = config.head_dim + config.value_dim;
    config.num_layers * config.num_kv_heads * config.page_size * row * dtype.size()
}

/// Replaces `bytes` by pages, in one read.
pub(super) fn download(context: &Context, kv: &KvCache, pages: &[u32], bytes: &mut Vec<u8>) -> Result<()> {
    let mut all = Vec::new();
    for &page in pages {
        checks::page("download_page", kv, page, kv.config.value_dim)?;
        all.extend(spans(kv, page)?);
    }
    context.read(&all, bytes)
}

/// Overwrites a page.
pub(super) fn upload(context: &Arc<Context>, kv: &KvCache, page: u32, bytes: &[u8]) -> Result<()> {
    checks::page("upload_page", kv, page, kv.config.value_dim)?;
    let spans = spans(kv, page)?;
    checks::page_bytes("upload_page", bytes.len(), spans.iter().map(|span| span.len as usize).sum())?;
    if bytes.is_empty() {
        return Ok(());
    }
    let source = GpuBuffer::to_write(context, || "a page".to_owned(), bytes.len() as u64)?;
    context.write(&source, 0, bytes)?;
    let copies: Vec<_> = beside(&source, &spans).into_iter().zip(spans).collect();
    context.copy(&copies)
}

/// Overwrites pages with others, by way of a scratch page: no buffer may be copied to itself.
pub(super) fn copy(context: &Arc<Context>, kv: &KvCache, copies: &[(u32, u32)]) -> Result<()> {
    checks::copies("copy_pages", kv, copies, kv.config.value_dim)?;
    let Some(&(first, _)) = copies.first() else { return Ok(()) };
    let len = spans(kv, first)?.iter().map(|span| span.len).sum();
    if len == 0 {
        return Ok(());
    }
    let scratch = GpuBuffer::new(context, || "a page".to_owned(), len)?;
    let (mut commands, mut held) = (Vec::new(), None);
    for &(from, to) in copies {
        // Copies of one page follow each other: it is read once.
        if held.replace(from) != Some(from) {
            let spans = spans(kv, from)?;
            commands.extend(spans.iter().copied().zip(beside(&scratch, &spans)));
        }
        let spans = spans(kv, to)?;
        commands.extend(beside(&scratch, &spans).into_iter().zip(spans));
    }
    context.copy(&commands)
}

/// One span after the other, as long as these, from the front of a buffer.
fn beside<'a>(buffer: &'a GpuBuffer, spans: &[Span<'_>]) -> Vec<Span<'a>> {
    let mut start = 0;
    let place = |span: &Span<'_>| {
        start += span.len;
        Span { buffer, start: start - span.len, len: span.len }
    };
    spans.iter().map(place).collect()
}

/// Where a page is, in the order of its bytes. All lengths are multiples of 16 slots of 8 elements.
fn spans(kv: &KvCache, page: u32) -> Result<Vec<Span<'_>>> {
    let mut spans = Vec::new();
    for tensor in kv.layers.iter().flat_map(|layer| [&layer.keys, &layer.values]) {
        let head = head_bytes(tensor);
        for (heads, buffer) in &Pages::of(tensor)?.parts {
            let len = head * heads.len() as u64;
            spans.push(Span { buffer, start: u64::from(page) * len, len });
        }
    }
    Ok(spans)
}

/// Bytes of a head in a page.
fn head_bytes(tensor: &Tensor) -> u64 {
    (tensor.row_len() * tensor.dtype().size()) as u64
}
