//! The scheduler against a memory that knows which history wrote each slot, by seed.

use std::collections::HashMap;

use tilewise::Sampled;
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

/// What the fake model says after a history.
fn next_token(history: u64) -> u32 {
    ((history >> 20) % VOCAB) as u32
}

/// Where the history of a tenant begins: a page of another tenant never fits.
fn origin(salt: Option<&str>) -> u64 {
    salt.map_or(1, |salt| salt.bytes().fold(7, |hash, byte| extend(hash, byte.into())))
}

/// All that a request generates.
fn expected(request: &GenerateRequest) -> Vec<u32> {
    let mut history = request.prompt.iter().fold(origin(request.cache_salt.as_deref()), |h, &t| extend(h, t));
    let token = |_| {
        let token = next_token(history);
        history = extend(history, token);
        token
    };
    (0..request.max_new_tokens).map(token).collect()
}

struct Simulation {
    scheduler: Scheduler,
    pages: PagePool,
    /// The history up to and with the token in each slot.
    slots: Vec<u64>,
    requests: HashMap<RequestId, GenerateRequest>,
    computed_tokens: usize,
}

impl Simulation {
    fn new(num_pages: usize, max_batch_tokens: usize, max_running: usize, priority: Priority) -> Self {
        let config = SchedulerConfig {
            max_batch_tokens,
            max_running,
            page_size: PAGE,
            max_context: 4096,
            priority,
            prefix_cache: true,
        };
        Self {
            scheduler: Scheduler::new(config),
            pages: PagePool::new(num_pages),
            slots: vec![0; num_pages * PAGE],
            requests: HashMap::new(),
            computed_tokens: 0,
        }
    }

    fn submit(&mut self, request: GenerateRequest) -> RequestId {
        let id = self.scheduler.submit(request.clone(), &self.pages).unwrap();
        self.requests.insert(id, request);
        id
    }

    /// Computes a batch: every token looks at all slots before it and writes its own.
    fn forward(&mut self, batch: &BatchPlan) -> Vec<u32> {
        let mut row = 0;
        let mut next = Vec::new();
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let table = batch.layout.pages(index);
            let mut history = origin(self.requests[&sequence.request].cache_salt.as_deref());
            // The tokens before this chunk are what the slots say: their last must be what the request's own are.
            let first = batch.positions[row] as usize;
            let known = &self.requests[&sequence.request];
            let generated = expected(known);
            let own: Vec<u32> = known.prompt.iter().chain(&generated).copied().collect();
            for position in 0..first {
                history = extend(history, own[position]);
                let slot = table[position / PAGE] as usize * PAGE + position % PAGE;
                assert_eq!(self.slots[slot], history, "request {}: slot {position}", sequence.request);
            }
            for position in first..first + sequence.num_tokens {
                assert_eq!(batch.token_ids[row], own[position], "request {}: input", sequence.request);
                history = extend(history, batch.token_ids[row]);
                let slot = table[position / PAGE] as usize * PAGE + position % PAGE;
                self.slots[slot] = history;
                row += 1;
            }
            if sequence.sampling.is_some() {
                next.push(next_token(history));
            }
        }
        self.computed_tokens += row;
        next
    }

    /// One step; a failed one computes and commits nothing.
    fn step(&mut self, fails: bool) -> Vec<Event> {
        let Some(batch) = self.scheduler.schedule(&mut self.pages) else { return Vec::new() };
        let tokens = self.forward(&batch);
        if fails {
            return Vec::new();
        }
        let sampled: Vec<_> = tokens.iter().map(|&id| Ok(Sampled { id, logprob: None })).collect();
        self.scheduler.commit(&batch, &sampled, &mut self.pages)
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

fn simulate(seed: u64) -> (usize, u64, u64, u64) {
    let mut random = Random(seed.wrapping_mul(77));
    let num_pages = 3 + random.below(14) as usize;
    let priority = if random.below(3) == 0 { Priority::Prefill } else { Priority::Decode };
    let mut sim =
        Simulation::new(num_pages, 1 + random.below(64) as usize, 1 + random.below(8) as usize, priority);
    let prefixes: Vec<Vec<u32>> =
        (0..3).map(|_| (0..16 + random.below(64)).map(|_| random.below(VOCAB) as u32).collect()).collect();
    let (mut got, mut aborted, mut submitted) = (HashMap::<RequestId, Vec<u32>>::new(), Vec::new(), 0);
    let mut steps = 0;
    while submitted < 60 || !sim.is_idle() {
        steps += 1;
        assert!(steps < 60_000, "seed {seed}: {} of 60 are over", got.len());
        if submitted < 60 && random.below(4) == 0 {
            let most = num_pages * PAGE;
            let mut request = GenerateRequest::new(prompt(&mut random, &prefixes, most / 2), 1);
            request.max_new_tokens = 1 + random.below((most - request.prompt.len()).min(40) as u64) as usize;
            request.cache_salt =
                [None, None, Some("a"), Some("b")][random.below(4) as usize].map(str::to_owned);
            let id = sim.submit(request);
            got.insert(id, Vec::new());
            submitted += 1;
        }
        if random.below(50) == 0 {
            let id = RequestId(random.below(60));
            if sim.scheduler.abort(id, &mut sim.pages) {
                aborted.push(id);
            }
        }
        if random.below(40) == 0 {
            sim.scheduler.set_max_batch_tokens(1 + random.below(64) as usize);
        }
        let fails = random.below(10) == 0;
        for event in sim.step(fails) {
            if let Event::Token { request, id, .. } = event {
                got.get_mut(&request).unwrap().push(id);
            }
        }
    }
    for (id, tokens) in &got {
        let want = expected(&sim.requests[id]);
        let whole = tokens == &want || aborted.contains(id) && want.starts_with(tokens);
        assert!(whole, "seed {seed}: request {id} got {tokens:?} instead of {want:?}");
    }
    assert_eq!(sim.held(), 0, "seed {seed}: pages leaked");
    sim.scheduler.clear_prefix_cache(&mut sim.pages);
    assert_eq!(sim.pages.num_free(), num_pages, "seed {seed}: pages leaked in the tree");
    let stats = sim.scheduler.prefix_stats();
    (steps, sim.scheduler.num_preemptions(), stats.hit_tokens, stats.evicted_pages)
}

#[test]
fn every_request_gets_its_own_tokens_whatever_is_shared_evicted_preempted_aborted_or_failed() {
    let (mut steps, mut preemptions, mut hits, mut evicted, mut seed) = (0, 0, 0, 0, 0);
    while steps < 100_000 {
        let run = std::panic::catch_unwind(|| simulate(seed));
        let run = run.unwrap_or_else(|_| panic!("seed {seed} fails"));
        (steps, preemptions) = (steps + run.0, preemptions + run.1);
        (hits, evicted, seed) = (hits + run.2, evicted + run.3, seed + 1);
    }
    assert!(preemptions > 100 && hits > 1000 && evicted > 1000, "{preemptions}, {hits}, {evicted}: too tame");
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
        sim.step(false);
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
    sim.step(false);
    sim.step(false);
    assert_eq!(sim.scheduler.num_waiting(), 1);
    assert!(sim.scheduler.abort(first, &mut sim.pages));
    let mut finished = None;
    while !sim.is_idle() {
        for event in sim.step(false) {
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
                let evicted = tree.evict(random.below(5) as usize, &mut pool);
                model.retain(|_, page| !evicted.contains(page));
            } else if random.below(2) == 0 {
                let found = tree.lookup(salt, &tokens, &mut pool);
                let want = (1..=blocks.len()).map_while(|n| model.get(&prefix(n)).copied());
                assert_eq!(found, want.collect::<Vec<_>>(), "{what}");
                pool.release(found);
            } else if tree.make_room(blocks.len(), &mut pool) {
                // Room may have been made by eviction: the model forgets the pages that are free.
                model.retain(|_, page| pool.holders(*page) > 0);
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
