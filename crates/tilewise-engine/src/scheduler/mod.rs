//! Which tokens of which sequences a step computes.
//!
//! Continuous batching: sequences join and leave at every step, and a step is one ragged batch of decodes and
//! prefill chunks. The scheduler knows neither device nor clock, so that it can be simulated.
//!
//! Invariants: a running sequence holds pages for all of its tokens but those it has yet to generate; both
//! queues are in order of submission, and the completions of a request in theirs; the oldest running sequence is never
//! preempted, so that something always finishes. Pages that become full are in the prefix tree from the same commit on.
//! A sequence waits for a prefix only while a running one computes it, or while it is fetched; then it is overtaken.
//!
//! A request is one sequence until its first token is drawn. Then its completions part: those that there is room for
//! share all pages, and each but the last to write takes a copy of the partial page before its first step. The others
//! wait like requests of their own, and find the full pages in the tree.

mod batch;
mod commit;
mod prefetch;
mod sequence;
mod swap;

use std::collections::VecDeque;

use batch::BatchBuilder;
pub use batch::{BatchPlan, PromptScores, ScheduledSequence};
pub use prefetch::{FullChunk, Prefetch};
use sequence::Sequence;
pub use swap::{SwapStats, SwappedPages};
use tilewise::Sampled;

use crate::cache::events::KvEvent;
use crate::cache::prefix::PrefixStats;
use crate::cache::{PagePool, PrefixTree};
use crate::{Error, Event, FinishReason, GenerateRequest, RequestId, Result, SamplingParams};

/// What a step serves first when its token budget does not hold everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Sequences that generate: a long prompt does not hold them up.
    Decode,
    /// Prompts, and nothing is generated until all that fit are in: the largest batches.
    Prefill,
}

/// The limits of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Tokens that one step computes at most.
    pub max_batch_tokens: usize,
    /// Sequences that run together at most.
    pub max_running: usize,
    /// Tokens per page.
    pub page_size: usize,
    /// Tokens that a sequence may have at most.
    pub max_context: usize,
    /// Drafts that one step verifies at most.
    pub max_drafts: usize,
    /// What a step serves first.
    pub priority: Priority,
    /// Whether full pages are shared and kept.
    pub prefix_cache: bool,
    /// Pages of sequences that gave way that are kept outside the device at most.
    pub swap_pages: usize,
}

/// What became of a row of logits: a token, or the end of its completion.
pub type Outcome = Result<Sampled, FinishReason>;

/// A sequence whose next step draws a token.
#[derive(Debug, Clone, Copy)]
pub struct Decoding<'a> {
    /// Whose it is.
    pub request: RequestId,
    /// Which of the request's completions.
    pub index: usize,
    /// The prompt, then what was generated.
    pub tokens: &'a [u32],
    /// More drafts than these are of no use: the text ends after them.
    pub most_drafts: usize,
    /// How its tokens are drawn.
    pub sampling: &'a SamplingParams,
}

/// The queues.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    prefix: PrefixTree,
    prefill_beside_decodes: usize,
    submitted: u64,
    preemptions: u64,
    /// What the step that was scheduled last saves, until it is committed.
    saves: Vec<SwappedPages>,
    swap: SwapStats,
    /// Chunks that became full and were not asked for yet; `None` where nobody asks.
    full_chunks: Option<Vec<FullChunk>>,
}

impl Scheduler {
    /// A scheduler with empty queues.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefix: PrefixTree::new(config.page_size),
            prefill_beside_decodes: usize::MAX,
            submitted: 0,
            preemptions: 0,
            saves: Vec::new(),
            swap: SwapStats::default(),
            full_chunks: None,
        }
    }

    /// Queues a request and names it.
    ///
    /// # Errors
    /// [`Error::TooLong`] if it could never run, whatever else is running.
    pub fn submit(&mut self, request: GenerateRequest, pages: &PagePool) -> Result<RequestId> {
        let needed = request.prompt.len().saturating_add(request.max_new_tokens);
        let cache = pages.num_pages() * self.config.page_size;
        if needed > self.config.max_context {
            return Err(Error::TooLong {
                needed,
                limit: "the model's context",
                available: self.config.max_context,
            });
        }
        // The last generated token is never fed back, so it needs no place in the cache.
        if needed - 1 > cache {
            return Err(Error::TooLong { needed, limit: "the cache", available: cache + 1 });
        }
        let id = RequestId(self.submitted);
        self.submitted += 1;
        self.wait(Sequence::new(id, request));
        Ok(id)
    }

    /// Forgets a request, all its completions, and frees its pages; false if there is none of that name.
    pub fn abort(&mut self, id: RequestId, pages: &mut PagePool) -> bool {
        let before = self.num_running() + self.num_waiting();
        for sequence in self.running.extract_if(.., |sequence| sequence.id == id) {
            sequence.release(pages);
        }
        self.waiting.retain_mut(|sequence| {
            let stays = sequence.id != id;
            if !stays {
                sequence.chunks.give_up(pages);
            }
            stays
        });
        self.num_running() + self.num_waiting() < before
    }

    /// Ends a completion that has a token, and gives its pages back; `None` if there is none of that name.
    pub fn finish(
        &mut self,
        completion: (RequestId, usize),
        reason: FinishReason,
        pages: &mut PagePool,
    ) -> Option<Event> {
        let ended = |sequence: &Sequence| sequence.key() == completion && sequence.siblings == 0;
        let mut sequence = match self.running.iter().position(ended) {
            Some(at) => self.running.remove(at),
            None => self.waiting.remove(self.waiting.iter().position(ended)?)?,
        };
        sequence.chunks.give_up(pages);
        Some(sequence.finish(reason, pages))
    }

    /// Limits the tokens of later steps.
    pub fn set_max_batch_tokens(&mut self, max_batch_tokens: usize) {
        self.config.max_batch_tokens = max_batch_tokens.max(1);
    }

    /// Limits the tokens of prompts in later steps that have sequences that generate, where these are served first.
    pub fn set_prefill_beside_decodes(&mut self, tokens: usize) {
        self.prefill_beside_decodes = tokens.max(1);
    }

    /// Tokens that one step computes at most.
    pub fn max_batch_tokens(&self) -> usize {
        self.config.max_batch_tokens
    }

    /// Whether full pages are shared and kept.
    pub fn has_prefix_cache(&self) -> bool {
        self.config.prefix_cache
    }

    /// The number of sequences that wait.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The number of sequences that hold pages.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// How often a sequence lost its pages to an older one, so far, saved or not.
    pub fn num_preemptions(&self) -> u64 {
        self.preemptions
    }

    /// What the prefix cache was asked for and had.
    pub fn prefix_stats(&self) -> PrefixStats {
        self.prefix.stats()
    }

    /// Forgets all cached pages that no sequence holds.
    pub fn clear_prefix_cache(&mut self, pages: &mut PagePool) {
        self.prefix.clear(pages);
    }

    /// Tells from now on what enters and leaves the prefix cache.
    pub fn tell_kv_events(&mut self) {
        self.prefix.tell_events();
    }

    /// What entered and left since this was last asked.
    pub fn take_kv_events(&mut self) -> Vec<KvEvent> {
        self.prefix.take_events()
    }

    /// The sequences that generate, with the most drafts that are of use to each.
    pub fn decoding(&self) -> impl Iterator<Item = Decoding<'_>> {
        self.running.iter().filter(|sequence| sequence.is_decoding()).map(|sequence| Decoding {
            request: sequence.id,
            index: sequence.index,
            tokens: &sequence.tokens,
            most_drafts: sequence.most_drafts(),
            sampling: &sequence.sampling,
        })
    }

    /// The known tokens of a running completion.
    pub(crate) fn tokens(&self, completion: (RequestId, usize)) -> Option<&[u32]> {
        self.running.iter().find(|sequence| sequence.key() == completion).map(|sequence| &*sequence.tokens)
    }

    /// Says what a sequence that generates is thought to draw next, in place of what was said before. The next step
    /// computes as many of these drafts as there is room for behind the sequence's last token, and draws after each.
    pub fn set_drafts(&mut self, completion: (RequestId, usize), drafts: Vec<u32>) {
        if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.key() == completion) {
            sequence.drafts = drafts;
        }
    }

    /// Puts other drafts into a batch, as many as the sequence at `place` was scheduled with.
    ///
    /// # Panics
    /// For another number of drafts.
    pub fn replace_drafts(&self, batch: &mut BatchPlan, place: usize, drafts: &[u32]) {
        batch.set_drafts(place, drafts);
        let scheduled = &mut batch.sequences[place];
        let key = (scheduled.request, scheduled.index);
        if let Some(sequence) = self.running.iter().find(|sequence| sequence.key() == key) {
            scheduled.changes = sequence.changes(drafts);
        }
    }

    /// The next step's batch; `None` if there is nothing to do.
    ///
    /// Pages that the batch writes are allocated. Calling it again without [`Scheduler::commit`] repeats the
    /// work of a step that failed.
    pub fn schedule(&mut self, pages: &mut PagePool) -> Option<BatchPlan> {
        self.forget_unsaved();
        let mut batch = BatchBuilder::new(self.config.max_batch_tokens, self.config.page_size);
        match self.config.priority {
            Priority::Decode => {
                self.schedule_decodes(&mut batch, pages);
                if !batch.is_empty() {
                    batch.limit(self.prefill_beside_decodes);
                }
                self.schedule_prefills(&mut batch, pages);
                self.admit(&mut batch, pages);
            }
            Priority::Prefill => {
                self.schedule_prefills(&mut batch, pages);
                self.admit(&mut batch, pages);
                if batch.is_empty() {
                    self.schedule_decodes(&mut batch, pages);
                }
            }
        }
        batch.finish(&self.saves)
    }

    /// One token of every sequence that generates, oldest first, and its drafts; a new page is taken from the youngest if
    /// need be, but for no draft.
    fn schedule_decodes(&mut self, batch: &mut BatchBuilder, pages: &mut PagePool) {
        let (mut decoding, mut index) = (Vec::new(), 0);
        while index < self.running.len() && decoding.len() < batch.room() {
            if !self.running[index].is_decoding() {
                index += 1;
                continue;
            }
            let fits = loop {
                if self.reserve(index, pages) {
                    break true;
                }
                self.preempt_youngest(pages);
                if index >= self.running.len() {
                    break false;
                }
            };
            if fits {
                decoding.push(index);
            }
            index += 1;
        }
        let mut room = (batch.room() - decoding.len()).min(self.config.max_drafts);
        for index in decoding {
            let sequence = &mut self.running[index];
            let mut drafts = sequence.drafts.len().min(sequence.most_drafts()).min(room);
            if drafts > 0 && !sequence.reserve_drafts(drafts, &mut self.prefix, pages) {
                drafts = 0;
            }
            room -= drafts;
            batch.push(&self.running[index], 1, drafts);
        }
    }

    /// Gives a sequence that generates the pages of its next token; false if there are too few.
    fn reserve(&mut self, index: usize, pages: &mut PagePool) -> bool {
        let is_shared = self.running[index].partial_page(self.config.page_size).is_some_and(|page| {
            // Who is about to copy it holds it still, but has left it: the last holder writes in place.
            let left = self.running.iter().filter(|other| other.copy_of == Some(page)).count();
            pages.holders(page) as usize > 1 + left
        });
        self.running[index].reserve(is_shared, &mut self.prefix, pages)
    }

    /// The next chunk of every sequence whose prompt is not computed yet, oldest first.
    fn schedule_prefills(&self, batch: &mut BatchBuilder, pages: &PagePool) {
        for index in 0..self.running.len() {
            if batch.room() > 0 && !self.running[index].is_decoding() {
                self.push_chunk(index, batch, pages);
            }
        }
    }

    /// Adds the next chunk of a sequence and, with the last one, the other completions that there is room for: each runs
    /// by itself from then on, and may soon need a page.
    fn push_chunk(&self, index: usize, batch: &mut BatchBuilder, pages: &PagePool) {
        let sequence = &self.running[index];
        let chunk = sequence.pending().min(batch.room());
        batch.push(sequence, chunk, 0);
        if chunk == sequence.pending() {
            let most = self.config.max_running.min(pages.num_free() + pages.num_idle());
            let room = most.saturating_sub(self.running.len() + batch.num_forks());
            (1..=sequence.siblings.min(room)).for_each(|index| batch.push_fork(sequence, index));
        }
    }

    /// Admits sequences in order while there are tokens in the budget and pages for all their tokens.
    ///
    /// A page per running sequence stays free, because each may soon need one. A sequence whose next pages a
    /// running one is just computing waits for them instead of computing them again. One whose chunks are being fetched
    /// is overtaken.
    fn admit(&mut self, batch: &mut BatchBuilder, pages: &mut PagePool) {
        let (mut at, awaited) = (0, self.awaited());
        while batch.room() > 0 && self.running.len() + batch.num_forks() < self.config.max_running {
            while self.waiting.get(at).is_some_and(|sequence| sequence.waits_for(&awaited)) {
                at += 1;
            }
            let Some(mut sequence) = self.waiting.remove(at) else { return };
            if !self.start(&mut sequence, batch.num_forks(), pages) {
                sequence.preempt(pages);
                self.waiting.insert(at, sequence);
                return;
            }
            let index = insert(&mut self.running, sequence);
            self.push_chunk(index, batch, pages);
        }
    }

    /// Gives a sequence pages for all its tokens, cached ones first; false if it has to wait. `forks` will run too.
    fn start(&mut self, sequence: &mut Sequence, forks: usize, pages: &mut PagePool) -> bool {
        if self.is_saving(sequence) {
            return false;
        }
        let page_size = self.config.page_size;
        if self.config.prefix_cache {
            sequence.adopt(&mut self.prefix, pages);
        }
        let found = sequence.computed;
        let resumes = sequence.resume(page_size);
        if self.config.prefix_cache && !resumes {
            let (held, computed) = (sequence.pages.len(), |other: &Sequence| other.computed / page_size);
            let computes_more = |other: &Sequence| {
                let common = sequence.common_pages(other, page_size);
                common > held && common > computed(other)
            };
            if self.running.iter().any(computes_more) {
                return false;
            }
        }
        let need = sequence.len().div_ceil(page_size) - sequence.pages.len() + self.running.len() + forks;
        if !self.yield_to(sequence, need, pages) || !sequence.reserve(false, &mut self.prefix, pages) {
            return false;
        }
        if self.config.prefix_cache {
            self.prefix.count(sequence.len(), found);
        }
        let cached = sequence.chunks.settle(found, pages);
        sequence.cached_tokens.get_or_insert(cached);
        sequence.swapped.take_if(|_| !resumes);
        true
    }

    fn wait(&mut self, mut sequence: Sequence) {
        if self.full_chunks.is_some() {
            sequence.chunks.extend(&sequence.tokens);
        }
        let at = self.waiting.partition_point(|other| other.key() < sequence.key());
        self.waiting.insert(at, sequence);
    }
}

/// Puts a sequence into its place by age and returns it.
fn insert(running: &mut Vec<Sequence>, sequence: Sequence) -> usize {
    let index = running.partition_point(|other| other.key() < sequence.key());
    running.insert(index, sequence);
    index
}
