//! The stack: order, promotion, bounds, and that nobody waits for a slow tier.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tilewise_engine::Error;
use tilewise_engine::cache::tiers::{CacheTier, DiskTier, HostTier, ObjectTier, Poll, Source, Tiers, Value};

use crate::fakes::Told;
use crate::support::{Chunks, LONG, all, stack, stats};

/// What a call that never waits takes at most, on a machine that does other things too.
const AT_ONCE: Duration = Duration::from_millis(100);

#[test]
fn what_is_demoted_is_in_every_tier_and_the_fastest_gives_it() {
    let (disk, objects) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let chunks = Chunks::new(3, 1024);
    let tiers = stack(vec![
        Box::new(HostTier::new(1 << 20)),
        Box::new(DiskTier::open(disk.path(), 1 << 20).unwrap()),
        Box::new(ObjectTier::folder(objects.path(), LONG).unwrap()),
    ]);
    chunks.store(&tiers, 0..3);
    assert_eq!(chunks.fetch(&tiers), [Source::Host; 3]);
    for source in [Source::Host, Source::Disk, Source::Object] {
        let stats = stats(&tiers, source);
        assert_eq!((stats.stores, stats.failed_stores, stats.errors), (3, 0, 0), "{source}");
        assert_eq!(stats.stored_bytes, 3 * chunks.value(0).as_bytes().len() as u64, "{source}");
    }
    assert_eq!(stats(&tiers, Source::Host).loaded_bytes, 3 * 1024);
    drop(tiers);
    let (mut disk, mut objects) =
        (DiskTier::open(disk.path(), 1 << 20).unwrap(), ObjectTier::folder(objects.path(), LONG).unwrap());
    for index in 0..3 {
        assert!(chunks.is_in(&mut disk, index) && chunks.is_in(&mut objects, index), "chunk {index}");
    }
}

#[test]
fn after_a_restart_the_disk_gives_what_then_is_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let chunks = Chunks::new(4, 1024);
    let open = || {
        let disk = DiskTier::open(folder.path(), 1 << 20).unwrap();
        stack(vec![Box::new(HostTier::new(1 << 20)), Box::new(disk)])
    };
    chunks.store(&open(), 0..4);
    let tiers = open();
    assert_eq!(chunks.fetch(&tiers), [Source::Disk; 4]);
    assert!(tiers.flush(LONG));
    assert_eq!(chunks.fetch(&tiers), [Source::Host; 4]);
    assert_eq!(stats(&tiers, Source::Disk).stores, 0, "what is there already is not written again");
}

#[test]
fn a_fetch_stops_at_the_first_chunk_that_is_nowhere() {
    let chunks = Chunks::new(5, 512);
    let tiers = stack(vec![Box::new(HostTier::new(1 << 20))]);
    chunks.store(&tiers, [0, 1, 3, 4]);
    assert_eq!(chunks.fetch(&tiers), [Source::Host; 2]);
    let host = stats(&tiers, Source::Host);
    assert_eq!((host.hits, host.misses.absent, host.misses.total()), (2, 1, 1), "{host:?}");
    assert!(all(&mut tiers.fetch(vec![])).is_empty());
    assert!(all(&mut tiers.fetch(vec![chunks.unknown()])).is_empty());
}

#[test]
fn a_bad_value_is_a_miss_with_its_reason_and_gives_way_to_a_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let chunks = Chunks::new(4, 512);
    let mut flipped = chunks.value(0).as_bytes().to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let short = chunks.value(1).as_bytes()[..300].to_vec();
    let foreign = chunks.value(3).as_bytes().to_vec();
    let mut disk = DiskTier::open(folder.path(), 1 << 20).unwrap();
    for (index, bad) in [flipped, short, foreign].iter().enumerate() {
        disk.store(&chunks.key(index), &Value::from_bytes(bad.clone())).unwrap();
    }
    let tiers = stack(vec![Box::new(disk)]);
    for index in 0..4 {
        assert!(all(&mut tiers.fetch(vec![chunks.key(index)])).is_empty(), "chunk {index}");
    }
    let misses = stats(&tiers, Source::Disk).misses;
    assert_eq!((misses.checksum, misses.length, misses.foreign, misses.absent), (1, 1, 1, 1), "{misses:?}");
    chunks.store(&tiers, 0..4);
    assert_eq!(chunks.fetch(&tiers), [Source::Disk; 4]);
}

#[test]
fn demoting_fetching_and_polling_wait_for_no_tier() {
    let chunks = Chunks::new(8, 512);
    let (slow, orders) = Told::tier(Source::Object);
    *orders.takes.lock().unwrap() = Duration::from_millis(400);
    let tiers = stack(vec![slow]);
    let start = Instant::now();
    for index in 0..8 {
        assert!(tiers.demote(chunks.key(index), chunks.pages(index)).unwrap());
    }
    let mut ticket = tiers.fetch(vec![chunks.unknown()]);
    for _ in 0..20 {
        assert!(matches!(ticket.poll(), Poll::Pending));
    }
    drop(ticket);
    let _ = tiers.stats();
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    assert!(!tiers.flush(Duration::from_millis(10)), "a flush is over when it says");
}

#[test]
fn what_waits_to_be_stored_is_bounded_and_the_rest_is_dropped_and_counted() {
    let chunks = Chunks::new(6, 512);
    let (slow, orders) = Told::tier(Source::Disk);
    *orders.takes.lock().unwrap() = Duration::from_millis(200);
    let tiers = Tiers::new(vec![slow], 3 * 512).unwrap();
    let taken: Vec<bool> =
        (0..6).map(|index| tiers.demote(chunks.key(index), chunks.pages(index)).unwrap()).collect();
    assert_eq!(taken, [true, true, true, false, false, false]);
    assert_eq!((tiers.stats().dropped, tiers.stats().queued_bytes), (3, 3 * 512));
    assert!(tiers.flush(LONG));
    assert_eq!(tiers.stats().queued_bytes, 0);
    assert_eq!(chunks.fetch(&tiers), [Source::Disk; 3]);
    assert!(tiers.demote(chunks.key(5), chunks.pages(5)).unwrap(), "there is room again");
}

#[test]
fn a_chunk_that_waits_to_be_stored_is_found() {
    let chunks = Chunks::new(3, 512);
    let (slow, orders) = Told::tier(Source::Disk);
    *orders.takes.lock().unwrap() = Duration::from_millis(100);
    let tiers = stack(vec![slow]);
    for index in 0..3 {
        assert!(tiers.demote(chunks.key(index), chunks.pages(index)).unwrap());
    }
    while orders.stores.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    // The first is being stored when the fetch begins; the others wait.
    assert_eq!(chunks.fetch(&tiers), [Source::Disk, Source::Host, Source::Host]);
    assert_eq!(tiers.stats().queue_hits, 2);
}

#[test]
fn a_chunk_of_another_length_than_its_keys_is_refused() {
    let chunks = Chunks::new(1, 512);
    let tiers = stack(vec![Box::new(HostTier::new(1 << 20))]);
    for len in [0, 511, 513] {
        let error = tiers.demote(chunks.key(0), vec![0; len]).unwrap_err();
        assert!(matches!(error, Error::Value { name: "chunk", .. }), "{error:?}");
    }
    assert_eq!(chunks.fetch(&tiers), []);
}

#[test]
fn little_is_read_ahead_and_nothing_for_an_abandoned_ticket() {
    let chunks = Chunks::new(12, 512);
    let (tier, orders) = Told::tier(Source::Disk);
    let tiers = stack(vec![tier]);
    chunks.store(&tiers, 0..12);
    let mut ticket = tiers.fetch(chunks.keys());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(orders.loads.load(Ordering::Relaxed), 4, "nobody has polled yet");
    assert!(matches!(ticket.poll(), Poll::Chunk(_)));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(orders.loads.load(Ordering::Relaxed), 5, "one for the one that was taken");
    drop(ticket);
    assert_eq!(chunks.fetch(&tiers).len(), 12, "others go on");
    assert_eq!(orders.loads.load(Ordering::Relaxed), 5 + 12);
}

#[test]
fn so_many_tickets_are_under_way_at_most_and_dropping_one_makes_room() {
    let chunks = Chunks::new(1, 512);
    let tiers = stack(vec![Box::new(HostTier::new(1 << 20))]);
    chunks.store(&tiers, [0]);
    let mut tickets: Vec<_> = (0..1024).map(|_| tiers.fetch(chunks.keys())).collect();
    assert_eq!(chunks.fetch(&tiers), []);
    assert_eq!(tiers.stats().refused_fetches, 1);
    tickets.pop();
    assert_eq!(chunks.fetch(&tiers), [Source::Host]);
    assert_eq!(all(&mut tickets[0]).len(), 1);
}

#[test]
fn two_tickets_take_turns() {
    let chunks = Chunks::new(4, 512);
    let (tier, orders) = Told::tier(Source::Disk);
    let tiers = stack(vec![tier]);
    chunks.store(&tiers, 0..4);
    *orders.takes.lock().unwrap() = Duration::from_millis(50);
    let (mut first, mut second) = (tiers.fetch(chunks.keys()), tiers.fetch(chunks.keys()));
    assert!(matches!(second.wait(LONG), Poll::Chunk(_)));
    assert!(orders.loads.load(Ordering::Relaxed) <= 3, "the second did not wait for the end of the first");
    assert_eq!((all(&mut first).len(), all(&mut second).len()), (4, 3));
}

#[test]
fn a_tier_that_is_gone_is_left_alone_for_a_while_and_then_asked_again() {
    let chunks = Chunks::new(2, 512);
    let (tier, orders) = Told::tier(Source::Resp);
    let tiers = stack(vec![tier]);
    chunks.store(&tiers, 0..2);
    orders.gone.store(true, Ordering::Relaxed);
    for _ in 0..20 {
        assert_eq!(chunks.fetch(&tiers), []);
    }
    let misses = stats(&tiers, Source::Resp).misses;
    assert!(misses.failed >= 1 && misses.failed + misses.resting == 20 && misses.resting > 15, "{misses:?}");
    assert_eq!(tiers.stats().last_error.unwrap().0, Source::Resp);
    orders.gone.store(false, Ordering::Relaxed);
    let start = Instant::now();
    while chunks.fetch(&tiers).len() != 2 {
        assert!(start.elapsed() < LONG, "it was never asked again: {:?}", tiers.stats());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn dropping_the_tiers_stores_what_waits() {
    let folder = tempfile::tempdir().unwrap();
    let chunks = Chunks::new(8, 4096);
    let tiers = stack(vec![Box::new(DiskTier::open(folder.path(), 1 << 20).unwrap())]);
    for index in 0..8 {
        assert!(tiers.demote(chunks.key(index), chunks.pages(index)).unwrap());
    }
    let mut ticket = tiers.fetch(vec![chunks.unknown()]);
    drop(tiers);
    assert!(matches!(ticket.wait(LONG), Poll::End), "a ticket outlives its tiers and ends");
    let mut disk = DiskTier::open(folder.path(), 1 << 20).unwrap();
    assert!((0..8).all(|index| chunks.is_in(&mut disk, index)));
}

#[test]
fn a_tier_that_does_not_come_back_holds_up_the_end_for_seconds_only() {
    let chunks = Chunks::new(1, 512);
    let (tier, orders) = Told::tier(Source::Object);
    *orders.takes.lock().unwrap() = Duration::from_secs(60);
    let tiers = stack(vec![tier]);
    assert!(tiers.demote(chunks.key(0), chunks.pages(0)).unwrap());
    let start = Instant::now();
    drop(tiers);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_tier_that_panics_ends_all_fetches_and_nothing_else() {
    let chunks = Chunks::new(2, 512);
    let (tier, orders) = Told::tier(Source::Disk);
    let tiers = stack(vec![tier]);
    chunks.store(&tiers, 0..2);
    orders.panics.store(true, Ordering::Relaxed);
    assert_eq!(chunks.fetch(&tiers), []);
    assert_eq!(chunks.fetch(&tiers), []);
    assert!(!tiers.demote(chunks.key(1), chunks.pages(1)).unwrap(), "there is nobody to store it");
    assert!(tiers.flush(LONG));
}

#[test]
fn memory_holds_no_more_than_its_bytes_and_forgets_the_least_recently_used() {
    let chunks = Chunks::new(6, 1000);
    let len = chunks.value(0).as_bytes().len() as u64;
    let mut host = HostTier::new(3 * len);
    for index in 0..3 {
        host.store(&chunks.key(index), &chunks.value(index)).unwrap();
    }
    assert!(chunks.is_in(&mut host, 0) && host.contains(&chunks.key(1)).unwrap(), "uses of 0 and 1");
    for (index, want) in [(3, [0, 1, 3]), (4, [1, 3, 4])] {
        host.store(&chunks.key(index), &chunks.value(index)).unwrap();
        assert!(host.held_bytes().unwrap() <= 3 * len);
        let held: Vec<usize> = (0..6).filter(|&index| chunks.is_in(&mut host, index)).collect();
        assert_eq!(held, want);
    }
    host.remove(&chunks.key(3)).unwrap();
    assert_eq!(host.held_bytes(), Some(2 * len));
    assert!(HostTier::new(len - 1).store(&chunks.key(0), &chunks.value(0)).is_err(), "larger than the tier");
}
