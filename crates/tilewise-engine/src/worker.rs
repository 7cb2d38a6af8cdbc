//! The engine on a thread of its own.
//!
//! Requests go in through a channel and what happens to each comes out through one of its own, which holds a bounded number
//! of events: the engine never waits for a reader, and gives up a request whose reader is too slow or gone. Between two
//! steps the thread takes what has come in; while there is nothing to do, it sleeps.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::cache::events::KvEventPublisher;
use crate::cache::tiers::TiersStats;
use crate::{Engine, EngineStats, Error, Event, GenerateRequest, RequestId, Result};

/// Events that a request may be behind: some seconds of a fast model, and some steps of all its completions.
const EVENTS: usize = 1024;
const EVENTS_PER_COMPLETION: usize = 64;

/// How long the end of the thread waits for tiers to store what they were given.
const FLUSH: Duration = Duration::from_secs(5);

/// How long tokens are counted for a rate.
const RATE: Duration = Duration::from_secs(1);

/// Whether an engine can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState {
    /// It loads its model.
    Loading,
    /// It takes requests.
    Ready,
    /// It failed, for this reason, and takes none.
    Failed(String),
    /// It was stopped.
    Stopped,
}

/// What an engine has done, between two steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// What it is doing.
    pub stats: EngineStats,
    /// What its tiers did; `None` where there are none.
    pub tiers: Option<TiersStats>,
    /// Tokens of the prompts of requests that it took.
    pub prompt_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Batches that were computed.
    pub steps: u64,
    /// Requests that were given up because nobody read their events.
    pub unread: u64,
    /// Tokens generated per second, lately; 0 while there is nothing to do.
    pub tokens_per_second: f64,
}

/// What happened to a request.
#[derive(Debug)]
pub enum Update {
    /// It waits for its turn.
    Accepted,
    /// It can never run.
    Refused(Error),
    /// A step had something for it.
    Event(Event),
    /// The engine has failed, for this reason.
    Failed(String),
}

enum Command {
    Submit { ticket: u64, request: Box<GenerateRequest>, updates: mpsc::Sender<Update> },
    Abort { ticket: u64 },
    Finish { ticket: u64, index: usize },
    FlushCache { done: oneshot::Sender<()> },
    Stop,
}

/// An engine's thread. Stops it when dropped.
#[derive(Debug)]
pub struct Worker {
    handle: WorkerHandle,
    thread: Option<JoinHandle<()>>,
}

/// Asks a [`Worker`]'s engine.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    commands: Sender<Command>,
    tickets: Arc<AtomicU64>,
    snapshot: Arc<Mutex<Snapshot>>,
    state: watch::Receiver<WorkerState>,
}

impl Worker {
    /// Starts a thread that makes an engine by `load` and serves it. With a publisher, what enters and leaves the prefix
    /// cache is published after each step.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the system starts no thread.
    pub fn start(
        load: impl FnOnce() -> Result<Engine> + Send + 'static,
        publisher: Option<KvEventPublisher>,
    ) -> Result<Self> {
        let (commands, received) = std::sync::mpsc::channel();
        let (states, state) = watch::channel(WorkerState::Loading);
        let snapshot = Arc::new(Mutex::new(Snapshot::default()));
        let shared = snapshot.clone();
        let body = move || serve(load, publisher, &received, &states, &shared);
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(body);
        let thread = thread.map_err(|e| Error::unsupported("a thread for the engine", e.to_string()))?;
        let handle = WorkerHandle { commands, tickets: Arc::default(), snapshot, state };
        Ok(Self { handle, thread: Some(thread) })
    }

    /// What asks it.
    pub fn handle(&self) -> &WorkerHandle {
        &self.handle
    }

    /// Gives up all requests, waits a little for the tiers and ends the thread.
    pub fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A thread that is over has no use for it.
            let _ = self.handle.commands.send(Command::Stop);
            let _ = thread.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl WorkerHandle {
    /// Queues a request. What happens to it is told by the [`Updates`]: first whether it was accepted.
    pub fn submit(&self, request: GenerateRequest) -> Updates {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (updates, received) = mpsc::channel(EVENTS + EVENTS_PER_COMPLETION * request.n);
        let request = Box::new(request);
        // If the thread is over, the channel of the updates is closed with the command, which says so.
        let _ = self.commands.send(Command::Submit { ticket, request, updates });
        Updates { ticket, commands: self.commands.clone(), received, is_over: false }
    }

    /// Forgets all cached prefixes that no request holds. Returns once that is done; false if the engine is no more.
    pub async fn flush_cache(&self) -> bool {
        let (done, flushed) = oneshot::channel();
        let _ = self.commands.send(Command::FlushCache { done });
        flushed.await.is_ok()
    }

    /// What the engine has done, up to its last step.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it can be asked.
    pub fn state(&self) -> WorkerState {
        self.state.borrow().clone()
    }

    /// Waits until it is not [`WorkerState::Loading`] any more.
    pub async fn loaded(&self) -> WorkerState {
        let mut state = self.state.clone();
        state
            .wait_for(|state| *state != WorkerState::Loading)
            .await
            .map_or(WorkerState::Stopped, |state| state.clone())
    }
}

/// What happens to a request, which is given up when this is dropped.
#[derive(Debug)]
pub struct Updates {
    ticket: u64,
    commands: Sender<Command>,
    received: mpsc::Receiver<Update>,
    is_over: bool,
}

impl Updates {
    /// The next one; `None` when the request is over, or was given up because its events were not read.
    pub async fn next(&mut self) -> Option<Update> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Updates::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        let update = self.received.poll_recv(cx);
        self.is_over |= matches!(update, Poll::Ready(None | Some(Update::Refused(_) | Update::Failed(_))));
        update
    }

    /// Ends one completion, of which a token was seen; the others go on. Its last event comes as ever, and perhaps some
    /// tokens before it.
    pub fn finish(&self, index: usize) {
        let _ = self.commands.send(Command::Finish { ticket: self.ticket, index });
    }

    /// Ends the request. Events of it that are under way still come.
    pub fn abort(&self) {
        let _ = self.commands.send(Command::Abort { ticket: self.ticket });
    }
}

impl Drop for Updates {
    fn drop(&mut self) {
        if !self.is_over {
            self.abort();
        }
    }
}

/// The thread: loads, serves until it is stopped, and says how it ended.
fn serve(
    load: impl FnOnce() -> Result<Engine>,
    publisher: Option<KvEventPublisher>,
    commands: &Receiver<Command>,
    states: &watch::Sender<WorkerState>,
    snapshot: &Mutex<Snapshot>,
) {
    let loaded = catch_unwind(AssertUnwindSafe(load));
    let engine = match loaded {
        Ok(Ok(engine)) => engine,
        Ok(Err(error)) => return drop(states.send_replace(WorkerState::Failed(error.to_string()))),
        Err(panic) => return drop(states.send_replace(WorkerState::Failed(words(&*panic)))),
    };
    let mut desk = Desk::new(engine, publisher, snapshot);
    desk.publish();
    states.send_replace(WorkerState::Ready);
    let failure = match catch_unwind(AssertUnwindSafe(|| desk.run(commands))) {
        Ok(Ok(())) => {
            desk.engine.flush_tiers(FLUSH);
            states.send_replace(WorkerState::Stopped);
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(panic) => words(&*panic),
    };
    states.send_replace(WorkerState::Failed(failure.clone()));
    for request in desk.requests.into_values() {
        // Whoever does not read finds the channel closed.
        let _ = request.updates.try_send(Update::Failed(failure.clone()));
    }
    // Nobody knows what state a panic has left behind: what is never touched again cannot hang.
    std::mem::forget(desk.engine);
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

/// A request and who reads what happens to it.
struct Served {
    ticket: u64,
    updates: mpsc::Sender<Update>,
    /// Completions that are not over.
    left: usize,
}

/// The engine and whom it serves.
struct Desk<'a> {
    engine: Engine,
    publisher: Option<KvEventPublisher>,
    requests: HashMap<RequestId, Served>,
    names: HashMap<u64, RequestId>,
    done: Snapshot,
    shared: &'a Mutex<Snapshot>,
    /// Tokens since when.
    counted: (u64, Instant),
}

impl<'a> Desk<'a> {
    fn new(engine: Engine, publisher: Option<KvEventPublisher>, shared: &'a Mutex<Snapshot>) -> Self {
        Self {
            engine,
            publisher,
            requests: HashMap::new(),
            names: HashMap::new(),
            done: Snapshot::default(),
            shared,
            counted: (0, Instant::now()),
        }
    }

    /// Serves until it is told to stop, or until nobody is left who could ask.
    fn run(&mut self, commands: &Receiver<Command>) -> Result<()> {
        loop {
            if !self.engine.has_work() {
                let Ok(command) = commands.recv() else { return Ok(()) };
                self.counted = (self.done.generated_tokens, Instant::now());
                if self.take(command) {
                    return Ok(());
                }
            }
            for command in commands.try_iter() {
                if self.take(command) {
                    return Ok(());
                }
            }
            // Who balances load shall know what has come during the last step.
            self.publish();
            let events = if self.engine.has_work() { self.step()? } else { Vec::new() };
            if let Some(publisher) = &mut self.publisher {
                publisher.publish(&self.engine.take_kv_events());
            }
            // And whoever has a whole answer, that it is over.
            self.publish();
            events.into_iter().for_each(|event| self.tell(event));
        }
    }

    fn step(&mut self) -> Result<Vec<Event>> {
        let events = self.engine.step()?;
        self.done.steps += 1;
        self.done.generated_tokens +=
            events.iter().filter(|event| matches!(event, Event::Token { .. })).count() as u64;
        Ok(events)
    }

    /// Does what is asked; true if that is to stop.
    fn take(&mut self, command: Command) -> bool {
        match command {
            Command::Submit { ticket, request, updates } => self.submit(ticket, *request, &updates),
            Command::Abort { ticket } => {
                if let Some(&name) = self.names.get(&ticket) {
                    self.abort(name);
                }
            }
            Command::Finish { ticket, index } => {
                let name = self.names.get(&ticket).copied();
                if let Some(event) = name.and_then(|name| self.engine.finish(name, index)) {
                    self.tell(event);
                }
            }
            Command::FlushCache { done } => {
                self.engine.clear_prefix_cache();
                // Whoever asked may have gone.
                let _ = done.send(());
            }
            Command::Stop => return true,
        }
        false
    }

    fn submit(&mut self, ticket: u64, request: GenerateRequest, updates: &mpsc::Sender<Update>) {
        let (prompt, left) = (request.prompt.len(), request.n);
        let update = match self.engine.submit(request) {
            Ok(name) => {
                self.done.prompt_tokens += prompt as u64;
                self.names.insert(ticket, name);
                self.requests.insert(name, Served { ticket, updates: updates.clone(), left });
                Update::Accepted
            }
            Err(error) => Update::Refused(error),
        };
        // A reader that has gone has sent an abort, which is behind this command.
        let _ = updates.try_send(update);
    }

    fn abort(&mut self, name: RequestId) {
        self.engine.abort(name);
        if let Some(request) = self.requests.remove(&name) {
            self.names.remove(&request.ticket);
        }
    }

    /// Counts a completion as over.
    fn end(&mut self, name: RequestId) {
        if let Some(request) = self.requests.get_mut(&name) {
            request.left -= 1;
            if request.left == 0 {
                let ticket = request.ticket;
                self.requests.remove(&name);
                self.names.remove(&ticket);
            }
        }
    }

    /// Hands an event to its reader, and gives up a request that nobody reads.
    fn tell(&mut self, event: Event) {
        let (name, is_end) = match &event {
            Event::Token { request, .. } | Event::PromptLogprobs { request, .. } => (*request, false),
            Event::Finished { request, .. } => (*request, true),
        };
        let Some(request) = self.requests.get(&name) else { return };
        match request.updates.try_send(Update::Event(event)) {
            Ok(()) if is_end => self.end(name),
            Ok(()) => {}
            Err(error) => {
                // A reader that has gone has sent an abort, which is on its way.
                self.done.unread += u64::from(matches!(error, mpsc::error::TrySendError::Full(_)));
                self.abort(name);
            }
        }
    }

    /// Makes what was done known.
    fn publish(&mut self) {
        let (tokens, since) = self.counted;
        if !self.engine.has_work() {
            self.done.tokens_per_second = 0.0;
        } else if since.elapsed() >= RATE {
            let generated = self.done.generated_tokens;
            self.done.tokens_per_second = (generated - tokens) as f64 / since.elapsed().as_secs_f64();
            self.counted = (generated, Instant::now());
        }
        self.done.stats = self.engine.stats();
        self.done.tiers = self.engine.tiers_stats();
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.done);
    }
}
