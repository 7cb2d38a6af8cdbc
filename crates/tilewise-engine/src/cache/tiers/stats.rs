//! What tiers did.

use super::{Flaw, Source};

/// Loads that found nothing to use, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Misses {
    /// There was no such value.
    pub absent: u64,
    /// The value was shorter or longer than it should be.
    pub length: u64,
    /// The value was another schema's, another key's, or none of ours.
    pub foreign: u64,
    /// The value's checksum was wrong.
    pub checksum: u64,
    /// The tier failed.
    pub failed: u64,
    /// The tier was left alone because it had failed shortly before.
    pub resting: u64,
}

impl Misses {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self { absent, length, foreign, checksum, failed, resting } = self;
        absent + length + foreign + checksum + failed + resting
    }

    pub(super) fn count(&mut self, flaw: Flaw) {
        *match flaw {
            Flaw::Length => &mut self.length,
            Flaw::Foreign => &mut self.foreign,
            Flaw::Checksum => &mut self.checksum,
        } += 1;
    }
}

/// What one tier did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierStats {
    /// What kind of tier it is.
    pub source: Source,
    /// Loads that gave a chunk.
    pub hits: u64,
    /// Loads that did not.
    pub misses: Misses,
    /// Values that it took.
    pub stores: u64,
    /// Values that it did not take: it failed, refused, or was left alone.
    pub failed_stores: u64,
    /// Bytes of the chunks that it gave.
    pub loaded_bytes: u64,
    /// Bytes of the values that it took.
    pub stored_bytes: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Bytes that it holds, where it knows.
    pub held_bytes: Option<u64>,
}

impl TierStats {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            hits: 0,
            misses: Misses::default(),
            stores: 0,
            failed_stores: 0,
            loaded_bytes: 0,
            stored_bytes: 0,
            errors: 0,
            held_bytes: None,
        }
    }
}

/// What a stack of tiers did so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TiersStats {
    /// The tiers, fastest first.
    pub tiers: Vec<TierStats>,
    /// Chunks that were given while they waited to be stored.
    pub queue_hits: u64,
    /// Chunks that were not stored at all because the queue was full.
    pub dropped: u64,
    /// Fetches that found nothing because too many were under way.
    pub refused_fetches: u64,
    /// Bytes of the chunks that wait to be stored.
    pub queued_bytes: u64,
    /// What went wrong last, and where.
    pub last_error: Option<(Source, String)>,
}
