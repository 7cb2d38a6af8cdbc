//! The scheduler against a memory that knows which history wrote each slot, by seed.

#[path = "simulation/outside.rs"]
mod outside;

use std::collections::HashMap;

use outside::{LATEST, Outside};
use tilewise::Sampled;
use tilewise_engine::cache::keys::CHUNK_TOKENS;
use tilewise_engine::cache::{PageId, PagePool, PrefixTree};
use tilewise_engine::scheduler::{BatchPlan, Priority, Scheduler, SchedulerConfig};
use tilewise_engine::{Event, GenerateRequest, RequestId};

const PAGE: usize = 16;
const VOCAB: u64 = 997;

struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// The hash of a history and one more token.
fn extend(history: u64, token: u32) -> u64 {
    let x = (history ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// What completion `index` of a request draws after a history.
fn next_token(history: u64, request: &GenerateRequest, index: usize) -> u32 {
    let stream = if request.sampling.temperature > 0.0 { extend(history, index as u32) } else { history };
    ((stream >> 20) % VOCAB) as u32
}

/// Where the history of a tenant begins: a page of another tenant never fits.
fn origin(salt: Option<&str>) -> u64 {
    salt.map_or(1, |salt| salt.bytes().fold(7, |hash, byte| extend(hash, byte.into())))
}

/// All that a completion of a request generates.
fn expected(request: &GenerateRequest, index: usize) -> Vec<u32> {
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
enum Fault {
    None,
    /// Nothing is copied or computed.
    Early,
    /// Nothing is committed.
    Late,
}

struct Simulation {
    scheduler: Scheduler,
    pages: PagePool,
    /// The history up to and with the token in each slot.
    slots: Vec<u64>,
    outside: Option<Outside>,
    requests: HashMap<RequestId, GenerateRequest>,
    /// Of each completion, as it is first seen.
    seeds: HashMap<(RequestId, usize), u64>,
    computed_tokens: usize,
    copied_pages: usize,
    /// Completions that began with the step of another.
    forks: usize,
    /// Guesses which drafts to give.
    guess: Random,
    speculates: bool,
    drafted: usize,
    accepted: usize,
}

impl Simulation {
    fn new(num_pages: usize, max_batch_tokens: usize, max_running: usize, priority: Priority) -> Self {
        let config = SchedulerConfig {
            max_batch_tokens,
            max_running,
            page_size: PAGE,
            max_context: 4096,
            max_drafts: 12,
            priority,
            prefix_cache: true,
        };
        Self {
            scheduler: Scheduler::new(config),
            pages: PagePool::new(num_pages),
            slots: vec![0; num_pages * PAGE],
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
    fn propose(&mut self) {
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

    fn submit(&mut self, request: GenerateRequest) -> RequestId {
        let id = self.scheduler.submit(request.clone(), &self.pages).unwrap();
        self.requests.insert(id, request);
        id
    }

    /// Copies pages, each of which has one holder.
    fn copy(&mut self, batch: &BatchPlan) {
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
    fn forward(&mut self, batch: &BatchPlan) -> Vec<u32> {
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
    fn step_with(&mut self, fault: Fault, aborted: Option<RequestId>) -> Vec<Event> {
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
        self.accepted += tokens - batch.sequences.iter().filter(|s| s.sampling.is_some()).count().min(tokens);
        self.keep();
        events
    }

    fn step(&mut self) -> Vec<Event> {
        self.step_with(Fault::None, None)
    }

    fn is_idle(&self) -> bool {
        self.scheduler.num_waiting() + self.scheduler.num_running() == 0
    }

    fn held(&self) -> usize {
        self.pages.num_pages() - self.pages.num_free() - self.pages.num_idle()
    }
}

/// A prompt that often begins as others do.
fn prompt(random: &mut Random, prefixes: &[Vec<u32>], longest: usize) -> Vec<u32> {
    let prefix = &prefixes[random.below(prefixes.len() as u64) as usize];
    let mut prompt = prefix[..random.below(prefix.len() as u64 + 1) as usize].to_vec();
    prompt.extend((0..=random.below(20)).map(|_| random.below(5) as u32));
    prompt.truncate(longest);
    prompt
}

/// A request that the pool can hold.
fn request(random: &mut Random, prefixes: &[Vec<u32>], num_pages: usize) -> GenerateRequest {
    let most = num_pages * PAGE;
    let mut request = GenerateRequest::new(prompt(random, prefixes, most / 2), 1);
    request.max_new_tokens = 1 + random.below((most - request.prompt.len()).min(40) as u64) as usize;
    request.cache_salt = [None, None, Some("a"), Some("b")][random.below(4) as usize].map(str::to_owned);
    request.n = [1, 1, 1, 2, 3, 7][random.below(6) as usize];
    request.sampling.temperature = random.below(3) as f32;
    request
}

/// What became of a completion.
#[derive(Default)]
struct Outcome {
    tokens: Vec<u32>,
    finished: bool,
}

/// How much a simulation did.
#[derive(Debug, Default)]
struct Totals {
    steps: usize,
    preemptions: u64,
    hit_tokens: u64,
    evicted_pages: u64,
    copied_pages: usize,
    forks: usize,
    drafted: usize,
    accepted: usize,
    /// Chunks that came from outside, and tokens that sequences began with by them.
    arrived: usize,
    refused: usize,
    fetched_tokens: usize,
}

/// Steps within which a request ends, for each token of it and of what was there before it, computed or not.
const STEPS_PER_TOKEN: usize = 4;

/// Steps that a request may wait besides, for each before it and each chunk of both, where chunks are fetched: it is asked
/// for again whenever it lost its pages.
const STEPS_PER_CHUNK: usize = 3 * LATEST as usize;

fn simulate(seed: u64, chunks: bool) -> Totals {
    let mut random = Random(seed.wrapping_mul(77));
    let num_pages = match (chunks, seed.is_multiple_of(3)) {
        (true, many) => 60 + random.below(if many { 300 } else { 100 }) as usize,
        (false, many) => 3 + random.below(if many { 40 } else { 14 }) as usize,
    };
    let priority = if random.below(3) == 0 { Priority::Prefill } else { Priority::Decode };
    let mut sim =
        Simulation::new(num_pages, 1 + random.below(64) as usize, 1 + random.below(8) as usize, priority);
    sim.speculates = seed % 2 == 1;
    if chunks {
        sim.use_chunks(seed);
        sim.scheduler.set_max_batch_tokens(512);
    }
    let (prefixes, shortest, spread) = if chunks { (4, 400, 500) } else { (3, 16, 64) };
    let prefixes: Vec<Vec<u32>> = (0..prefixes)
        .map(|_| (0..shortest + random.below(spread)).map(|_| random.below(VOCAB) as u32).collect())
        .collect();
    let (mut got, mut aborted) = (HashMap::<(RequestId, usize), Outcome>::new(), Vec::new());
    let mut due = HashMap::<RequestId, usize>::new();
    let (mut steps, mut committed, mut fetched_tokens) = (0, 0, 0);
    let count = if chunks { 400 } else { 60 };
    while sim.requests.len() < count || !sim.is_idle() {
        steps += 1;
        if sim.requests.len() < count && random.below(if chunks { 8 } else { 4 }) == 0 {
            let request = request(&mut random, &prefixes, num_pages);
            let n = request.n;
            let id = sim.submit(request);
            got.extend((0..n).map(|index| ((id, index), Outcome::default())));
            let unfinished =
                got.iter().filter(|(key, outcome)| !outcome.finished && !aborted.contains(&key.0));
            let tokens = |request: &GenerateRequest| request.prompt.len() + request.max_new_tokens;
            let steps = |tokens| {
                STEPS_PER_TOKEN * tokens + usize::from(chunks) * STEPS_PER_CHUNK * (1 + tokens / CHUNK_TOKENS)
            };
            let ahead: usize = unfinished.map(|(key, _)| steps(tokens(&sim.requests[&key.0]))).sum();
            due.insert(id, committed + ahead);
        }
        if random.below(40) == 0 {
            let most = if chunks { 512 } else { 64 };
            sim.scheduler.set_max_batch_tokens(1 + random.below(most) as usize);
        }
        if chunks && random.below(10) == 0 {
            sim.scheduler.clear_prefix_cache(&mut sim.pages);
        }
        let fault = [Fault::Early, Fault::Late, Fault::None][random.below(20).min(2) as usize];
        let abort = (random.below(50) == 0).then(|| RequestId(random.below(count as u64)));
        aborted.extend(abort.filter(|id| sim.requests.contains_key(id)));
        committed += usize::from(fault == Fault::None);
        for event in sim.step_with(fault, abort) {
            match event {
                Event::Token { request, index, id, .. } => {
                    let outcome = got.get_mut(&(request, index)).unwrap();
                    assert!(!outcome.finished, "seed {seed}: a token after the end");
                    outcome.tokens.push(id);
                }
                Event::Finished { request, index, cached_tokens, cached_from, .. } => {
                    assert_eq!(cached_tokens, cached_from.total(), "seed {seed}");
                    fetched_tokens += cached_from.disk;
                    assert!(committed <= due[&request], "seed {seed}: request {request} starves");
                    let outcome = got.get_mut(&(request, index)).unwrap();
                    assert!(!std::mem::replace(&mut outcome.finished, true), "seed {seed}: ends twice");
                }
                _ => {}
            }
        }
        let latest = due.values().max().copied().unwrap_or(usize::MAX);
        assert!(committed <= latest, "seed {seed}: it does not come to an end");
    }
    for (&(id, index), Outcome { tokens, finished }) in &got {
        let want = expected(&sim.requests[&id], index);
        let whole = *finished && tokens == &want || aborted.contains(&id) && want.starts_with(tokens);
        assert!(whole, "seed {seed}: request {id}, {index} got {tokens:?} instead of {want:?}");
    }
    assert_eq!(sim.held(), 0, "seed {seed}: pages leaked");
    sim.scheduler.clear_prefix_cache(&mut sim.pages);
    assert_eq!(sim.pages.num_free(), num_pages, "seed {seed}: pages leaked in the tree");
    let stats = sim.scheduler.prefix_stats();
    Totals {
        steps,
        preemptions: sim.scheduler.num_preemptions(),
        hit_tokens: stats.hit_tokens,
        evicted_pages: stats.evicted_pages,
        copied_pages: sim.copied_pages,
        forks: sim.forks,
        drafted: sim.drafted,
        accepted: sim.accepted,
        arrived: sim.outside.as_ref().map_or(0, |outside| outside.arrived),
        refused: sim.outside.as_ref().map_or(0, |outside| outside.refused),
        fetched_tokens,
    }
}

/// Simulates by one seed after the other.
fn simulate_steps(steps: usize, chunks: bool) -> Totals {
    let (mut all, mut seed) = (Totals::default(), 0);
    while all.steps < steps {
        let run = std::panic::catch_unwind(|| simulate(seed, chunks));
        let run = run.unwrap_or_else(|_| panic!("seed {seed} fails"));
        all.steps += run.steps;
        all.preemptions += run.preemptions;
        all.hit_tokens += run.hit_tokens;
        all.evicted_pages += run.evicted_pages;
        all.copied_pages += run.copied_pages;
        all.forks += run.forks;
        all.drafted += run.drafted;
        all.accepted += run.accepted;
        all.arrived += run.arrived;
        all.refused += run.refused;
        all.fetched_tokens += run.fetched_tokens;
        seed += 1;
    }
    all
}

#[test]
fn every_completion_gets_its_own_tokens_whatever_is_shared_copied_evicted_preempted_drafted_aborted_or_failed()
 {
    let all = simulate_steps(100_000, false);
    let enough = all.preemptions > 100 && all.hit_tokens > 1000 && all.evicted_pages > 1000;
    let enough = enough && all.copied_pages > 1000 && all.forks > 1000;
    assert!(enough && all.drafted > 10_000 && all.accepted > 5000, "{all:?}: too tame");
}

#[test]
fn every_completion_gets_its_own_tokens_whatever_comes_from_outside_late_in_part_or_never() {
    let all = simulate_steps(200_000, true);
    let fetched = all.arrived > 1000 && all.fetched_tokens > 100_000 && all.refused > 100;
    assert!(fetched && all.preemptions > 10 && all.evicted_pages > 1000, "{all:?}: too tame");
}

#[test]
fn a_prefix_that_sixteen_requests_share_is_computed_once_and_held_once() {
    let mut sim = Simulation::new(400, 256, 32, Priority::Decode);
    let prefix: Vec<u32> = (0..1024).map(|i| i * 7 % 991).collect();
    for index in 0..16 {
        sim.submit(GenerateRequest::new([prefix.clone(), vec![index; 9]].concat(), 4));
    }
    let mut most = 0;
    while !sim.is_idle() {
        sim.step();
        most = most.max(sim.held());
    }
    assert_eq!(sim.computed_tokens, 1024 + 16 * (9 + 3));
    // A suffix of 9 and 3 tokens takes one page.
    assert!(most - 16 <= 1024 / PAGE * 11 / 10, "{most} pages are held");
}

#[test]
fn whoever_waits_for_a_prefix_computes_it_when_its_owner_is_gone() {
    let mut sim = Simulation::new(100, 64, 8, Priority::Decode);
    let shared = |last| GenerateRequest::new([vec![3; 640], vec![last]].concat(), 3);
    let (first, second) = (sim.submit(shared(1)), sim.submit(shared(2)));
    sim.step();
    sim.step();
    assert_eq!(sim.scheduler.num_waiting(), 1);
    assert!(sim.scheduler.abort(first, &mut sim.pages));
    let mut finished = None;
    while !sim.is_idle() {
        for event in sim.step() {
            if let Event::Finished { request, cached_tokens, .. } = event {
                finished = Some((request, cached_tokens));
            }
        }
    }
    assert_eq!(finished, Some((second, 128)), "it takes over what was computed");
}

#[test]
fn a_pool_holds_what_a_naive_count_says() {
    let (mut random, mut pool, mut held) = (Random(5), PagePool::new(40), Vec::<PageId>::new());
    for operation in 0..100_000 {
        match random.below(3) {
            0 => {
                let count = random.below(12) as usize;
                let (before, free) = (held.len(), pool.num_free());
                assert_eq!(pool.allocate(count, &mut held), count <= free, "operation {operation}");
                assert_eq!(held.len() - before, if count <= free { count } else { 0 });
            }
            1 if !held.is_empty() => {
                let page = held[random.below(held.len() as u64) as usize];
                pool.retain(&[page]);
                held.push(page);
            }
            _ => {
                let count = random.below(6).min(held.len() as u64);
                for _ in 0..count {
                    pool.release([held.swap_remove(random.below(held.len() as u64) as usize)]);
                }
            }
        }
        let mut holders = [0; 40];
        held.iter().for_each(|page| holders[page.0 as usize] += 1);
        assert!((0..40).all(|page| pool.holders(PageId(page)) == holders[page as usize]), "{operation}");
        assert_eq!(pool.num_free(), holders.iter().filter(|&&n| n == 0).count(), "operation {operation}");
    }
}

#[test]
fn the_tree_finds_what_a_map_of_prefixes_finds() {
    for seed in 0..40 {
        let (mut random, mut pool, mut tree) = (Random(seed), PagePool::new(30), PrefixTree::new(PAGE));
        let mut model = HashMap::<(Option<&str>, Vec<u32>), PageId>::new();
        for operation in 0..500 {
            let salt = [None, Some("a")][random.below(2) as usize];
            let blocks: Vec<u32> = (0..random.below(6)).map(|_| random.below(2) as u32).collect();
            let tokens: Vec<u32> = blocks.iter().flat_map(|&block| [block; PAGE]).collect();
            let prefix = |pages: usize| (salt, tokens[..pages * PAGE].to_vec());
            let what = format!("seed {seed}, operation {operation}");
            if random.below(4) == 0 {
                let (before, count) = (pool.num_free(), random.below(5) as usize);
                let mut told = 0;
                let evicted = tree.evict(count, &mut pool, |leaving| {
                    told += 1;
                    let prefix = (leaving.salt().map(|_| "a"), leaving.tokens());
                    assert_eq!(model.remove(&prefix), Some(leaving.page), "{what}");
                });
                assert_eq!((evicted, pool.num_free() - before), (told, told), "{what}");
                assert!(told == count || model.is_empty(), "{what}");
            } else if random.below(2) == 0 {
                let found = tree.lookup(salt, &tokens, &mut pool);
                let want = (1..=blocks.len()).map_while(|n| model.get(&prefix(n)).copied());
                assert_eq!(found, want.collect::<Vec<_>>(), "{what}");
                pool.release(found);
            } else if tree.make_room(blocks.len(), &mut pool, |leaving| {
                model.remove(&(leaving.salt().map(|_| "a"), leaving.tokens()));
            }) {
                let mut pages = Vec::new();
                assert!(pool.allocate(blocks.len(), &mut pages), "{what}");
                tree.insert(salt, &tokens, &mut pages, &mut pool);
                for (n, &page) in pages.iter().enumerate() {
                    assert_eq!(*model.entry(prefix(n + 1)).or_insert(page), page, "{what}");
                }
                pool.release(pages);
            }
            assert_eq!((tree.num_pages(), pool.num_idle()), (model.len(), model.len()), "{what}");
            assert_eq!(pool.num_free() + model.len(), 30, "{what}");
        }
    }
}
