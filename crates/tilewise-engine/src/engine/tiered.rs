//! The tiers behind the device: chunks that became full go there after a step, and chunks that waiting requests lack come
//! from there before one. No step waits for a tier while there is something else to do.

use std::time::Duration;

use tilewise::{Device, KvCache};

use super::Engine;
use crate::cache::PagePool;
use crate::cache::keys::{CHUNK_TOKENS, KeySpace, ModelDigest, Namespace};
use crate::cache::tiers::{
    CacheTier, Fetched, Poll, Ticket, Tiers, TiersStats, download_chunk, upload_chunk,
};
use crate::config::no_tiers;
use crate::scheduler::Scheduler;
use crate::speculate::Speculator;
use crate::{RequestId, Result};

/// Requests that chunks are fetched for at once: each has some read ahead, which takes memory. Who comes while there are
/// so many is asked for later, or is admitted before.
const FETCHES: usize = 16;

/// Chunks that may wait to be stored, by bytes, but always a few: chunks of large models are large.
const QUEUED_BYTES: usize = 256 << 20;
const QUEUED_CHUNKS: usize = 8;

/// How long a step waits for a tier when there is nothing else to do.
const IDLE: Duration = Duration::from_millis(1);

/// The tiers of an engine and what it has asked them for.
pub(super) struct Tiered {
    tiers: Tiers,
    keys: KeySpace,
    /// In the order in which they were asked for.
    fetches: Vec<Fetch>,
}

struct Fetch {
    of: (RequestId, usize),
    ticket: Ticket,
}

impl Engine {
    /// Keeps the prefix cache in these tiers too, fastest first, instead of those it had. To be called before the first
    /// request. Reads the weights once, which are a part of the chunks' names.
    ///
    /// # Errors
    /// [`crate::Error::Value`] without the prefix cache, [`crate::Error::File`] if the weights cannot be read,
    /// [`crate::Error::Unsupported`] if the system starts no thread.
    pub fn attach_tiers(&mut self, tiers: Vec<Box<dyn CacheTier>>) -> Result<()> {
        if !self.scheduler.has_prefix_cache() {
            return Err(no_tiers());
        }
        let mut layout = self.device.page_layout(&self.kv.config);
        if let Some(kernel) = &self.attention_kernel {
            // A kernel that is forced may have an arithmetic of its own.
            layout.name += &format!(" by {kernel}");
        }
        let digest = ModelDigest::of(&self.source)?;
        let namespace = Namespace::new(&layout, &self.kv.config, self.dtype, digest);
        let queued = QUEUED_BYTES.max(QUEUED_CHUNKS * namespace.chunk_bytes());
        let keys = KeySpace::new(namespace, &self.source.key_name())?;
        self.tiered = Some(Tiered { tiers: Tiers::new(tiers, queued)?, keys, fetches: Vec::new() });
        self.scheduler.use_chunks();
        Ok(())
    }

    /// What the tiers did so far; `None` where there are none.
    pub fn tiers_stats(&self) -> Option<TiersStats> {
        self.tiered.as_ref().map(|tiered| tiered.tiers.stats())
    }

    /// Waits until what tiers were given is stored or refused, or for `limit`. Returns whether it is.
    pub fn flush_tiers(&self, limit: Duration) -> bool {
        self.tiered.as_ref().is_none_or(|tiered| tiered.tiers.flush(limit))
    }

    /// Takes what has arrived since the last step, then asks for what is lacking now. With `is_idle`, waits a little for
    /// something to arrive; returns whether there was anything to wait for.
    pub(super) fn promote(&mut self, is_idle: bool) -> bool {
        let Some(tiered) = &mut self.tiered else { return false };
        let is_fetching = !tiered.fetches.is_empty();
        let mut limit = if is_idle { IDLE } else { Duration::ZERO };
        // To copy a chunk takes less time than to compute it: a step takes as many as it could compute.
        let mut room = (self.scheduler.max_batch_tokens() / CHUNK_TOKENS).max(1);
        let mut target = Target {
            device: &*self.device,
            kv: &mut self.kv,
            scheduler: &mut self.scheduler,
            pages: &mut self.pages,
            speculator: self.speculator.as_mut(),
        };
        tiered.fetches.retain_mut(|fetch| {
            // What was fetched for it may have given way to others, who need the pages.
            let mut goes_on = target.scheduler.is_prefetching(fetch.of);
            while goes_on && room > 0 {
                match fetch.ticket.wait(std::mem::take(&mut limit)) {
                    Poll::Pending => return true,
                    Poll::Chunk(fetched) => {
                        room -= 1;
                        goes_on = target.put(fetch.of, &fetched);
                    }
                    Poll::End => goes_on = false,
                }
            }
            if !goes_on {
                target.scheduler.end_prefetch(fetch.of);
            }
            goes_on
        });
        tiered.ask(&mut self.scheduler, &mut self.pages);
        is_fetching
    }

    /// Hands over the chunks that became full. What cannot be read or stored is computed again when it is needed; a device
    /// that failed says so in the next step.
    pub(super) fn demote(&mut self) {
        let Some(tiered) = &self.tiered else { return };
        for chunk in self.scheduler.take_full_chunks() {
            let key = tiered.keys.key(chunk.hash, chunk.salt.as_deref());
            if let Ok(bytes) = download_chunk(&*self.device, &self.kv, &chunk.pages) {
                let _ = tiered.tiers.demote(key, bytes);
            }
        }
    }
}

impl Tiered {
    /// Forgets what is fetched for a request.
    pub(super) fn abort(&mut self, request: RequestId) {
        self.fetches.retain(|fetch| fetch.of.0 != request);
    }

    pub(super) fn finish(&mut self, completion: (RequestId, usize)) {
        self.fetches.retain(|fetch| fetch.of != completion);
    }

    /// Starts to fetch what waiting requests lack.
    fn ask(&mut self, scheduler: &mut Scheduler, pages: &mut PagePool) {
        while self.fetches.len() < FETCHES
            && let Some(prefetch) = scheduler.next_prefetch(pages)
        {
            let salt = prefetch.salt.as_deref();
            let keys = prefetch.hashes.iter().map(|&hash| self.keys.key(hash, salt)).collect();
            self.fetches.push(Fetch { of: prefetch.of, ticket: self.tiers.fetch(keys) });
        }
    }
}

/// Where chunks go that arrive.
struct Target<'a> {
    device: &'a dyn Device,
    kv: &'a mut KvCache,
    scheduler: &'a mut Scheduler,
    pages: &'a mut PagePool,
    speculator: Option<&'a mut Speculator>,
}

impl Target<'_> {
    /// Puts a chunk into pages of the device; false if there is no room for it or it cannot be written, and then the rest
    /// of the prefix is computed.
    fn put(&mut self, of: (RequestId, usize), fetched: &Fetched) -> bool {
        let Some(chunk) = self.scheduler.reserve_chunk(of, self.pages) else { return false };
        if upload_chunk(self.device, self.kv, &chunk, &fetched.bytes).is_err() {
            self.pages.release(chunk);
            return false;
        }
        if let Some(speculator) = &mut self.speculator {
            speculator.overwritten(&chunk);
        }
        self.scheduler.promote(of, fetched.source, chunk, self.pages);
        true
    }
}
