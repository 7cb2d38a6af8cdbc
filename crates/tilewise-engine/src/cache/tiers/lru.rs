//! What was used when, and how many bytes it all takes.

use std::collections::{BTreeSet, HashMap};

/// A key's digest.
pub(super) type Digest = [u8; 32];

/// Sizes by digest, in the order of the last use. `T` is a time, which differs between entries.
#[derive(Debug)]
pub(super) struct Lru<T> {
    entries: HashMap<Digest, (u64, T)>,
    order: BTreeSet<(T, Digest)>,
    bytes: u64,
}

impl<T: Copy + Ord> Lru<T> {
    pub(super) fn new() -> Self {
        Self { entries: HashMap::new(), order: BTreeSet::new(), bytes: 0 }
    }

    /// The bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds or replaces an entry.
    pub(super) fn insert(&mut self, digest: Digest, bytes: u64, used: T) {
        self.remove(&digest);
        self.entries.insert(digest, (bytes, used));
        self.order.insert((used, digest));
        self.bytes += bytes;
    }

    /// Notes a use; false if there is no such entry.
    pub(super) fn touch(&mut self, digest: &Digest, used: T) -> bool {
        let Some(&(bytes, _)) = self.entries.get(digest) else { return false };
        self.insert(*digest, bytes, used);
        true
    }

    /// Forgets an entry, if it is there.
    pub(super) fn remove(&mut self, digest: &Digest) {
        if let Some((bytes, used)) = self.entries.remove(digest) {
            self.order.remove(&(used, *digest));
            self.bytes -= bytes;
        }
    }

    /// The entry that was not used for longest.
    pub(super) fn oldest(&self) -> Option<Digest> {
        self.order.first().map(|(_, digest)| *digest)
    }
}
