//! The scheduler against a memory that knows which history wrote each slot, by seed.

mod host;
mod machine;
mod outside;
mod pool;

use std::collections::HashMap;

use machine::{CONFIG, Fault, PAGE, Random, Simulation, VOCAB, expected};
use outside::LATEST;
use tilewise_engine::cache::keys::CHUNK_TOKENS;
use tilewise_engine::scheduler::{Priority, SchedulerConfig, SwapStats};
use tilewise_engine::{Event, GenerateRequest, RequestId};

/// A prompt that often begins as others do.
fn prompt(random: &mut Random, prefixes: &[Vec<u32>], longest: usize) -> Vec<u32> {
    let prefix = &prefixes[random.below(prefixes.len() as u64) as usize];
    let mut prompt = prefix[..random.below(prefix.len() as u64 + 1) as usize].to_vec();
    prompt.extend((0..=random.below(20)).map(|_| random.below(5) as u32));
    prompt.truncate(longest);
    prompt
}

/// What a simulation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum World {
    /// Few pages.
    Small,
    /// Few pages for sequences that grow, and steps that often fail.
    Swapping,
    /// Chunks of long prompts that are kept outside.
    Chunks,
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
    saved_pages: u64,
    restored_pages: u64,
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

impl World {
    fn num_pages(self, seed: u64, random: &mut Random) -> usize {
        let many = seed.is_multiple_of(3);
        let (least, spread) = match self {
            Self::Small => (3, if many { 40 } else { 14 }),
            Self::Swapping => (6, 18),
            Self::Chunks => (60, if many { 300 } else { 100 }),
        };
        least + random.below(spread) as usize
    }

    fn config(self, random: &mut Random) -> SchedulerConfig {
        let priority = if random.below(3) == 0 { Priority::Prefill } else { Priority::Decode };
        let little = 1 + random.below(8) as usize;
        let swap_pages = [if self == Self::Swapping { 30 } else { 0 }, little, 1000];
        SchedulerConfig {
            max_batch_tokens: 1 + random.below(64) as usize,
            max_running: 1 + random.below(if self == Self::Swapping { 16 } else { 8 }) as usize,
            priority,
            prefix_cache: self == Self::Chunks || random.below(4) > 0,
            swap_pages: swap_pages[random.below(3) as usize],
            ..CONFIG
        }
    }

    /// How many requests there are.
    fn requests(self) -> usize {
        if self == Self::Chunks { 400 } else { 60 }
    }

    /// A request comes every so many steps.
    fn pause(self) -> u64 {
        match self {
            Self::Small => 4,
            Self::Swapping => 2,
            Self::Chunks => 8,
        }
    }

    fn most_batch_tokens(self) -> u64 {
        match self {
            Self::Small => 64,
            Self::Swapping => 24,
            Self::Chunks => 512,
        }
    }

    /// The budget of steps changes once in so many.
    fn calm(self) -> u64 {
        if self == Self::Swapping { 3 } else { 40 }
    }

    /// Two in so many steps fail.
    fn faults(self) -> u64 {
        if self == Self::Swapping { 5 } else { 20 }
    }

    fn prefixes(self, random: &mut Random) -> Vec<Vec<u32>> {
        let (count, shortest, spread) = if self == Self::Chunks { (4, 400, 500) } else { (3, 16, 64) };
        let mut prefix =
            |_| (0..shortest + random.below(spread)).map(|_| random.below(VOCAB) as u32).collect();
        (0..count).map(&mut prefix).collect()
    }

    /// A request that the pool can hold.
    fn request(self, random: &mut Random, prefixes: &[Vec<u32>], num_pages: usize) -> GenerateRequest {
        let most = num_pages * PAGE;
        let longest = if self == Self::Swapping { 120 } else { 40 };
        let mut request = GenerateRequest::new(prompt(random, prefixes, most / 2), 1);
        let new_tokens = random.below((most - request.prompt.len()).min(longest) as u64);
        request.max_new_tokens = 1 + new_tokens as usize;
        request.cache_salt = [None, None, Some("a"), Some("b")][random.below(4) as usize].map(str::to_owned);
        request.n = [1, 1, 1, 2, 3, 7][random.below(6) as usize];
        request.sampling.temperature = random.below(3) as f32;
        request
    }

    /// Committed steps within which a request of so many tokens ends.
    fn steps_for(self, tokens: usize) -> usize {
        let chunks = usize::from(self == Self::Chunks) * (1 + tokens / CHUNK_TOKENS);
        STEPS_PER_TOKEN * tokens + STEPS_PER_CHUNK * chunks
    }
}

/// A simulation under way.
struct Run {
    seed: u64,
    world: World,
    random: Random,
    sim: Simulation,
    prefixes: Vec<Vec<u32>>,
    got: HashMap<(RequestId, usize), Outcome>,
    aborted: Vec<RequestId>,
    /// The step in which a request has to be over.
    due: HashMap<RequestId, usize>,
    committed: usize,
    fetched_tokens: usize,
}

impl Run {
    fn new(seed: u64, world: World) -> Self {
        let mut random = Random(seed.wrapping_mul(77));
        let num_pages = world.num_pages(seed, &mut random);
        let mut sim = Simulation::new(num_pages, world.config(&mut random));
        sim.speculates = seed % 2 == 1;
        if world == World::Chunks {
            sim.use_chunks(seed);
            sim.scheduler.set_max_batch_tokens(512);
        }
        Self {
            prefixes: world.prefixes(&mut random),
            seed,
            world,
            random,
            sim,
            got: HashMap::new(),
            aborted: Vec::new(),
            due: HashMap::new(),
            committed: 0,
            fetched_tokens: 0,
        }
    }

    fn submit(&mut self) {
        let request = self.world.request(&mut self.random, &self.prefixes, self.sim.pages.num_pages());
        let n = request.n;
        let id = self.sim.submit(request);
        self.got.extend((0..n).map(|index| ((id, index), Outcome::default())));
        let (requests, aborted) = (&self.sim.requests, &self.aborted);
        let unfinished =
            self.got.iter().filter(|(key, outcome)| !outcome.finished && !aborted.contains(&key.0));
        let tokens = |request: &GenerateRequest| request.prompt.len() + request.max_new_tokens;
        let ahead: usize = unfinished.map(|(key, _)| self.world.steps_for(tokens(&requests[&key.0]))).sum();
        self.due.insert(id, self.committed + ahead);
    }

    fn step(&mut self) {
        let (seed, world, random) = (self.seed, self.world, &mut self.random);
        if random.below(world.calm()) == 0 {
            let most = world.most_batch_tokens();
            self.sim.scheduler.set_max_batch_tokens(1 + random.below(most) as usize);
        }
        if world == World::Chunks && random.below(10) == 0 {
            self.sim.scheduler.clear_prefix_cache(&mut self.sim.pages);
        }
        let fault = [Fault::Early, Fault::Late, Fault::None][random.below(world.faults()).min(2) as usize];
        let abort = (random.below(50) == 0).then(|| RequestId(random.below(world.requests() as u64)));
        self.aborted.extend(abort.filter(|id| self.sim.requests.contains_key(id)));
        self.committed += usize::from(fault == Fault::None);
        for event in self.sim.step_with(fault, abort) {
            match event {
                Event::Token { request, index, id, .. } => {
                    let outcome = self.got.get_mut(&(request, index)).unwrap();
                    assert!(!outcome.finished, "seed {seed}: a token after the end");
                    outcome.tokens.push(id);
                }
                Event::Finished { request, index, cached_tokens, cached_from, .. } => {
                    assert_eq!(cached_tokens, cached_from.total(), "seed {seed}");
                    self.fetched_tokens += cached_from.disk;
                    assert!(self.committed <= self.due[&request], "seed {seed}: request {request} starves");
                    let outcome = self.got.get_mut(&(request, index)).unwrap();
                    assert!(!std::mem::replace(&mut outcome.finished, true), "seed {seed}: ends twice");
                }
                _ => {}
            }
        }
        let latest = self.due.values().max().copied().unwrap_or(usize::MAX);
        assert!(self.committed <= latest, "seed {seed}: it does not come to an end");
    }

    /// Everybody got what is due, and nothing is left.
    fn check(&mut self) {
        let (seed, sim) = (self.seed, &mut self.sim);
        for (&(id, index), Outcome { tokens, finished }) in &self.got {
            let want = expected(&sim.requests[&id], index);
            let whole =
                *finished && tokens == &want || self.aborted.contains(&id) && want.starts_with(tokens);
            assert!(whole, "seed {seed}: request {id}, {index} got {tokens:?} instead of {want:?}");
        }
        assert_eq!(sim.held(), 0, "seed {seed}: pages leaked");
        assert_eq!(sim.scheduler.num_swapped_pages(), 0, "seed {seed}: saved pages leaked");
        let SwapStats { saved_pages, restored_pages } = sim.scheduler.swap_stats();
        assert_eq!((saved_pages, restored_pages), sim.host.moved(), "seed {seed}: saved and restored");
        sim.scheduler.clear_prefix_cache(&mut sim.pages);
        assert_eq!(sim.pages.num_free(), sim.pages.num_pages(), "seed {seed}: pages leaked in the tree");
    }
}

fn simulate(seed: u64, world: World) -> Totals {
    let (mut run, mut steps) = (Run::new(seed, world), 0);
    while run.sim.requests.len() < world.requests() || !run.sim.is_idle() {
        steps += 1;
        if run.sim.requests.len() < world.requests() && run.random.below(world.pause()) == 0 {
            run.submit();
        }
        run.step();
    }
    run.check();
    let sim = &run.sim;
    let (prefix, swap) = (sim.scheduler.prefix_stats(), sim.scheduler.swap_stats());
    Totals {
        steps,
        preemptions: sim.scheduler.num_preemptions(),
        saved_pages: swap.saved_pages,
        restored_pages: swap.restored_pages,
        hit_tokens: prefix.hit_tokens,
        evicted_pages: prefix.evicted_pages,
        copied_pages: sim.copied_pages,
        forks: sim.forks,
        drafted: sim.drafted,
        accepted: sim.accepted,
        arrived: sim.outside.as_ref().map_or(0, |outside| outside.arrived),
        refused: sim.outside.as_ref().map_or(0, |outside| outside.refused),
        fetched_tokens: run.fetched_tokens,
    }
}

/// Simulates by one seed after the other.
fn simulate_steps(steps: usize, world: World) -> Totals {
    let (mut all, mut seed) = (Totals::default(), 0);
    while all.steps < steps {
        let run = std::panic::catch_unwind(|| simulate(seed, world));
        let run = run.unwrap_or_else(|_| panic!("seed {seed} fails"));
        all.steps += run.steps;
        all.preemptions += run.preemptions;
        all.saved_pages += run.saved_pages;
        all.restored_pages += run.restored_pages;
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
    let all = simulate_steps(100_000, World::Small);
    let enough = all.preemptions > 100 && all.hit_tokens > 1000 && all.evicted_pages > 1000;
    let enough = enough && all.copied_pages > 1000 && all.forks > 1000;
    assert!(enough && all.drafted > 10_000 && all.accepted > 5000, "{all:?}: too tame");
}

#[test]
fn every_completion_gets_its_own_tokens_whatever_is_saved_restored_lost_or_failed() {
    let all = simulate_steps(100_000, World::Swapping);
    let lost = all.saved_pages - all.restored_pages;
    let enough = all.preemptions > 1000 && all.restored_pages > 1000 && lost > 500;
    assert!(enough && all.accepted > 1000, "{all:?}: too tame");
}

#[test]
fn every_completion_gets_its_own_tokens_whatever_comes_from_outside_late_in_part_or_never() {
    let all = simulate_steps(200_000, World::Chunks);
    let fetched = all.arrived > 1000 && all.fetched_tokens > 100_000 && all.refused > 100;
    assert!(fetched && all.preemptions > 10 && all.evicted_pages > 1000, "{all:?}: too tame");
}

#[test]
fn a_prefix_that_sixteen_requests_share_is_computed_once_and_held_once() {
    let mut sim = Simulation::new(400, SchedulerConfig { max_batch_tokens: 256, max_running: 32, ..CONFIG });
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
    let mut sim = Simulation::new(100, CONFIG);
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
