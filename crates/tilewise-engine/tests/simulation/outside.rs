//! Chunks that the simulated memory has lost, and where they come from: late, in part or never.

use std::collections::{HashMap, HashSet};

use tilewise_engine::GenerateRequest;
use tilewise_engine::cache::PageId;
use tilewise_engine::cache::keys::{CHUNK_TOKENS, ChunkHash};
use tilewise_engine::cache::tiers::Source;
use tilewise_engine::scheduler::{Prefetch, SchedulerConfig};

use crate::machine::{CONFIG, PAGE, Random, Simulation, extend, origin};

/// A place for chunks outside the memory, which loses some and gives others late or never.
pub(crate) struct Outside {
    random: Random,
    kept: HashMap<(Option<String>, ChunkHash), Vec<u64>>,
    fetches: Vec<Fetch>,
    /// Chunks that arrived.
    pub(crate) arrived: usize,
    /// Those that there was no room for.
    pub(crate) refused: usize,
}

/// Chunks on their way to a sequence.
struct Fetch {
    wanted: Prefetch,
    next: usize,
    /// Steps until the next one arrives, or until it is clear that it does not.
    steps: u64,
}

/// Steps that a chunk takes at most.
pub(crate) const LATEST: u64 = 12;

impl Simulation {
    /// Keeps chunks outside from now on.
    pub(crate) fn use_chunks(&mut self, seed: u64) {
        self.scheduler.use_chunks();
        let random = Random(seed.wrapping_mul(31));
        let (kept, fetches) = (HashMap::new(), Vec::new());
        self.outside = Some(Outside { random, kept, fetches, arrived: 0, refused: 0 });
    }

    /// Lets chunks arrive, and starts to fetch what is lacking.
    pub(crate) fn fetch(&mut self) {
        let Some(outside) = &mut self.outside else { return };
        let Outside { random, kept, fetches, arrived, refused } = outside;
        let (scheduler, pages, slots) = (&mut self.scheduler, &mut self.pages, &mut self.slots);
        fetches.retain_mut(|fetch| {
            let of = fetch.wanted.of;
            if !scheduler.is_prefetching(of) {
                return false;
            }
            if fetch.steps > 0 {
                fetch.steps -= 1;
                return true;
            }
            // Sometimes a chunk is bad when it comes, which is filtered elsewhere: it is not there.
            let hash = fetch.wanted.hashes.get(fetch.next).filter(|_| random.below(12) > 0);
            let chunk = hash.and_then(|hash| kept.get(&(fetch.wanted.salt.clone(), *hash)));
            let reserved = chunk.and_then(|chunk| Some((chunk, scheduler.reserve_chunk(of, pages)?)));
            *refused += usize::from(chunk.is_some() && reserved.is_none());
            let Some((chunk, to)) = reserved else {
                scheduler.end_prefetch(of);
                return false;
            };
            for (page, content) in to.iter().zip(chunk.chunks_exact(PAGE)) {
                assert_eq!(pages.holders(*page), 1, "page {} is filled and shared", page.0);
                slots[page.0 as usize * PAGE..][..PAGE].copy_from_slice(content);
            }
            scheduler.promote(of, Source::Disk, to, pages);
            *arrived += 1;
            fetch.next += 1;
            fetch.steps = random.below(3) * random.below(LATEST / 2);
            true
        });
        while fetches.len() < 4
            && let Some(wanted) = scheduler.next_prefetch(pages)
        {
            fetches.push(Fetch { wanted, next: 0, steps: random.below(LATEST) });
        }
    }

    /// Keeps most of the chunks that became full.
    pub(crate) fn keep(&mut self) {
        let Some(Outside { random, kept, .. }) = &mut self.outside else { return };
        for chunk in self.scheduler.take_full_chunks() {
            let slots = |page: &PageId| &self.slots[page.0 as usize * PAGE..][..PAGE];
            let content: Vec<u64> = chunk.pages.iter().flat_map(slots).copied().collect();
            assert_eq!(content.len(), CHUNK_TOKENS);
            let key = (chunk.salt, chunk.hash);
            if let Some(known) = kept.get(&key) {
                assert_eq!(known, &content, "one name for two contents");
            }
            if random.below(5) > 0 {
                kept.insert(key, content);
            }
        }
        if random.below(1000) == 0 {
            kept.retain(|_, _| random.below(3) > 0);
        }
    }
}

#[test]
fn a_chunk_that_many_share_is_told_once_and_one_that_was_fetched_is_not_told() {
    let mut sim = Simulation::new(400, SchedulerConfig { max_batch_tokens: 4096, max_running: 32, ..CONFIG });
    sim.scheduler.use_chunks();
    let prefix: Vec<u32> = (0..1024).map(|i| i * 7 % 991).collect();
    for index in 0..16 {
        sim.submit(GenerateRequest::new([prefix.clone(), vec![index; 300]].concat(), 4));
    }
    let (mut told, mut fetched) = (Vec::new(), 0);
    while !sim.is_idle() {
        while let Some(wanted) = sim.scheduler.next_prefetch(&mut sim.pages) {
            // The first chunk of whoever asks first is outside, and nothing else.
            if wanted.hashes.len() == 5 && fetched == 0 {
                let to = sim.scheduler.reserve_chunk(wanted.of, &mut sim.pages).unwrap();
                let mut history = origin(None);
                for (at, &token) in prefix[..CHUNK_TOKENS].iter().enumerate() {
                    history = extend(history, token);
                    sim.slots[to[at / PAGE].0 as usize * PAGE + at % PAGE] = history;
                }
                sim.scheduler.promote(wanted.of, Source::Disk, to, &mut sim.pages);
                fetched += 1;
            }
            sim.scheduler.end_prefetch(wanted.of);
        }
        sim.step();
        told.extend(sim.scheduler.take_full_chunks().into_iter().map(|chunk| chunk.hash));
    }
    assert_eq!(fetched, 1);
    let names: HashSet<ChunkHash> = told.iter().copied().collect();
    assert_eq!((told.len(), names.len()), (3 + 16, 3 + 16), "three that all share and one of each");
    let first = ChunkHash::chain(&prefix).next().unwrap();
    assert!(!names.contains(&first));
}
