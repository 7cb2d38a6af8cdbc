//! The engine on its thread: no reader holds it up, and no fault is a hang.

#[macro_use]
#[path = "../common/pass_on.rs"]
mod pass_on;
mod faulty_device;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faulty_device::{Fault, FaultyDevice};
use tilewise_engine::model::ModelSource;
use tilewise_engine::worker::{Snapshot, Update, Updates, Worker, WorkerHandle, WorkerState};
use tilewise_engine::{Engine, EngineConfig, Event, FinishReason, GenerateRequest, KvBudget};

const LONG: Duration = Duration::from_secs(60);

fn config() -> EngineConfig {
    EngineConfig { kv: KvBudget::Tokens(4096), ..EngineConfig::default() }
}

/// A worker of the demo model, and its device.
fn worker() -> (Worker, Arc<FaultyDevice>) {
    let device = Arc::new(FaultyDevice::new(tilewise::open("cpu", Some(1)).unwrap()));
    let (shared, model) =
        (device.clone(), PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo"));
    let load = move || {
        Engine::new(shared, &ModelSource::Folder(model), &config(), &mut tilewise_engine::model::unwatched)
    };
    let worker = Worker::start(load, None).unwrap();
    assert_eq!(wait(worker.handle().loaded()), WorkerState::Ready);
    (worker, device)
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LONG, future).await }).expect("nothing takes so long")
}

fn request(tokens: usize) -> GenerateRequest {
    GenerateRequest { ignore_eos: true, ..GenerateRequest::new(vec![300, 301, 302], tokens) }
}

/// The tokens of a request and how it ended.
fn whole(updates: &mut Updates) -> (Vec<u32>, Option<FinishReason>) {
    let (mut tokens, mut end) = (Vec::new(), None);
    while let Some(update) = wait(updates.next()) {
        match update {
            Update::Event(Event::Token { id, .. }) => tokens.push(id),
            Update::Event(Event::Finished { reason, .. }) => end = Some(reason),
            Update::Accepted => {}
            other => panic!("{other:?}"),
        }
    }
    (tokens, end)
}

#[track_caller]
fn wait_for(handle: &WorkerHandle, what: &str, is_so: impl Fn(&Snapshot) -> bool) {
    let start = Instant::now();
    while !is_so(&handle.snapshot()) {
        assert!(start.elapsed() < LONG, "waiting for {what}: {:?}", handle.snapshot());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Nothing runs, and all pages are free.
fn is_idle(snapshot: &Snapshot) -> bool {
    let stats = &snapshot.stats;
    (stats.running, stats.waiting) == (0, 0) && stats.free_tokens == stats.total_tokens
}

#[test]
fn a_fault_of_the_device_ends_all_requests_and_takes_no_more() {
    for (fault, words) in [(Fault::Error, "unplugged"), (Fault::Panic, "on fire")] {
        let (worker, device) = worker();
        let mut requests = [worker.handle().submit(request(900)), worker.handle().submit(request(900))];
        for updates in &mut requests {
            assert!(matches!(wait(updates.next()), Some(Update::Accepted)));
            assert!(matches!(wait(updates.next()), Some(Update::Event(Event::Token { .. }))));
        }
        device.set(fault);
        for updates in &mut requests {
            let last = loop {
                match wait(updates.next()) {
                    Some(Update::Event(_)) => {}
                    last => break last,
                }
            };
            assert!(matches!(&last, Some(Update::Failed(why)) if why.contains(words)), "{fault:?}: {last:?}");
            assert!(wait(updates.next()).is_none());
        }
        assert!(matches!(worker.handle().state(), WorkerState::Failed(why) if why.contains(words)));
        assert!(wait(worker.handle().submit(request(1)).next()).is_none());
        assert!(!wait(worker.handle().flush_cache()));
    }
}

#[test]
fn a_request_that_nobody_reads_is_given_up_and_others_go_on() {
    let (worker, _) = worker();
    let handle = worker.handle();
    let (alone, end) = whole(&mut handle.submit(request(200)));
    assert_eq!((alone.len(), end), (200, Some(FinishReason::Length)));
    let mut unread = request(900);
    unread.n = 8;
    let mut unread = handle.submit(unread);
    wait_for(handle, "the reader to be too slow", |snapshot| {
        assert_eq!(whole(&mut handle.submit(request(200))).0, alone);
        snapshot.unread == 1
    });
    wait_for(handle, "its pages", is_idle);
    // What was kept for it is bounded, and then it is over without an end.
    let (tokens, end) = whole(&mut unread);
    assert!(tokens.len() < 2000 && end.is_none(), "{}", tokens.len());
}

#[test]
fn a_request_whose_reader_goes_is_given_up() {
    let (worker, _) = worker();
    let handle = worker.handle();
    for seen in 0..3 {
        let mut updates = handle.submit(request(900));
        for _ in 0..seen {
            wait(updates.next()).unwrap();
        }
        drop(updates);
        wait_for(handle, "its pages", is_idle);
    }
    assert!(handle.snapshot().generated_tokens < 900, "{:?}", handle.snapshot());
    assert_eq!(handle.snapshot().unread, 0);
}

#[test]
fn a_completion_that_is_finished_ends_alone() {
    let (worker, _) = worker();
    let mut ask = request(100);
    ask.n = 3;
    let mut updates = worker.handle().submit(ask);
    let (mut counts, mut ends) = ([0; 3], Vec::new());
    while let Some(update) = wait(updates.next()) {
        match update {
            Update::Event(Event::Token { index, .. }) => {
                counts[index] += 1;
                if (index, counts[index]) == (1, 5) {
                    updates.finish(1);
                }
            }
            Update::Event(Event::Finished { index, reason, .. }) => ends.push((index, reason)),
            _ => {}
        }
    }
    ends.sort_by_key(|(index, _)| *index);
    let expected = [FinishReason::Length, FinishReason::Ended, FinishReason::Length];
    assert_eq!(ends.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>(), expected);
    assert!(counts[1] < 100 && (counts[0], counts[2]) == (100, 100), "{counts:?}");
    wait_for(worker.handle(), "its pages", is_idle);
}

#[test]
fn a_request_that_can_never_run_is_refused_at_once() {
    let (worker, _) = worker();
    let mut updates = worker.handle().submit(request(5000));
    assert!(matches!(wait(updates.next()), Some(Update::Refused(tilewise_engine::Error::TooLong { .. }))));
    assert!(wait(updates.next()).is_none());
}

#[test]
fn a_worker_that_is_stopped_ends_its_requests() {
    let (mut worker, _) = worker();
    let mut updates = worker.handle().submit(request(900));
    wait(updates.next()).unwrap();
    worker.stop();
    assert_eq!(worker.handle().state(), WorkerState::Stopped);
    assert_eq!(whole(&mut updates).1, None);
}
