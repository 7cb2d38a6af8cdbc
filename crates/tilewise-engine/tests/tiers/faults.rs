//! Faults of every kind behind every tier, by seed: what comes out is what went in, or nothing.

use std::path::Path;
use std::time::Duration;

use tilewise_engine::cache::tiers::{
    CacheTier, DiskTier, HostTier, ObjectTier, Poll, RespTier, Source, Tiers,
};

use crate::faulty::{Counts, Faulty, assert_all_happened};
use crate::process::Redis;
use crate::support::{Chunks, LONG, Random, all};

const CHUNKS: usize = 12;

/// What all seeds together have seen.
#[derive(Default)]
struct Seen {
    hits: u64,
    bad: u64,
    failed: u64,
}

/// Demotes and fetches at random, with abandoned tickets and restarts between.
fn run(seed: u64, chunks: &Chunks, open: &dyn Fn(u64) -> Vec<Box<dyn CacheTier>>, seen: &mut Seen) {
    let mut random = Random::new(seed);
    let mut tiers = Tiers::new(open(seed), 6 * 600).unwrap();
    for step in 0..40 {
        match random.below(8) {
            0..4 => {
                let index = random.below(CHUNKS);
                tiers.demote(chunks.key(index), chunks.pages(index)).unwrap();
            }
            4..6 => {
                let first = random.below(CHUNKS);
                for fetched in all(&mut tiers.fetch(chunks.keys()[first..].to_vec())) {
                    let index = first + fetched.index;
                    assert_eq!(
                        *fetched.bytes,
                        chunks.pages(index),
                        "seed {seed}, step {step}, chunk {index}"
                    );
                    seen.hits += 1;
                }
            }
            6 => {
                let mut ticket = tiers.fetch(chunks.keys());
                if let Poll::Chunk(fetched) = ticket.poll() {
                    assert_eq!(*fetched.bytes, chunks.pages(0), "seed {seed}, step {step}");
                }
            }
            _ => {
                assert!(tiers.flush(LONG), "seed {seed}, step {step}");
            }
        }
        if step == 20 {
            add(seen, &tiers);
            tiers = Tiers::new(open(seed + 1_000_000), 6 * 600).unwrap();
        }
    }
    add(seen, &tiers);
}

fn add(seen: &mut Seen, tiers: &Tiers) {
    for tier in tiers.stats().tiers {
        seen.bad += tier.misses.length + tier.misses.foreign + tier.misses.checksum;
        seen.failed += tier.misses.failed;
    }
}

fn check(name: &str, seeds: u64, open: impl Fn(&Path, u64) -> Box<dyn CacheTier>) {
    let (counts, mut seen) = (Counts::default(), Seen::default());
    let chunks = Chunks::new(CHUNKS, 600);
    for seed in 0..seeds {
        let folder = tempfile::tempdir().unwrap();
        let tiers = |seed| -> Vec<Box<dyn CacheTier>> {
            vec![Box::new(Faulty::new(open(folder.path(), seed), seed, 3, &counts))]
        };
        run(seed, &chunks, &tiers, &mut seen);
    }
    println!("{name}: {seeds} seeds, {} hits, {} bad values, {} failures", seen.hits, seen.bad, seen.failed);
    assert!(seen.hits > 0 && seen.bad > 0 && seen.failed > 0, "{name}: nothing happened");
    assert_all_happened(&counts);
}

#[test]
fn a_faulty_memory_gives_right_bytes_or_none() {
    check("host", 300, |_, _| Box::new(HostTier::new(4000)));
}

#[test]
fn a_faulty_disk_gives_right_bytes_or_none() {
    check("disk", 60, |folder, _| Box::new(DiskTier::open(folder, 6000).unwrap()));
}

#[test]
fn a_faulty_object_store_gives_right_bytes_or_none() {
    check("object", 60, |folder, _| Box::new(ObjectTier::folder(folder, LONG).unwrap()));
}

#[test]
fn a_faulty_server_gives_right_bytes_or_none() {
    let Some(redis) = Redis::start() else { return };
    check("resp", 60, |_, _| Box::new(RespTier::new(&redis.address(), Duration::from_secs(5)).unwrap()));
}

#[test]
fn faults_in_all_tiers_of_a_stack_at_once_give_right_bytes_or_none() {
    let (counts, mut seen) = (Counts::default(), Seen::default());
    let chunks = Chunks::new(CHUNKS, 600);
    for seed in 0..100 {
        let (disk, objects) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = |seed: u64| -> Vec<Box<dyn CacheTier>> {
            let tiers: [Box<dyn CacheTier>; 3] = [
                Box::new(HostTier::new(3000)),
                Box::new(DiskTier::open(disk.path(), 6000).unwrap()),
                Box::new(ObjectTier::folder(objects.path(), LONG).unwrap()),
            ];
            let faulty = |(at, tier)| -> Box<dyn CacheTier> {
                Box::new(Faulty::new(tier, seed * 10 + at, 4, &counts))
            };
            (0..).zip(tiers).map(faulty).collect()
        };
        run(seed, &chunks, &open, &mut seen);
    }
    println!("stack: 100 seeds, {} hits, {} bad values, {} failures", seen.hits, seen.bad, seen.failed);
    assert!(seen.hits > 0 && seen.bad > 0 && seen.failed > 0);
    assert_all_happened(&counts);
}

#[test]
fn whole_values_of_the_fast_tiers_hide_the_faults_of_the_slow_one() {
    let chunks = Chunks::new(CHUNKS, 600);
    let counts = Counts::default();
    let folder = tempfile::tempdir().unwrap();
    let faulty = Faulty::new(Box::new(HostTier::new(1 << 20)), 5, 1, &counts);
    let disk = DiskTier::open(folder.path(), 1 << 20).unwrap();
    let tiers = Tiers::new(vec![Box::new(disk), Box::new(faulty)], 1 << 20).unwrap();
    chunks.store(&tiers, 0..CHUNKS);
    assert_eq!(chunks.fetch(&tiers), [Source::Disk; CHUNKS]);
}
