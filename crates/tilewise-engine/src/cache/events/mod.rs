//! What enters and leaves the prefix cache, for routers that send a request where its prefix is.

mod publisher;
mod wire;
mod zmtp;

use std::fmt;

pub use publisher::KvEventPublisher;

/// Whether only this machine reaches an endpoint such as `tcp://127.0.0.1:5557`: events carry token ids, and ask for no key.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) for one that names no address.
pub fn is_loopback(endpoint: &str) -> crate::Result<bool> {
    publisher::is_loopback(endpoint)
}

/// What the tokens of a page and of all pages before it hash to: blake3 of the hash before and the token ids, each 32
/// bits, big-endian. The hash before the first page is that of the salt's bytes, none without a salt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageHash([u8; 32]);

impl PageHash {
    /// The hash before the first page.
    pub fn root(salt: Option<&str>) -> Self {
        Self(*blake3::hash(salt.unwrap_or_default().as_bytes()).as_bytes())
    }

    /// The hash of the next page.
    #[must_use]
    pub fn then(self, page: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        page.iter().for_each(|id| {
            hasher.update(&id.to_be_bytes());
        });
        Self(*hasher.finalize().as_bytes())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageHash({})", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// Something that happened to the prefix cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvEvent {
    /// Pages of a prefix, one after the other, can be shared from now on.
    Stored {
        /// Of each page.
        hashes: Vec<PageHash>,
        /// Of the page before them; `None` at the beginning of a text.
        parent: Option<PageHash>,
        /// Of all the pages.
        tokens: Vec<u32>,
        /// Tokens per page.
        page_size: usize,
    },
    /// Pages gave way to others.
    Removed {
        /// Of each page.
        hashes: Vec<PageHash>,
    },
    /// Nothing is cached any more.
    Cleared,
}

/// The events since they were last taken.
#[derive(Debug, Default)]
pub(super) struct KvEventLog(Vec<KvEvent>);

impl KvEventLog {
    pub(super) fn push(&mut self, event: KvEvent) {
        match (self.0.last_mut(), event) {
            (Some(KvEvent::Removed { hashes }), KvEvent::Removed { hashes: more }) => hashes.extend(more),
            (_, event) => self.0.push(event),
        }
    }

    /// Forgets what was not taken: nothing of it is cached any more.
    pub(super) fn clear(&mut self) {
        self.0 = vec![KvEvent::Cleared];
    }

    pub(super) fn take(&mut self) -> Vec<KvEvent> {
        std::mem::take(&mut self.0)
    }
}
