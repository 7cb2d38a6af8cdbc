//! An engine with tiers behind it: requests get the same bits as without, whatever the tiers have, lose, spoil or delay,
//! and they are told where their prefix came from.
#![allow(clippy::print_stdout, reason = "tests say what they skipped and counted")]

mod common;
#[path = "tiers/fakes.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod fakes;
#[path = "tiers/faulty.rs"]
mod faulty;
#[path = "tiers/process.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod process;
#[path = "tiers/support.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Outcome, gpus, model_folder, open, open_on, prompts, run_all, small, tiny_config};
use fakes::Told;
use faulty::{Counts, Faulty, assert_all_happened};
use process::Redis;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use support::{LONG, Random};
use tempfile::TempDir;
use tilewise_engine::cache::tiers::{
    CacheTier, DiskTier, HostTier, ObjectTier, PRIVATE, RespTier, Source, TierConfig,
};
use tilewise_engine::model::ModelSource;
use tilewise_engine::{
    CachedTokens, DraftLength, Drafter, Engine, EngineConfig, Error, Event, GenerateRequest, KvBudget,
    RequestId, SamplingParams, Speculation,
};

const VOCAB: u64 = 131;

/// The small model with room for long prompts.
fn config() -> Value {
    let mut config = tiny_config();
    config["max_position_embeddings"] = json!(2048);
    config
}

fn model() -> TempDir {
    model_folder(&config(), Dtype::BF16)
}

/// Tokens that depend on a seed.
fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| (random.bits() % VOCAB) as u32).collect()
}

/// Greedy and sampled requests that begin with the same tokens.
fn sharing(shared: usize, count: usize, new_tokens: usize) -> Vec<GenerateRequest> {
    let request = |(index, own): (usize, Vec<u32>)| GenerateRequest {
        sampling: SamplingParams {
            temperature: [0.0, 0.9][index % 2],
            seed: index as u64,
            logprobs: true,
            ..SamplingParams::default()
        },
        ..GenerateRequest::new([tokens(7, shared), own].concat(), new_tokens)
    };
    prompts(count, VOCAB as usize).into_iter().enumerate().map(request).collect()
}

/// What requests get from an engine without tiers, each alone.
fn cold(folder: &Path, requests: &[GenerateRequest]) -> Vec<Outcome> {
    let mut engine = open(folder, &EngineConfig { prefix_cache: false, ..small() }).unwrap();
    requests.iter().map(|request| common::run_one(&mut engine, request)).collect()
}

#[track_caller]
fn assert_same(what: &str, got: &[Outcome], want: &[Outcome]) {
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got, want, "{what}: request {index}");
    }
}

/// Runs requests to their end and returns where the prefix of each came from, in the order in which they were submitted.
fn run_reporting(engine: &mut Engine, requests: &[GenerateRequest]) -> (Vec<Outcome>, Vec<CachedTokens>) {
    let ids: Vec<RequestId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut outcomes = vec![Outcome::default(); ids.len()];
    let mut sources = vec![CachedTokens::default(); ids.len()];
    while engine.has_work() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { request, id, logprob, .. } => {
                    let outcome = &mut outcomes[ids.iter().position(|&known| known == request).unwrap()];
                    outcome.tokens.push(id);
                    outcome.logprob_bits.extend(logprob.map(f32::to_bits));
                }
                Event::Finished { request, reason, cached_tokens, cached_from, .. } => {
                    let at = ids.iter().position(|&known| known == request).unwrap();
                    outcomes[at].reason = Some(reason);
                    assert_eq!(cached_from.total(), cached_tokens);
                    sources[at] = cached_from;
                }
                _ => {}
            }
        }
    }
    let stats = engine.stats();
    assert_eq!(stats.free_tokens, stats.total_tokens, "pages leaked");
    (outcomes, sources)
}

fn with_tiers(tiers: Vec<TierConfig>) -> EngineConfig {
    EngineConfig { tiers, ..small() }
}

fn disk(folder: &TempDir) -> TierConfig {
    TierConfig::Disk { folder: folder.path().to_owned(), bytes: 1 << 30, mode: PRIVATE }
}

#[test]
fn drafts_and_prompt_logprobs_go_with_tiers() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let mut requests = sharing(1024, 6, 12);
    let want = cold(model.path(), &requests);
    requests[1].prompt_logprobs = Some(2);
    let drafter = Drafter::Model(ModelSource::Folder(model.path().to_owned()));
    let speculation = Some(Speculation { drafter, max_drafts: 3, length: DraftLength::Fixed, branches: 1 });
    let config = EngineConfig { speculation, ..with_tiers(vec![disk(&folder)]) };
    for round in ["first", "again"] {
        let mut engine = open(model.path(), &config).unwrap();
        let (got, sources) = run_reporting(&mut engine, &requests);
        assert_same(round, &got, &want);
        assert_eq!(sources[1].total(), 0, "{round}: its whole prompt is computed");
        assert!(engine.stats().speculation.accepted > 0, "{round}: {:?}", engine.stats());
    }
}

#[test]
fn an_engine_made_again_over_the_same_folder_finds_the_shared_prefix_on_disk() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let requests = sharing(1024, 16, 6);
    let want = cold(model.path(), &requests);
    let config = with_tiers(vec![disk(&folder)]);

    let mut engine = open(model.path(), &config).unwrap();
    let (got, sources) = run_reporting(&mut engine, &requests);
    assert_same("first", &got, &want);
    assert_eq!(sources[0], CachedTokens::default(), "there was nothing yet");
    assert!(sources[1..].iter().all(|source| source.total() == 1024), "{sources:?}");
    drop(engine);

    let mut engine = open(model.path(), &config).unwrap();
    let (got, sources) = run_reporting(&mut engine, &requests);
    assert_same("again", &got, &want);
    // The first request fetches what the others find on the device.
    assert_eq!(sources[0], CachedTokens { disk: 1024, ..CachedTokens::default() });
    let shared = CachedTokens { device: 1024, ..CachedTokens::default() };
    assert!(sources[1..].iter().all(|source| *source == shared), "{sources:?}");
    let stats = engine.tiers_stats().unwrap().tiers[0];
    assert_eq!((stats.source, stats.hits), (Source::Disk, 4), "each chunk was loaded once: {stats:?}");
    assert_eq!(stats.stores, 0, "what came from a tier was stored there again: {stats:?}");
}

#[test]
fn a_gpu_gets_its_chunks_back_with_the_same_bits_and_no_other_device_gets_them() {
    let model = model();
    for gpu in gpus() {
        let folder = tempfile::tempdir().unwrap();
        let requests = &sharing(256, 2, 3);
        let mut engine = open_on(&gpu.device, model.path(), &small()).unwrap();
        let want = run_all(&mut engine, requests);
        let config = with_tiers(vec![disk(&folder)]);
        for disk in [0, 256] {
            let mut engine = open_on(&gpu.device, model.path(), &config).unwrap();
            let (got, sources) = run_reporting(&mut engine, requests);
            assert_same(&gpu.name, &got, &want);
            assert_eq!(sources[0].disk, disk, "{}: {sources:?}", gpu.name);
        }
        let mut engine = open(model.path(), &config).unwrap();
        let (_, sources) = run_reporting(&mut engine, requests);
        assert_eq!(sources[0], CachedTokens::default(), "the CPU took pages of {}", gpu.name);
        println!("{}: 256 tokens from disk", gpu.name);
    }
}

#[test]
fn what_the_device_evicted_comes_back_from_the_fastest_tier_that_has_it() {
    let (model, folder, objects) = (model(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let requests = sharing(700, 3, 4);
    let want = cold(model.path(), &requests);
    let host = TierConfig::Host { bytes: 1 << 30 };
    let object = TierConfig::ObjectFolder(objects.path().to_owned());
    let config = with_tiers(vec![host, disk(&folder), object.clone()]);
    let mut engine = open(model.path(), &config).unwrap();
    assert_same("cold", &run_all(&mut engine, &requests[..1]), &want[..1]);
    assert!(engine.flush_tiers(LONG));
    engine.clear_prefix_cache();
    let (got, sources) = run_reporting(&mut engine, &requests);
    assert_same("cleared", &got, &want);
    assert_eq!(sources[0], CachedTokens { host: 512, ..CachedTokens::default() });
    // A page of 32 tokens more is computed by the first, and found by the others.
    assert_eq!(sources[1], CachedTokens { device: 672, ..CachedTokens::default() });
    drop(engine);

    let mut engine = open(model.path(), &with_tiers(vec![object])).unwrap();
    let (got, sources) = run_reporting(&mut engine, &requests);
    assert_same("object store", &got, &want);
    assert_eq!(sources[0], CachedTokens { object: 512, ..CachedTokens::default() });
}

#[test]
fn a_prefix_of_whole_chunks_is_fetched_but_for_the_page_whose_logits_are_needed() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let request = GenerateRequest::new(tokens(3, 512), 3);
    let want = cold(model.path(), std::slice::from_ref(&request));
    let config = with_tiers(vec![disk(&folder)]);
    for cached in [0, 480] {
        let mut engine = open(model.path(), &config).unwrap();
        let (got, sources) = run_reporting(&mut engine, std::slice::from_ref(&request));
        assert_same("512 tokens", &got, &want);
        assert_eq!(sources[0].disk, cached);
    }
}

#[test]
fn a_server_killed_in_the_middle_of_a_run_costs_no_request_its_bits() {
    let Some(redis) = Redis::start() else { return };
    let model = model();
    let requests: Vec<GenerateRequest> =
        (0..12).map(|index| GenerateRequest::new(tokens(index, 600), 8)).collect();
    let want = cold(model.path(), &requests);
    let resp = || -> Vec<Box<dyn CacheTier>> {
        vec![Box::new(RespTier::new(&redis.address(), Duration::from_millis(200)).unwrap())]
    };
    let mut engine = open(model.path(), &small()).unwrap();
    engine.attach_tiers(resp()).unwrap();
    assert_same("stored", &run_all(&mut engine, &requests), &want);
    assert!(engine.flush_tiers(LONG));
    drop(engine);

    let mut engine = open(model.path(), &small()).unwrap();
    engine.attach_tiers(resp()).unwrap();
    let (got, sources) = run_reporting(&mut engine, &requests[..4]);
    assert_same("server", &got, &want[..4]);
    assert!(sources.iter().all(|source| source.resp == 512), "{sources:?}");
    let mut server = Some(redis);
    let ids: Vec<RequestId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut got = vec![Vec::new(); ids.len()];
    let mut steps = 0;
    while engine.has_work() {
        steps += 1;
        if steps == 3 {
            drop(server.take());
        }
        for event in engine.step().unwrap() {
            if let Event::Token { request, id, .. } = event {
                got[ids.iter().position(|&known| known == request).unwrap()].push(id);
            }
        }
    }
    for (index, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(got, &want.tokens, "request {index}");
    }
    let stats = engine.tiers_stats().unwrap().tiers[0];
    assert!(stats.errors > 0, "the server was not missed: {stats:?}");
}

#[test]
fn faults_of_all_tiers_cost_no_request_its_bits() {
    let model = model();
    let requests: Vec<GenerateRequest> = (0..6)
        .map(|index| GenerateRequest::new([tokens(index % 2, 512), tokens(50 + index, 300)].concat(), 4))
        .collect();
    let want = cold(model.path(), &requests);
    let (counts, mut fetched, mut bad) = (Counts::default(), 0, 0);
    for seed in 0..12 {
        let (folder, objects) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // A pool that holds two of them, so that what was fetched gives way and is fetched again.
        let config = EngineConfig { kv: KvBudget::Tokens(1800), ..small() };
        for round in 0..2 {
            let inner: [Box<dyn CacheTier>; 3] = [
                Box::new(HostTier::new(1 << 19)),
                Box::new(DiskTier::open(folder.path(), 1 << 20).unwrap()),
                Box::new(ObjectTier::folder(objects.path(), LONG).unwrap()),
            ];
            let faulty = |(at, tier): (u64, _)| -> Box<dyn CacheTier> {
                Box::new(Faulty::new(tier, seed * 10 + round * 5 + at, 4, &counts))
            };
            let mut engine = open(model.path(), &config).unwrap();
            engine.attach_tiers((0u64..).zip(inner).map(faulty).collect()).unwrap();
            let (got, sources) = run_reporting(&mut engine, &requests);
            assert_same(&format!("seed {seed}, round {round}"), &got, &want);
            fetched += sources.iter().map(|source| source.total() - source.device).sum::<usize>();
            for tier in engine.tiers_stats().unwrap().tiers {
                bad += tier.misses.length + tier.misses.foreign + tier.misses.checksum;
            }
        }
    }
    println!("faults: {fetched} tokens came from tiers, {bad} bad values did not");
    assert!(fetched > 5_000 && bad > 0, "{fetched} tokens, {bad} bad values: nothing happened");
    assert_all_happened(&counts);
}

#[test]
fn a_slow_tier_delays_the_request_that_asked_it_and_no_other() {
    let model = model();
    let slow = GenerateRequest::new(tokens(1, 600), 2);
    let quick = GenerateRequest::new(tokens(2, 40), 2);
    let (tier, orders) = Told::tier(Source::Disk);
    let mut engine = open(model.path(), &small()).unwrap();
    engine.attach_tiers(vec![tier]).unwrap();
    let want = run_all(&mut engine, std::slice::from_ref(&slow));
    assert!(engine.flush_tiers(LONG));
    engine.clear_prefix_cache();

    *orders.takes.lock().unwrap() = Duration::from_millis(300);
    let start = Instant::now();
    let ids = [engine.submit(slow.clone()).unwrap(), engine.submit(quick).unwrap()];
    let (mut finished, mut longest, mut got) = (Vec::new(), Duration::ZERO, Vec::new());
    while engine.has_work() {
        let step = Instant::now();
        for event in engine.step().unwrap() {
            match event {
                Event::Token { request, id, .. } if request == ids[0] => got.push(id),
                Event::Finished { request, cached_from, .. } => {
                    finished.push((request, cached_from.disk, start.elapsed()));
                }
                _ => {}
            }
        }
        longest = longest.max(step.elapsed());
    }
    let order: Vec<_> = finished.iter().map(|(request, disk, _)| (*request, *disk)).collect();
    assert_eq!(order, [(ids[1], 0), (ids[0], 512)], "the younger one overtakes");
    assert_eq!(got, want[0].tokens);
    assert!(finished[0].2 < Duration::from_millis(300), "it waited for the tier: {finished:?}");
    assert!(longest < Duration::from_millis(250), "a step waited for the tier: {longest:?}");

    // One that is forgotten meanwhile leaves nothing behind.
    engine.clear_prefix_cache();
    let id = engine.submit(slow).unwrap();
    assert!(engine.step().unwrap().is_empty());
    assert!(engine.abort(id) && !engine.has_work());
    assert_eq!(engine.stats().free_tokens, engine.stats().total_tokens);
}

#[test]
fn a_tier_that_panics_costs_nothing_but_its_hits() {
    let model = model();
    let requests = [GenerateRequest::new(tokens(1, 600), 2), GenerateRequest::new(tokens(2, 600), 2)];
    let want = cold(model.path(), &requests);
    let (tier, orders) = Told::tier(Source::Disk);
    let mut engine = open(model.path(), &small()).unwrap();
    engine.attach_tiers(vec![tier]).unwrap();
    orders.panics.store(true, Ordering::Relaxed);
    assert_same("its first operation", &run_all(&mut engine, &requests), &want);
    engine.clear_prefix_cache();
    assert_same("afterwards", &run_all(&mut engine, &requests), &want);
}

#[test]
fn a_salt_finds_only_what_was_stored_with_it() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let of = |salt: Option<&str>| GenerateRequest {
        cache_salt: salt.map(str::to_owned),
        ..GenerateRequest::new(tokens(5, 300), 2)
    };
    let config = with_tiers(vec![disk(&folder)]);
    let mut disk = Vec::new();
    for salt in [None, Some("a"), Some("b"), Some("a"), None] {
        let mut engine = open(model.path(), &config).unwrap();
        disk.push(run_reporting(&mut engine, &[of(salt)]).1[0].disk);
    }
    assert_eq!(disk, [0, 0, 0, 256, 256]);
    let mut engine = open(model.path(), &config).unwrap();
    let refused = engine.submit(of(Some("a b")));
    assert!(matches!(refused, Err(Error::Value { name: "cache_salt", .. })), "{refused:?}");
    assert!(!engine.has_work());
}

#[test]
fn tiers_that_mean_nothing_are_refused_before_anything_is_loaded() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let without = EngineConfig { prefix_cache: false, ..with_tiers(vec![disk(&folder)]) };
    let refused = open(model.path(), &without).err();
    assert!(matches!(refused, Some(Error::Value { name: "cache tiers", .. })), "{refused:?}");
    let mut engine = open(model.path(), &EngineConfig { prefix_cache: false, ..small() }).unwrap();
    let refused = engine.attach_tiers(vec![Box::new(HostTier::new(1))]).err();
    assert!(matches!(refused, Some(Error::Value { name: "cache tiers", .. })), "{refused:?}");

    let nowhere = Path::new("/no/such/model");
    let resp = TierConfig::Resp { address: "http://user:secret@host".to_owned() };
    assert!(!format!("{resp:?}").contains("secret"));
    let refused = open(nowhere, &with_tiers(vec![resp])).err();
    assert!(matches!(refused, Some(Error::Value { name: "RESP address", .. })), "{refused:?}");
    let missing = TierConfig::ObjectFolder("/no/such/folder".into());
    assert!(matches!(open(nowhere, &with_tiers(vec![missing])), Err(Error::File { .. })));
}

/// Tells a child of this test where to write.
const FOLDER: &str = "TILEWISE_TEST_FOLDER";

/// What a child says before it begins to write.
const READY: &str = "the child is ready";

/// Prompts of two chunks each: twice as many as the disk holds.
const KILLED_PROMPTS: u64 = 12;
const KILLED_BOUND: u64 = 12 * 140_000;

fn killed_request(index: u64) -> GenerateRequest {
    GenerateRequest::new(tokens(1000 + index, 520), 1)
}

fn open_over(folder: &Path) -> Engine {
    let tier = TierConfig::Disk { folder: folder.join("disk"), bytes: KILLED_BOUND, mode: PRIVATE };
    let config = EngineConfig { kv: KvBudget::Tokens(600), max_batch_tokens: 520, ..with_tiers(vec![tier]) };
    open(&folder.join("model"), &config).unwrap()
}

#[test]
#[ignore = "the child of the test that kills it"]
fn child_that_serves() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut random = Random::new(u64::from(std::process::id()));
    let mut engine = open_over(Path::new(&folder));
    println!("{READY}");
    loop {
        let index = random.below(KILLED_PROMPTS as usize) as u64;
        run_all(&mut engine, &[killed_request(index)]);
    }
}

fn child(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_serves", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn an_engine_killed_a_hundred_times_while_it_writes_leaves_right_bits_or_none() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("model")).unwrap();
    common::write_model(&folder.path().join("model"), &config(), Dtype::BF16);
    let requests: Vec<GenerateRequest> = (0..KILLED_PROMPTS).map(killed_request).collect();
    let want = cold(&folder.path().join("model"), &requests);
    let seed = 7;
    let (mut random, mut hits, mut torn) = (Random::new(seed), 0, 0);
    for round in 0..100 {
        let mut child = child(folder.path());
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().ends_with(READY)), "round {round} of seed {seed}: no writer");
        std::thread::sleep(Duration::from_micros(random.below(60_000) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        torn += partial_files(&folder.path().join("disk"));
        let mut engine = open_over(folder.path());
        let index = random.below(requests.len());
        let (got, sources) = run_reporting(&mut engine, &requests[index..=index]);
        assert_same(&format!("round {round} of seed {seed}"), &got, &want[index..=index]);
        hits += usize::from(sources[0].disk > 0);
    }
    println!("engine: 100 kills, {hits} prefixes from disk, {torn} torn writes");
    assert!(hits > 10 && torn > 0, "{hits} hits, {torn} torn writes: nothing was interrupted");
}

/// Files below a folder that were being written.
fn partial_files(folder: &Path) -> usize {
    let below = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let is_partial = path.extension().is_some_and(|extension| extension == "partial");
        if path.is_dir() { partial_files(&path) } else { usize::from(is_partial) }
    };
    std::fs::read_dir(folder).unwrap().map(below).sum()
}

#[test]
fn tiers_change_no_bit_of_requests_that_are_preempted() {
    let model = model();
    let requests = sharing(300, 10, 40);
    let want = cold(model.path(), &requests);
    let config = EngineConfig {
        page_size: 16,
        kv: KvBudget::Tokens(640),
        ..with_tiers(vec![TierConfig::Host { bytes: 1 << 30 }])
    };
    let mut engine = open(model.path(), &config).unwrap();
    assert_same("first", &run_all(&mut engine, &requests), &want);
    assert_same("again", &run_all(&mut engine, &requests), &want);
    assert!(engine.stats().preemptions > 0, "the pool was large enough for all");
}
