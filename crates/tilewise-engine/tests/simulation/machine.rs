//! A memory that knows which history wrote each slot, and the steps that work on it.

use std::collections::HashMap;

use tilewise::Sampled;
use tilewise_engine::cache::PagePool;
use tilewise_engine::scheduler::{BatchPlan, Priority, Scheduler, SchedulerConfig};
use tilewise_engine::{Event, GenerateRequest, RequestId};

use crate::host::Host;
use crate::outside::Outside;

pub(crate) const PAGE: usize = 16;
pub(crate) const VOCAB: u64 = 997;

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// The hash of a history and one more token.
pub(crate) fn extend(history: u64, token: u32) -> u64 {
    let x = (history ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// What completion `index` of a request draws after a history.
pub(crate) fn next_token(history: u64, request: &GenerateRequest, index: usize) -> u32 {
    let stream = if request.sampling.temperature > 0.0 { extend(history, index as u32) } else { history };
    ((stream >> 20) % VOCAB) as u32
}

/// Where the history of a tenant begins: a page of another tenant never fits.
pub(crate) fn origin(salt: Option<&str>) -> u64 {
    salt.map_or(1, |salt| salt.bytes().fold(7, |hash, byte| extend(hash, byte.into())))
}

/// All that a completion of a request generates.
pub(crate) fn expected(request: &GenerateRequest, index: usize) -> Vec<u32> {
    let mut history = request.prompt.iter().fold(origin(request.cache_salt.as_deref()), |h, &t| extend(h, t));
    let token = |_| {
        let token = next_token(history, request, index);
        history = extend(history, token);
        token
    };
    (0..request.max_new_tokens).map(token).collect()
}

/// What a step does not do.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    None,
    /// Nothing is copied or computed.
    Early,
    /// Nothing is committed.
    Late,
}

/// A scheduler, to be changed by struct update.
pub(crate) const CONFIG: SchedulerConfig = SchedulerConfig {
    max_batch_tokens: 64,
    max_running: 8,
    page_size: PAGE,
    max_context: 4096,
    max_drafts: 12,
    priority: Priority::Decode,
    prefix_cache: true,
    swap_pages: 0,
};

/// The scheduler and the memory.
pub(crate) struct Simulation {
    pub(crate) scheduler: Scheduler,
    pub(crate) pages: PagePool,
    /// The history up to and with the token in each slot.
    pub(crate) slots: Vec<u64>,
    pub(crate) host: Host,
    pub(crate) swap_pages: usize,
    pub(crate) outside: Option<Outside>,
    pub(crate) requests: HashMap<RequestId, GenerateRequest>,
    /// Of each completion, as it is first seen.
    pub(crate) seeds: HashMap<(RequestId, usize), u64>,
    pub(crate) computed_tokens: usize,
    pub(crate) copied_pages: usize,
    /// Completions that began with the step of another.
    pub(crate) forks: usize,
    /// Guesses which drafts to give.
    pub(crate) guess: Random,
    pub(crate) speculates: bool,
    pub(crate) drafted: usize,
    pub(crate) accepted: usize,
}

impl Simulation {
    pub(crate) fn new(num_pages: usize, config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config),
            pages: PagePool::new(num_pages),
            slots: vec![0; num_pages * PAGE],
            host: Host::default(),
            swap_pages: config.swap_pages,
            outside: None,
            requests: HashMap::new(),
            seeds: HashMap::new(),
            computed_tokens: 0,
            copied_pages: 0,
            forks: 0,
            guess: Random(9),
            speculates: false,
            drafted: 0,
            accepted: 0,
        }
    }

    /// Gives some sequences drafts, right ones and wrong ones, some of them more than are of use.
    pub(crate) fn propose(&mut self) {
        let mut proposals = Vec::new();
        for sequence in self.scheduler.decoding() {
            let request = &self.requests[&sequence.request];
            let all = [request.prompt.clone(), expected(request, sequence.index)].concat();
            assert_eq!(sequence.most_drafts, all.len() - sequence.tokens.len() - 1);
            let mut drafts = all[sequence.tokens.len()..].to_vec();
            drafts.truncate(self.guess.below(6) as usize);
            if !drafts.is_empty() && self.guess.below(2) == 0 {
                let wrong = self.guess.below(drafts.len() as u64) as usize;
                drafts[wrong] += 1;
            }
            proposals.push(((sequence.request, sequence.index), drafts));
        }
        for (completion, drafts) in proposals {
            self.scheduler.set_drafts(completion, drafts);
        }
    }

    pub(crate) fn submit(&mut self, request: GenerateRequest) -> RequestId {
        let id = self.scheduler.submit(request.clone(), &self.pages).unwrap();
        self.requests.insert(id, request);
        id
    }

    /// Copies pages, each of which has one holder.
    pub(crate) fn copy(&mut self, batch: &BatchPlan) {
        for (index, &(from, to)) in batch.copies.iter().enumerate() {
            assert_eq!(self.pages.holders(to), 1, "page {} is written and shared", to.0);
            let overlaps = batch.copies[..index].iter().any(|copy| copy.1 == to);
            assert!(!overlaps && batch.copies.iter().all(|copy| copy.0 != to), "{:?}", batch.copies);
            let (from, to) = (from.0 as usize * PAGE, to.0 as usize * PAGE);
            self.slots.copy_within(from..from + PAGE, to);
        }
        self.copied_pages += batch.copies.len();
    }

    /// Computes a batch: every token looks at all slots before it and writes its own.
    pub(crate) fn forward(&mut self, batch: &BatchPlan) -> Vec<u32> {
        self.swap(batch);
        self.copy(batch);
        let (mut row, mut history) = (0, 0);
        let mut next = Vec::new();
        let mut logits_rows = batch.logits_rows.iter();
        for (place, sequence) in batch.sequences.iter().enumerate() {
            let (id, index) = (sequence.request, sequence.index);
            let known = &self.requests[&id];
            if sequence.num_tokens > 0 {
                let table = batch.layout.pages(place);
                history = origin(known.cache_salt.as_deref());
                // The tokens before this chunk are what the slots say: they must be what the completion's own are.
                let first = batch.positions[row] as usize;
                let own = [known.prompt.clone(), expected(known, index)].concat();
                for position in 0..first {
                    history = extend(history, own[position]);
                    let slot = table[position / PAGE] as usize * PAGE + position % PAGE;
                    assert_eq!(self.slots[slot], history, "request {id}, {index}: slot {position}");
                }
                let known = first + sequence.num_tokens - sequence.num_drafts;
                for position in first..first + sequence.num_tokens {
                    let token = batch.token_ids[row];
                    assert!(position >= known || token == own[position], "request {id}, {index}: input");
                    if position >= known {
                        assert_eq!(logits_rows.next(), Some(&(row as u32 - 1)));
                        next.push(next_token(history, &self.requests[&id], index));
                    }
                    history = extend(history, token);
                    let slot = table[position / PAGE] as usize * PAGE + position % PAGE;
                    self.slots[slot] = history;
                    row += 1;
                }
                self.drafted += sequence.num_drafts;
            } else {
                self.forks += 1;
                let first = &batch.sequences[place - index];
                assert_eq!((first.request, first.index), (id, 0), "it parts from the first");
            }
            if let Some(sampling) = &sequence.sampling {
                assert_eq!(logits_rows.next(), Some(&(row as u32 - 1)));
                let seed = *self.seeds.entry((id, index)).or_insert(sampling.seed);
                assert_eq!(sampling.seed, seed, "request {id}, {index}: another random stream");
                next.push(next_token(history, known, index));
            }
        }
        self.computed_tokens += row;
        next
    }

    /// One step, during which a request may be aborted.
    pub(crate) fn step_with(&mut self, fault: Fault, aborted: Option<RequestId>) -> Vec<Event> {
        self.fetch();
        if self.speculates {
            self.propose();
        }
        let batch = self.scheduler.schedule(&mut self.pages);
        let tokens = match &batch {
            Some(batch) if fault != Fault::Early => self.forward(batch),
            _ => Vec::new(),
        };
        if let Some(request) = aborted {
            self.scheduler.abort(request, &mut self.pages);
            assert!(!self.scheduler.abort(request, &mut self.pages), "request {request} is left in part");
        }
        let Some(batch) = batch.filter(|_| fault == Fault::None) else { return Vec::new() };
        let sampled: Vec<_> = tokens.iter().map(|&id| Ok(Sampled { id, logprob: None })).collect();
        let events = self.scheduler.commit(&batch, &sampled, &mut self.pages, &mut |_, _| None);
        let tokens = events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
        self.keep_swapped(&batch);
        self.accepted += tokens - batch.sequences.iter().filter(|s| s.sampling.is_some()).count().min(tokens);
        self.keep();
        events
    }

    pub(crate) fn step(&mut self) -> Vec<Event> {
        self.step_with(Fault::None, None)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.scheduler.num_waiting() + self.scheduler.num_running() == 0
    }

    pub(crate) fn held(&self) -> usize {
        self.pages.num_pages() - self.pages.num_free() - self.pages.num_idle()
    }
}
