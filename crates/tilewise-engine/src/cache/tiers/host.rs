//! Values in the host's memory.

use std::collections::HashMap;

use super::lru::{Digest, Lru};
use super::{CacheTier, Source, TierError, Value};
use crate::cache::keys::ChunkKey;

/// Values in memory, up to a number of bytes; those that were not used for longest go first.
#[derive(Debug)]
pub struct HostTier {
    max_bytes: u64,
    values: HashMap<Digest, Value>,
    uses: Lru<u64>,
    clock: u64,
}

impl HostTier {
    /// An empty tier that holds at most `max_bytes`.
    pub fn new(max_bytes: u64) -> Self {
        Self { max_bytes, values: HashMap::new(), uses: Lru::new(), clock: 0 }
    }

    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl CacheTier for HostTier {
    fn source(&self) -> Source {
        Source::Host
    }

    fn store(&mut self, key: &ChunkKey, value: &Value) -> Result<(), TierError> {
        let len = value.as_bytes().len() as u64;
        if len > self.max_bytes {
            return Err(TierError::Refused(format!("{len} bytes into {}", self.max_bytes)));
        }
        let (digest, now) = (key.digest(), self.now());
        self.uses.insert(digest, len, now);
        self.values.insert(digest, value.clone());
        while self.uses.bytes() > self.max_bytes
            && let Some(oldest) = self.uses.oldest()
        {
            self.uses.remove(&oldest);
            self.values.remove(&oldest);
        }
        Ok(())
    }

    fn load(&mut self, key: &ChunkKey) -> Result<Option<Value>, TierError> {
        let (digest, now) = (key.digest(), self.now());
        self.uses.touch(&digest, now);
        Ok(self.values.get(&digest).cloned())
    }

    fn contains(&mut self, key: &ChunkKey) -> Result<bool, TierError> {
        let now = self.now();
        Ok(self.uses.touch(&key.digest(), now))
    }

    fn remove(&mut self, key: &ChunkKey) -> Result<(), TierError> {
        let digest = key.digest();
        self.uses.remove(&digest);
        self.values.remove(&digest);
        Ok(())
    }

    fn held_bytes(&self) -> Option<u64> {
        Some(self.uses.bytes())
    }
}
