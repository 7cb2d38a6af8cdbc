//! A pool of threads that a layer can use without paying for it.
//!
//! Workers spin for a while after a job, since the next one comes within microseconds inside a step, and sleep
//! when none comes. A worker that is asleep, or late, is never waited for: a job is closed when its items are
//! handed out, and only those who joined before are awaited.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker spins before it sleeps. A decode step leaves gaps of microseconds between layers and of less
/// than a millisecond between steps.
const SPIN: Duration = Duration::from_millis(2);

type Task<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// The state word: job number in the upper half, whether it may be joined, and how many have joined.
const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;

struct Shared {
    state: AtomicU64,
    next: AtomicUsize,
    /// The job's task and number of items; written only while no worker has joined and none can.
    job: UnsafeCell<Option<(Task<'static>, usize)>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    asleep: AtomicUsize,
}

// SAFETY: `job` is written by `run`, under the pool's lock, while the job is closed and nobody has joined, and read
// by workers that joined; the state word orders the two.
unsafe impl Sync for Shared {}

/// Threads that share out the items of one job at a time.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads, of which the caller of [`Pool::run`] is one.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
        });
        let handles = (1..threads)
            .map(|worker| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("tilewise-{worker}"))
                    .spawn(move || shared.work(worker))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        let sleepers = handles.iter().map(|handle| handle.thread().clone()).collect();
        Ok(Self { shared, handles, sleepers, turn: Mutex::new(()) })
    }

    /// The number of threads, the caller among them.
    pub(crate) fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `task(thread, item)` once for every item below `items`, on any thread, and returns when all are done.
    ///
    /// No two calls that run at the same time have the same `thread`, which is below [`Pool::threads`].
    pub(crate) fn run(&self, items: usize, task: Task<'_>) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if items < 2 || self.handles.is_empty() {
            (0..items).for_each(|item| task(0, item));
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The reference is used by workers that joined this job, and `Closing`
        // waits for them before this function returns or unwinds.
        let task: Task<'static> = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: the last job is closed and left by all (`Closing`), this one is not open yet, and `turn` keeps
        // other callers out.
        unsafe { *shared.job.get() = Some((task, items)) };
        shared.next.store(0, Ordering::Relaxed);
        let closing = Closing(shared);
        let number = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.state.store((number << 32) | OPEN, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            self.sleepers.iter().for_each(Thread::unpark);
        }
        shared.drain(0, task, items);
        drop(closing);
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a worker thread panicked");
    }
}

/// Closes a job and waits for those who joined it, also when the caller's own share panics.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        while self.0.state.load(Ordering::Acquire) & JOINED != 0 {
            std::hint::spin_loop();
        }
    }
}

impl Shared {
    fn drain(&self, worker: usize, task: Task<'_>, items: usize) {
        loop {
            let item = self.next.fetch_add(1, Ordering::Relaxed);
            if item >= items {
                return;
            }
            task(worker, item);
        }
    }

    fn work(&self, worker: usize) {
        let mut done = 0;
        let mut idle = Instant::now();
        let mut spins = 0u32;
        while !self.stop.load(Ordering::Relaxed) {
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN != 0 && state >> 32 != done {
                let joined =
                    self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if joined.is_ok() {
                    done = state >> 32;
                    // SAFETY: this thread has joined, so `run` does not write the job until it leaves.
                    if let Some((task, items)) = unsafe { *self.job.get() } {
                        let drained = catch_unwind(AssertUnwindSafe(|| self.drain(worker, task, items)));
                        if drained.is_err() {
                            self.panicked.store(true, Ordering::Relaxed);
                        }
                    }
                    self.state.fetch_sub(1, Ordering::AcqRel);
                    idle = Instant::now();
                    spins = 0;
                }
                continue;
            }
            std::hint::spin_loop();
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(256) && idle.elapsed() > SPIN {
                self.sleep(done);
                idle = Instant::now();
            }
        }
    }

    /// Parks until woken, unless a new job has opened since.
    fn sleep(&self, done: u64) {
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let state = self.state.load(Ordering::SeqCst);
        let opened = state & OPEN != 0 && state >> 32 != done;
        if !opened && !self.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.sleepers.iter().for_each(Thread::unpark);
        for handle in self.handles.drain(..) {
            // A worker cannot have panicked: its tasks are caught. Nothing is to be done about it here anyway.
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once_and_threads_do_not_share_a_number() {
        let pool = Pool::new(4).unwrap();
        for round in 0..2000 {
            let items = round % 37;
            let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            let busy: Vec<AtomicBool> = (0..4).map(|_| AtomicBool::new(false)).collect();
            pool.run(items, &|thread, item| {
                assert!(!busy[thread].swap(true, Ordering::SeqCst));
                counts[item].fetch_add(1, Ordering::SeqCst);
                busy[thread].store(false, Ordering::SeqCst);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::SeqCst) == 1));
            if round % 500 == 0 {
                std::thread::sleep(Duration::from_millis(5)); // let them fall asleep
            }
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::new(3).unwrap();
        let run = || pool.run(64, &|_, item| assert!(item != 40, "expected by this test"));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|_, item| {
            sum.fetch_add(item, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
