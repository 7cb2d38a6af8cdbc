//! Tiers that do as they are told.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tilewise_engine::cache::keys::ChunkKey;
use tilewise_engine::cache::tiers::{CacheTier, HostTier, Source, TierError, Value};

/// What a [`Told`] tier is told, and what it has done.
#[derive(Default)]
pub(crate) struct Orders {
    /// How long each load and store takes.
    pub(crate) takes: Mutex<Duration>,
    /// Whether it can be reached.
    pub(crate) gone: AtomicBool,
    /// Whether the next load panics.
    pub(crate) panics: AtomicBool,
    pub(crate) loads: AtomicUsize,
    pub(crate) stores: AtomicUsize,
}

/// A tier in memory that is slow, gone or broken on demand.
pub(crate) struct Told {
    source: Source,
    inner: HostTier,
    orders: Arc<Orders>,
}

impl Told {
    pub(crate) fn tier(source: Source) -> (Box<dyn CacheTier>, Arc<Orders>) {
        let orders = Arc::new(Orders::default());
        (Box::new(Self { source, inner: HostTier::new(1 << 30), orders: orders.clone() }), orders)
    }

    fn obey(&self) -> Result<(), TierError> {
        std::thread::sleep(*self.orders.takes.lock().unwrap());
        assert!(!self.orders.panics.load(Ordering::Relaxed), "told to panic");
        match self.orders.gone.load(Ordering::Relaxed) {
            true => Err(TierError::Unavailable("told to be gone".to_owned())),
            false => Ok(()),
        }
    }
}

impl CacheTier for Told {
    fn source(&self) -> Source {
        self.source
    }

    fn store(&mut self, key: &ChunkKey, value: &Value) -> Result<(), TierError> {
        self.orders.stores.fetch_add(1, Ordering::Relaxed);
        self.obey()?;
        self.inner.store(key, value)
    }

    fn load(&mut self, key: &ChunkKey) -> Result<Option<Value>, TierError> {
        self.orders.loads.fetch_add(1, Ordering::Relaxed);
        self.obey()?;
        self.inner.load(key)
    }

    fn contains(&mut self, key: &ChunkKey) -> Result<bool, TierError> {
        self.inner.contains(key)
    }

    fn remove(&mut self, key: &ChunkKey) -> Result<(), TierError> {
        self.inner.remove(key)
    }
}
