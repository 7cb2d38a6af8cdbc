//! The tiers behind one device: what the engine's step asks for and never waits for.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::worker::Worker;
use super::{CacheTier, Chunk, Source, TiersStats, Value};
use crate::cache::keys::ChunkKey;
use crate::{Error, Result};

/// Chunks that are ready and that nobody has asked for, per ticket: what is read ahead takes memory.
const AHEAD: usize = 4;

/// Tickets that are under way at most.
const TICKETS: usize = 1024;

/// How long the chunks that wait may take to be stored when the tiers are dropped.
const CLOSING: Duration = Duration::from_secs(5);

/// Tiers in order, fastest first, worked by one thread.
///
/// A chunk is written through to every tier at once rather than when a faster one evicts it: what is on disk or on a
/// server survives a crash, other machines find it, and evicting is forgetting, without a write in anybody's way. What
/// a slower tier had is written to the faster ones.
pub struct Tiers {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    tiers: usize,
}

/// A fetch under way; dropping it abandons it.
#[derive(Debug)]
pub struct Ticket {
    shared: Arc<Shared>,
    id: u64,
}

/// What has become of a ticket.
#[derive(Debug)]
pub enum Poll {
    /// Nothing new.
    Pending,
    /// The next chunk of the prefix.
    Chunk(Fetched),
    /// There is no more: all chunks were found, or the next one is nowhere.
    End,
}

/// A chunk that was found.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Its place among the keys that were asked for.
    pub index: usize,
    /// The tier that had it.
    pub source: Source,
    /// Its pages, as they were stored.
    pub bytes: Chunk,
}

/// What the thread and the callers share. The lock is never held during a tier's work.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// There is work, or an end of it.
    work: Condvar,
    /// Something was done.
    done: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    /// Chunks that wait to be stored, and one being stored.
    pub stores: VecDeque<Store>,
    pub storing: bool,
    pub queued_bytes: usize,
    max_queued_bytes: usize,
    fetches: BTreeMap<u64, Fetch>,
    /// The fetches that are not at their end, the next one first.
    turns: VecDeque<u64>,
    next_ticket: u64,
    /// Until when to go on, once the tiers are dropped.
    pub closing: Option<Instant>,
    pub ended: bool,
    pub stats: TiersStats,
}

/// A chunk on its way into some of the tiers.
#[derive(Debug)]
pub(super) struct Store {
    pub key: ChunkKey,
    pub pages: Pages,
    pub tiers: Range<usize>,
}

#[derive(Debug)]
pub(super) enum Pages {
    /// As they came from the device.
    Raw(Chunk),
    /// As tiers keep them, and the pages in that.
    Sealed(Value, Chunk),
}

#[derive(Debug)]
struct Fetch {
    keys: Vec<ChunkKey>,
    next: usize,
    ready: VecDeque<Fetched>,
    over: bool,
}

impl Tiers {
    /// Starts the thread that works these tiers, fastest first; chunks of up to `max_queued_bytes` may wait to be
    /// stored.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the system starts no thread.
    pub fn new(tiers: Vec<Box<dyn CacheTier>>, max_queued_bytes: usize) -> Result<Self> {
        let shared = Arc::new(Shared::new(max_queued_bytes));
        let count = tiers.len();
        let worker = Worker::new(tiers, shared.clone());
        let thread = std::thread::Builder::new().name("tilewise-tiers".to_owned()).spawn(|| worker.run());
        let thread =
            thread.map_err(|error| Error::unsupported("a thread for cache tiers", error.to_string()))?;
        Ok(Self { shared, thread: Some(thread), tiers: count })
    }

    /// Hands over a chunk to be stored in every tier, and returns at once. Returns false if it was dropped because the
    /// queue is full, which is counted.
    ///
    /// # Errors
    /// [`Error::Value`] if the key's chunks have another length.
    pub fn demote(&self, key: ChunkKey, pages: Vec<u8>) -> Result<bool> {
        if pages.len() != key.chunk_bytes() {
            return Err(Error::value("chunk", format!("{} bytes", key.chunk_bytes()), pages.len()));
        }
        let pages = Pages::Raw(Chunk::unsealed(Arc::new(pages)));
        let queued = self.shared.lock().queue(Store { key, pages, tiers: 0..self.tiers });
        self.shared.work.notify_one();
        Ok(queued)
    }

    /// Starts to look for chunks, in the order of the prefix, up to the first that is nowhere. With a thousand tickets
    /// under way, one more finds nothing.
    pub fn fetch(&self, keys: Vec<ChunkKey>) -> Ticket {
        let mut state = self.shared.lock();
        let id = state.next_ticket;
        state.next_ticket += 1;
        let refused = state.fetches.len() >= TICKETS;
        state.stats.refused_fetches += u64::from(refused);
        let over = refused || keys.is_empty();
        if !over {
            state.turns.push_back(id);
        }
        state.fetches.insert(id, Fetch { keys, next: 0, ready: VecDeque::new(), over });
        drop(state);
        self.shared.work.notify_one();
        Ticket { shared: self.shared.clone(), id }
    }

    /// Waits until all chunks that were handed over are stored or refused, or for `limit`. Returns whether they are.
    pub fn flush(&self, limit: Duration) -> bool {
        self.shared.wait(limit, |state| (state.stores.is_empty() && !state.storing).then_some(())).is_some()
    }

    /// What was done so far.
    pub fn stats(&self) -> TiersStats {
        let state = self.shared.lock();
        TiersStats { queued_bytes: state.queued_bytes as u64, ..state.stats.clone() }
    }
}

impl Drop for Tiers {
    /// Stores what waits, for some seconds at most. A tier that does not come back is left to itself.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = Some(Instant::now() + CLOSING);
        drop(state);
        self.shared.work.notify_all();
        let ended = self.shared.wait(CLOSING, |state| state.ended.then_some(())).is_some();
        if let Some(thread) = self.thread.take().filter(|_| ended) {
            // A tier that panicked has been answered for by an end of all fetches.
            let _ = thread.join();
        }
    }
}

impl Ticket {
    /// What is new, without waiting.
    pub fn poll(&mut self) -> Poll {
        self.wait(Duration::ZERO)
    }

    /// What is new, after waiting for it for `limit` at most.
    pub fn wait(&mut self, limit: Duration) -> Poll {
        let polled = self.shared.wait(limit, |state| state.poll(self.id));
        // There is room to read ahead.
        self.shared.work.notify_one();
        polled.unwrap_or(Poll::Pending)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.turns.retain(|&id| id != self.id);
        let fetch = state.fetches.remove(&self.id);
        // Its chunks are given back without the lock.
        drop(state);
        drop(fetch);
    }
}

impl Shared {
    fn new(max_queued_bytes: usize) -> Self {
        let state = State {
            stores: VecDeque::new(),
            storing: false,
            queued_bytes: 0,
            max_queued_bytes,
            fetches: BTreeMap::new(),
            turns: VecDeque::new(),
            next_ticket: 0,
            closing: None,
            ended: false,
            stats: TiersStats::default(),
        };
        Self { state: Mutex::new(state), work: Condvar::new(), done: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait_for_work<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.work.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn notify_waiting(&self) {
        self.done.notify_all();
    }

    /// Waits until `look` finds something, for `limit` at most.
    fn wait<T>(&self, limit: Duration, mut look: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                return Some(found);
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return None;
            }
            state = self.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    /// Puts a chunk behind the others, if there is room; one that waits already is not there twice.
    pub(super) fn queue(&mut self, store: Store) -> bool {
        let bytes = store.pages.len();
        if self.stores.iter().any(|other| other.key == store.key && other.tiers == store.tiers) {
            return true;
        }
        if self.ended || self.queued_bytes + bytes > self.max_queued_bytes {
            self.stats.dropped += 1;
            return false;
        }
        self.queued_bytes += bytes;
        self.stores.push_back(store);
        true
    }

    /// The pages of a chunk that waits to be stored.
    pub(super) fn queued(&mut self, key: &ChunkKey) -> Option<Chunk> {
        let store = self.stores.iter().find(|store| store.key == *key)?;
        self.stats.queue_hits += 1;
        Some(store.pages.chunk().clone())
    }

    /// The ticket whose turn it is, and the key that it is at.
    pub(super) fn next_fetch(&mut self) -> Option<(u64, ChunkKey)> {
        let may_read = |id: &u64| self.fetches.get(id).is_some_and(|fetch| fetch.ready.len() < AHEAD);
        let at = self.turns.iter().position(may_read)?;
        let id = self.turns.remove(at)?;
        let fetch = self.fetches.get(&id)?;
        Some((id, fetch.keys.get(fetch.next)?.clone()))
    }

    /// Notes what was found for a ticket, which is dropped if nobody has it any more.
    pub(super) fn arrived(&mut self, id: u64, found: Option<(Source, Chunk)>) {
        let Some(fetch) = self.fetches.get_mut(&id) else { return };
        let Some((source, bytes)) = found else {
            fetch.over = true;
            return;
        };
        fetch.ready.push_back(Fetched { index: fetch.next, source, bytes });
        fetch.next += 1;
        fetch.over = fetch.next == fetch.keys.len();
        if !fetch.over {
            self.turns.push_back(id);
        }
    }

    fn poll(&mut self, id: u64) -> Option<Poll> {
        let ended = self.ended;
        let Some(fetch) = self.fetches.get_mut(&id) else { return Some(Poll::End) };
        match fetch.ready.pop_front() {
            Some(chunk) => Some(Poll::Chunk(chunk)),
            None => (fetch.over || ended).then_some(Poll::End),
        }
    }
}

impl Pages {
    fn chunk(&self) -> &Chunk {
        match self {
            Self::Raw(chunk) | Self::Sealed(_, chunk) => chunk,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.chunk().len()
    }
}
