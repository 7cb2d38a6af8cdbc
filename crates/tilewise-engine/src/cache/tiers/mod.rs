//! Chunks of the cache that are kept behind the device: in memory, on disk, on servers.
//!
//! What comes out of a tier is what went in under the same key, or nothing: a value carries its key and a checksum, and
//! one that is bad, short, foreign or gone is a miss. No fault of a tier is an error of a request, and no tier is waited
//! for in a step: [`Tiers`] works them on a thread of its own.

mod config;
mod disk;
mod host;
mod lru;
mod object;
mod regular;
mod resp;
mod stack;
mod stats;
mod transfer;
mod value;
mod worker;

use std::fmt;

use super::keys::ChunkKey;

pub use config::TierConfig;
pub use disk::{DiskTier, PRIVATE};
pub use host::HostTier;
pub use object::{ObjectTier, S3Bucket};
pub use resp::RespTier;
pub use stack::{Fetched, Poll, Ticket, Tiers};
pub use stats::{Misses, TierStats, TiersStats};
pub use transfer::{download_chunk, upload_chunk};
pub use value::{Chunk, Flaw, Value};

/// Where a chunk came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The host's memory.
    Host,
    /// A folder.
    Disk,
    /// A server that speaks RESP.
    Resp,
    /// An object store.
    Object,
}

impl Source {
    /// The name used in logs and metrics: `host`, `disk`, `resp`, `object`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Disk => "disk",
            Self::Resp => "resp",
            Self::Object => "object",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a tier did not do what it was asked for. It is counted, and the tier left alone for a while where that helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// It cannot be reached or did not answer in time.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// It will not do this, but may do other things: the value is too large, there is no room.
    #[error("refused: {0}")]
    Refused(String),
}

/// A place that keeps values under keys as long as it likes.
///
/// A tier may lose values and may return wrong ones: whoever loads checks them ([`Value::open`]). It must come back
/// within a time that it knows.
pub trait CacheTier: Send {
    /// What kind of place it is.
    fn source(&self) -> Source;

    /// Keeps a value, in place of what is under its key already.
    ///
    /// # Errors
    /// [`TierError`]; what was under the key before may be lost.
    fn store(&mut self, key: &ChunkKey, value: &Value) -> Result<(), TierError>;

    /// What is under a key, or `None`.
    ///
    /// # Errors
    /// [`TierError::Unavailable`].
    fn load(&mut self, key: &ChunkKey) -> Result<Option<Value>, TierError>;

    /// Whether something is under a key, which counts as a use of it.
    ///
    /// # Errors
    /// [`TierError::Unavailable`].
    fn contains(&mut self, key: &ChunkKey) -> Result<bool, TierError>;

    /// Forgets what is under a key, if anything is.
    ///
    /// # Errors
    /// [`TierError`].
    fn remove(&mut self, key: &ChunkKey) -> Result<(), TierError>;

    /// Bytes that it holds, where it knows.
    fn held_bytes(&self) -> Option<u64> {
        None
    }
}
