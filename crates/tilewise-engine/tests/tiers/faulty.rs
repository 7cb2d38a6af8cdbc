//! A tier that fails in every way that a seed can think of.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tilewise_engine::cache::keys::ChunkKey;
use tilewise_engine::cache::tiers::{CacheTier, Source, TierError, Value};

use crate::support::Random;

/// What can happen to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Delay,
    /// The beginning of the value.
    Short,
    /// The value and more.
    Long,
    /// One bit of the value is another.
    Flipped,
    /// Zeros in place of a part of the value.
    Zeroed,
    /// Another key's value.
    Other,
    /// Random bytes.
    Noise,
    Refused,
    Unavailable,
    /// It does as if it had done it.
    Lost,
}

const FAULTS: [Fault; 10] = [
    Fault::Delay,
    Fault::Short,
    Fault::Long,
    Fault::Flipped,
    Fault::Zeroed,
    Fault::Other,
    Fault::Noise,
    Fault::Refused,
    Fault::Unavailable,
    Fault::Lost,
];

/// How often each of [`FAULTS`] happened.
pub(crate) type Counts = Arc<[AtomicUsize; FAULTS.len()]>;

/// A tier behind a schedule of faults.
pub(crate) struct Faulty {
    inner: Box<dyn CacheTier>,
    random: Random,
    /// One operation of so many goes wrong.
    one_in: usize,
    counts: Counts,
    last: Option<Value>,
}

impl Faulty {
    pub(crate) fn new(inner: Box<dyn CacheTier>, seed: u64, one_in: usize, counts: &Counts) -> Self {
        Self { inner, random: Random::new(seed), one_in, counts: counts.clone(), last: None }
    }

    fn fault(&mut self) -> Fault {
        if self.random.below(self.one_in) > 0 {
            return Fault::None;
        }
        let at = self.random.below(FAULTS.len());
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        FAULTS[at]
    }

    /// Fails, or goes on with what will be wrong with the value.
    fn begin(&mut self) -> Result<Fault, TierError> {
        match self.fault() {
            Fault::Refused => Err(TierError::Refused("injected".to_owned())),
            Fault::Unavailable => Err(TierError::Unavailable("injected".to_owned())),
            Fault::Delay => {
                std::thread::sleep(Duration::from_micros(self.random.below(2000) as u64));
                Ok(Fault::None)
            }
            fault => Ok(fault),
        }
    }

    fn spoil(&mut self, value: Value, fault: Fault) -> Value {
        let mut bytes = value.as_bytes().to_vec();
        let at = self.random.below(bytes.len().max(1));
        match fault {
            Fault::Short => bytes.truncate(at),
            Fault::Long => bytes.extend_from_within(..at),
            Fault::Flipped if at < bytes.len() => bytes[at] ^= 1 << self.random.below(8),
            Fault::Zeroed => bytes[at..].fill(0),
            Fault::Noise => bytes.iter_mut().for_each(|byte| *byte = self.random.bits() as u8),
            Fault::Other => return self.last.replace(value.clone()).unwrap_or(value),
            _ => {}
        }
        self.last = Some(value);
        Value::from_bytes(bytes)
    }
}

impl CacheTier for Faulty {
    fn source(&self) -> Source {
        self.inner.source()
    }

    fn store(&mut self, key: &ChunkKey, value: &Value) -> Result<(), TierError> {
        match self.begin()? {
            Fault::Lost => Ok(()),
            fault => {
                let value = self.spoil(value.clone(), fault);
                self.inner.store(key, &value)
            }
        }
    }

    fn load(&mut self, key: &ChunkKey) -> Result<Option<Value>, TierError> {
        let fault = self.begin()?;
        let Some(value) = self.inner.load(key)? else { return Ok(None) };
        Ok((fault != Fault::Lost).then(|| self.spoil(value, fault)))
    }

    fn contains(&mut self, key: &ChunkKey) -> Result<bool, TierError> {
        match self.begin()? {
            Fault::Lost => Ok(true),
            _ => self.inner.contains(key),
        }
    }

    fn remove(&mut self, key: &ChunkKey) -> Result<(), TierError> {
        match self.begin()? {
            Fault::Lost => Ok(()),
            _ => self.inner.remove(key),
        }
    }
}

/// Whether everything that can go wrong did.
pub(crate) fn assert_all_happened(counts: &Counts) {
    for (fault, count) in FAULTS.iter().zip(counts.iter()) {
        assert!(count.load(Ordering::Relaxed) > 0, "{fault:?} never happened");
    }
}
