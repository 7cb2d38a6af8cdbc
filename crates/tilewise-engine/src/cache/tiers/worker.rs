//! The thread that works the tiers.

use std::ops::Range;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::stack::{Pages, Shared, State, Store};
use super::{CacheTier, Chunk, Source, TierError, TierStats, Value};
use crate::cache::keys::ChunkKey;

/// How long a tier that is unavailable is left alone: doubled each time, up to the second.
const REST: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// A tier and what it did.
struct Slot {
    tier: Box<dyn CacheTier>,
    stats: TierStats,
    /// Until when it is left alone, and for how long this time.
    rest: Option<(Instant, Duration)>,
    error: Option<String>,
}

/// The tiers, fastest first, which this thread alone sees.
pub(super) struct Worker {
    slots: Vec<Slot>,
    shared: Arc<Shared>,
}

/// What is done next: a step of something, after which the queues are looked at again.
enum Work {
    /// Look for a chunk of a ticket.
    Find { ticket: u64, key: ChunkKey },
    /// Give one tier a chunk.
    Store(Store),
}

impl Worker {
    pub(super) fn new(tiers: Vec<Box<dyn CacheTier>>, shared: Arc<Shared>) -> Self {
        let slot = |tier: Box<dyn CacheTier>| {
            let stats = TierStats::new(tier.source());
            Slot { tier, stats, rest: None, error: None }
        };
        let slots: Vec<Slot> = tiers.into_iter().map(slot).collect();
        shared.lock().stats.tiers = slots.iter().map(|slot| slot.stats).collect();
        Self { slots, shared }
    }

    /// Works until told to end.
    pub(super) fn run(mut self) {
        while let Some(work) = self.next() {
            match work {
                Work::Find { ticket, key } => self.find(ticket, &key),
                Work::Store(store) => self.store(store),
            }
        }
    }

    /// Waits for something to do. Fetches go first: requests wait for them.
    fn next(&self) -> Option<Work> {
        let mut state = self.shared.lock();
        loop {
            if state.closing.is_some_and(|limit| state.stores.is_empty() || Instant::now() >= limit) {
                return None;
            }
            if let Some((ticket, key)) = state.next_fetch() {
                return Some(Work::Find { ticket, key });
            }
            if let Some(store) = state.stores.pop_front() {
                state.storing = true;
                return Some(Work::Store(store));
            }
            state = self.shared.wait_for_work(state);
        }
    }

    fn find(&mut self, ticket: u64, key: &ChunkKey) {
        let queued = self.shared.lock().queued(key);
        let found = match queued {
            // It waits in the host's memory.
            Some(chunk) => Some((Source::Host, chunk)),
            None => self.load(key),
        };
        let mut state = self.lock_with_stats();
        state.arrived(ticket, found);
        drop(state);
        self.shared.notify_waiting();
    }

    /// The chunk from the fastest tier that has it, on its way into the faster ones.
    fn load(&mut self, key: &ChunkKey) -> Option<(Source, Chunk)> {
        let mut slots = self.slots.iter_mut().enumerate();
        let (at, (value, chunk)) = slots.find_map(|(at, slot)| Some((at, slot.load(key)?)))?;
        if at > 0 {
            let store = Store { key: key.clone(), pages: Pages::Sealed(value, chunk.clone()), tiers: 0..at };
            self.shared.lock().queue(store);
        }
        Some((self.slots[at].stats.source, chunk))
    }

    /// Gives a chunk to the next of its tiers.
    fn store(&mut self, store: Store) {
        let Store { key, pages, tiers: Range { start, end } } = store;
        let bytes = pages.len();
        let (value, chunk) = match pages {
            Pages::Raw(chunk) => (Value::seal(&key, &chunk), chunk),
            Pages::Sealed(value, chunk) => (value, chunk),
        };
        if let Some(slot) = self.slots.get_mut(start) {
            slot.store(&key, &value);
        }
        let mut state = self.lock_with_stats();
        state.storing = false;
        if start + 1 < end {
            state.stores.push_front(Store { key, pages: Pages::Sealed(value, chunk), tiers: start + 1..end });
        } else {
            state.queued_bytes -= bytes;
        }
        drop(state);
        self.shared.notify_waiting();
    }

    /// The state, with what the tiers did in it.
    fn lock_with_stats(&mut self) -> MutexGuard<'_, State> {
        let mut state = self.shared.lock();
        for (slot, stats) in self.slots.iter_mut().zip(&mut state.stats.tiers) {
            slot.stats.held_bytes = slot.tier.held_bytes();
            *stats = slot.stats;
        }
        for slot in &mut self.slots {
            if let Some(error) = slot.error.take() {
                state.stats.last_error = Some((slot.stats.source, error));
            }
        }
        state
    }
}

impl Drop for Worker {
    /// Also when a tier panics: nobody waits for a thread that is gone.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.storing = false;
        state.stores.clear();
        state.queued_bytes = 0;
        drop(state);
        self.shared.notify_waiting();
    }
}

impl Slot {
    fn is_resting(&self) -> bool {
        self.rest.is_some_and(|(until, _)| Instant::now() < until)
    }

    /// Notes how an operation went.
    fn note<T>(&mut self, outcome: Result<T, TierError>) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.rest = None;
                Some(value)
            }
            Err(error) => {
                self.stats.errors += 1;
                if matches!(error, TierError::Unavailable(_)) {
                    let rest = self.rest.map_or(REST[0], |(_, last)| (last * 2).min(REST[1]));
                    self.rest = Some((Instant::now() + rest, rest));
                }
                self.error = Some(error.to_string());
                None
            }
        }
    }

    fn load(&mut self, key: &ChunkKey) -> Option<(Value, Chunk)> {
        if self.is_resting() {
            self.stats.misses.resting += 1;
            return None;
        }
        let outcome = self.tier.load(key);
        let Some(loaded) = self.note(outcome) else {
            self.stats.misses.failed += 1;
            return None;
        };
        let Some(value) = loaded else {
            self.stats.misses.absent += 1;
            return None;
        };
        match value.open(key) {
            Ok(chunk) => {
                self.stats.hits += 1;
                self.stats.loaded_bytes += chunk.len() as u64;
                Some((value, chunk))
            }
            Err(flaw) => {
                self.stats.misses.count(flaw);
                // It would be in the way of a good one.
                let outcome = self.tier.remove(key);
                self.note(outcome);
                None
            }
        }
    }

    /// Stores a value, unless it is there already: the same key is the same bytes.
    fn store(&mut self, key: &ChunkKey, value: &Value) {
        let stored = !self.is_resting() && {
            let outcome = self.tier.contains(key);
            match self.note(outcome) {
                Some(true) => return,
                Some(false) => {
                    let outcome = self.tier.store(key, value);
                    self.note(outcome).is_some()
                }
                None => false,
            }
        };
        if stored {
            self.stats.stores += 1;
            self.stats.stored_bytes += value.as_bytes().len() as u64;
        } else {
            self.stats.failed_stores += 1;
        }
    }
}
