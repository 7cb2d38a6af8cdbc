//! Chunks that come from outside the device before a sequence is admitted, and chunks that became full.
//!
//! The scheduler knows neither where chunks are kept nor how long that takes. It says what a waiting sequence lacks; until
//! it is told that there is no more, others overtake the sequence. A chunk that arrives gets pages that nobody holds, enters
//! the prefix tree, and is held for the sequence until it is admitted and finds it there. What is held so gives way to
//! running sequences and to older ones that wait: it can be computed.

use std::ops::Range;

use super::Scheduler;
use super::sequence::Sequence;
use crate::RequestId;
use crate::cache::keys::{CHUNK_TOKENS, ChunkHash};
use crate::cache::tiers::Source;
use crate::cache::{PageId, PagePool, PrefixTree};
use crate::request::CachedTokens;

/// What a waiting sequence lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefetch {
    /// The request and which of its completions.
    pub of: (RequestId, usize),
    /// Whose chunks they are.
    pub salt: Option<String>,
    /// The names of the chunks, in the order of the prefix, after what the device has.
    pub hashes: Vec<ChunkHash>,
}

/// A chunk whose tokens are all computed. Its pages hold it until the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullChunk {
    /// Its name.
    pub hash: ChunkHash,
    /// Whose chunk it is.
    pub salt: Option<String>,
    /// Its pages, in the order of its tokens.
    pub pages: Vec<PageId>,
}

/// What a sequence has to do with chunks outside the device.
#[derive(Debug, Clone, Default)]
pub(super) struct Chunks {
    /// The names of its whole chunks.
    chain: Vec<ChunkHash>,
    state: State,
    /// Pages of the tree, from the front, that are held while it waits.
    held: Vec<PageId>,
    /// Which of its tokens came from where.
    fetched: Vec<(Range<usize>, Source)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Nobody was told what it lacks.
    #[default]
    Unasked,
    /// This chunk is the next to arrive.
    Pending(usize),
    /// There is no more.
    Over,
}

impl Chunks {
    /// Those of another completion of the same tokens, for which nothing was fetched.
    pub(super) fn of_sibling(&self) -> Self {
        Self { chain: self.chain.clone(), ..Self::default() }
    }

    /// Names the whole chunks of tokens that grow.
    pub(super) fn extend(&mut self, tokens: &[u32]) {
        for chunk in &tokens.as_chunks().0[self.chain.len()..] {
            let before = self.chain.last().copied().unwrap_or_else(ChunkHash::root);
            self.chain.push(before.then(chunk));
        }
    }

    /// Lets the sequence be asked for again.
    pub(super) fn ask_again(&mut self) {
        self.state = State::Unasked;
    }

    /// Forgets what was fetched, and lets others evict it.
    pub(super) fn give_up(&mut self, pages: &mut PagePool) {
        pages.release(self.held.drain(..));
        self.fetched.clear();
        self.state = State::Over;
    }

    /// Gives up what was held for a sequence that holds its pages itself now, and says where the `computed` tokens that
    /// it begins with came from.
    pub(super) fn settle(&mut self, computed: usize, pages: &mut PagePool) -> CachedTokens {
        let (mut cached, mut fetched) = (CachedTokens::default(), 0);
        for (tokens, source) in &self.fetched {
            let used = computed.min(tokens.end).saturating_sub(tokens.start);
            *cached.of_tier(*source) += used;
            fetched += used;
        }
        cached.device = computed - fetched;
        self.give_up(pages);
        cached
    }
}

/// The next chunk to arrive for some sequence.
pub(super) struct Awaited {
    place: usize,
    hash: ChunkHash,
    salt: Option<String>,
}

impl Sequence {
    /// Whether chunks may still arrive for it, or for another whose next chunk is its own too.
    pub(super) fn waits_for(&self, awaited: &[Awaited]) -> bool {
        let is_own = |other: &Awaited| {
            other.salt == self.salt && self.chunks.chain.get(other.place) == Some(&other.hash)
        };
        match self.chunks.state {
            State::Pending(_) => true,
            State::Over => false,
            State::Unasked => awaited.iter().any(is_own),
        }
    }

    fn awaited(&self) -> Option<Awaited> {
        let State::Pending(place) = self.chunks.state else { return None };
        let hash = *self.chunks.chain.get(place)?;
        Some(Awaited { place, hash, salt: self.salt.clone() })
    }

    /// Notes what it lacks and holds what the tree has; `None` if it lacks nothing that chunks could give.
    fn ask(&mut self, prefix: &mut PrefixTree, pages: &mut PagePool) -> Option<Prefetch> {
        let page_size = prefix.page_size();
        let usable = self.tokens.len() - 1;
        let held = prefix.lookup(self.salt.as_deref(), &self.tokens[..usable], pages);
        let first = held.len() * page_size / CHUNK_TOKENS;
        let has_all = held.len() == usable / page_size || first >= self.chunks.chain.len();
        self.chunks.held = held;
        if has_all {
            self.chunks.give_up(pages);
            return None;
        }
        self.chunks.state = State::Pending(first);
        let hashes = self.chunks.chain[first..].to_vec();
        Some(Prefetch { of: self.key(), salt: self.salt.clone(), hashes })
    }

    /// Puts the pages of its next chunk into the tree and holds them.
    fn promote(&mut self, source: Source, chunk: Vec<PageId>, prefix: &mut PrefixTree, pages: &mut PagePool) {
        let State::Pending(next) = self.chunks.state else {
            pages.release(chunk);
            return;
        };
        let page_size = prefix.page_size();
        let end = (next + 1) * CHUNK_TOKENS;
        let had = self.chunks.held.len() * page_size;
        // Of a chunk that the tree has in part, its own pages stay and take the place of these.
        let in_part = self.chunks.held.split_off(next * CHUNK_TOKENS / page_size);
        self.chunks.held.extend(chunk);
        prefix.insert(self.salt.as_deref(), &self.tokens[..end], &mut self.chunks.held, pages);
        pages.release(in_part);
        self.chunks.fetched.push((had..end, source));
        let is_last = next + 1 == self.chunks.chain.len();
        self.chunks.state = if is_last { State::Over } else { State::Pending(next + 1) };
    }
}

impl Scheduler {
    /// From now on says which chunks waiting sequences lack and which became full.
    pub fn use_chunks(&mut self) {
        self.full_chunks.get_or_insert_default();
    }

    /// What the first waiting sequence lacks that nobody was asked for yet; it is overtaken until
    /// [`Scheduler::end_prefetch`]. A sequence waits to ask while the next chunk of another is its own too.
    pub fn next_prefetch(&mut self, pages: &mut PagePool) -> Option<Prefetch> {
        self.full_chunks.as_ref()?;
        let awaited = self.awaited();
        let may_ask = |sequence: &&mut Sequence| {
            sequence.chunks.state == State::Unasked && !sequence.waits_for(&awaited)
        };
        let mut sequences = self.waiting.iter_mut().filter(may_ask);
        sequences.find_map(|sequence| sequence.ask(&mut self.prefix, pages))
    }

    /// What waiting sequences wait for.
    pub(super) fn awaited(&self) -> Vec<Awaited> {
        match self.full_chunks {
            Some(_) => self.waiting.iter().filter_map(Sequence::awaited).collect(),
            None => Vec::new(),
        }
    }

    /// Whether chunks of a sequence may still arrive.
    pub fn is_prefetching(&self, of: (RequestId, usize)) -> bool {
        let is_pending = |sequence: &Sequence| matches!(sequence.chunks.state, State::Pending(_));
        self.waiting.iter().any(|sequence| sequence.key() == of && is_pending(sequence))
    }

    /// Pages for the next chunk of a sequence, which the caller fills and gives to [`Scheduler::promote`] or back to the
    /// pool. `None` if the sequence waits for no chunks any more, or if there is no room: nobody is preempted for it.
    pub fn reserve_chunk(&mut self, of: (RequestId, usize), pages: &mut PagePool) -> Option<Vec<PageId>> {
        let count = CHUNK_TOKENS / self.config.page_size;
        // As at admission, a page per running sequence stays free.
        let fits = count + self.running.len() <= pages.num_free() + pages.num_idle();
        let mut chunk = Vec::new();
        let taken = self.is_prefetching(of)
            && fits
            && self.prefix.make_room(count, pages, |_| ())
            && pages.allocate(count, &mut chunk);
        taken.then_some(chunk)
    }

    /// Takes over the next chunk of a sequence, which is in `chunk` now and came from `source`.
    pub fn promote(
        &mut self,
        of: (RequestId, usize),
        source: Source,
        chunk: Vec<PageId>,
        pages: &mut PagePool,
    ) {
        match self.waiting.iter_mut().find(|sequence| sequence.key() == of) {
            Some(sequence) => sequence.promote(source, chunk, &mut self.prefix, pages),
            None => pages.release(chunk),
        }
    }

    /// Notes that no more chunks of a sequence arrive: what it still lacks is computed.
    pub fn end_prefetch(&mut self, of: (RequestId, usize)) {
        if let Some(sequence) = self.waiting.iter_mut().find(|sequence| sequence.key() == of) {
            sequence.chunks.state = State::Over;
        }
    }

    /// The chunks that became full since the last call, each once for as long as the tree has it.
    pub fn take_full_chunks(&mut self) -> Vec<FullChunk> {
        self.full_chunks.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Makes `need` pages free or idle for a sequence that is to be admitted, at the cost of what was fetched for younger
    /// ones; false if that does not suffice.
    pub(super) fn yield_to(&mut self, sequence: &Sequence, need: usize, pages: &mut PagePool) -> bool {
        let lacks = |pages: &PagePool| need.saturating_sub(pages.num_free() + pages.num_idle());
        let younger = self.waiting.iter().filter(|other| other.key() > sequence.key());
        if lacks(pages) > younger.map(|other| other.chunks.held.len()).sum() {
            return false;
        }
        while lacks(pages) > 0 && self.give_up_youngest_fetched(Some(sequence.key()), pages) {}
        lacks(pages) == 0
    }

    /// Lets go of what was fetched for the youngest waiting sequence that is younger than another; false if nothing was.
    pub(super) fn give_up_youngest_fetched(
        &mut self,
        than: Option<(RequestId, usize)>,
        pages: &mut PagePool,
    ) -> bool {
        let mut younger = self.waiting.iter_mut().rev().take_while(|other| Some(other.key()) > than);
        let holder = younger.find(|other| !other.chunks.held.is_empty());
        holder.map(|other| other.chunks.give_up(pages)).is_some()
    }

    /// Puts the pages of a running sequence that became full into the tree, and notes the chunks that they fill.
    pub(super) fn publish(&mut self, index: usize, pages: &mut PagePool) {
        let sequence = &mut self.running[index];
        let new = sequence.publish(&mut self.prefix, pages);
        let Some(full) = &mut self.full_chunks else { return };
        sequence.chunks.extend(&sequence.tokens);
        let per_chunk = CHUNK_TOKENS / self.config.page_size;
        full.extend((new.start / per_chunk..new.end / per_chunk).map(|chunk| FullChunk {
            hash: sequence.chunks.chain[chunk],
            salt: sequence.salt.clone(),
            pages: sequence.pages[chunk * per_chunk..(chunk + 1) * per_chunk].to_vec(),
        }));
    }
}
