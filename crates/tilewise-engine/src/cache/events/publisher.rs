//! Events over ZeroMQ: published as they come, and told again to whoever missed some.

use std::collections::VecDeque;
use std::io;
use std::net::ToSocketAddrs;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::zmtp::{Peer, Said};
use super::{KvEvent, wire};
use crate::{Error, Result};

/// Messages that can be told again.
const REPLAYED: usize = 10_000;
/// Messages that wait to be sent; more are dropped, which leaves a gap in their numbers.
const QUEUED: usize = 10_000;
/// Peers of each socket at once; more are turned away.
const MAX_PEERS: usize = 32;
/// Subscriptions of a peer.
const MAX_TOPICS: usize = 64;
/// How long a peer may say nothing that waits for nothing.
const IDLE: Duration = Duration::from_secs(300);
/// Time that subscribers have to take what is left at the end.
const FAREWELL: Duration = Duration::from_secs(1);
/// Ends a replay in place of a number.
const END: [u8; 8] = (-1i64).to_be_bytes();

/// A message and its number, from 0.
type Numbered = (u64, Vec<u8>);

/// Publishes events as vLLM does: `[topic, number, events]` over PUB, the number in 8 bytes, big-endian.
///
/// A ROUTER socket answers `[empty, number]`, the first number that somebody lacks, with `[empty, number, events]` for
/// each message from there on that it still has, and then with the number -1 and nothing.
#[derive(Debug)]
pub struct KvEventPublisher {
    queue: Option<mpsc::Sender<Numbered>>,
    thread: Option<JoinHandle<()>>,
    endpoint: String,
    replay_endpoint: Option<String>,
    next: u64,
}

impl KvEventPublisher {
    /// Listens at `endpoint`, such as `tcp://127.0.0.1:5557` (port 0 for any), and for those who missed some at
    /// `replay_endpoint`.
    ///
    /// # Errors
    /// [`Error::Value`] for an endpoint that cannot be listened at, [`Error::Unsupported`] if the system starts no thread.
    pub fn new(endpoint: &str, replay_endpoint: Option<&str>, topic: &str) -> Result<Self> {
        let (queue, queued) = mpsc::channel(QUEUED);
        let (bound, binding) = sync_channel(1);
        let (endpoint, replay) = (endpoint.to_owned(), replay_endpoint.map(str::to_owned));
        let topic = topic.to_owned();
        let run = move || serve(&endpoint, replay.as_deref(), topic, &bound, queued);
        let thread = std::thread::Builder::new().name("tilewise-kv-events".to_owned()).spawn(run);
        let thread =
            thread.map_err(|error| Error::unsupported("a thread for KV events", error.to_string()))?;
        let (endpoint, replay_endpoint) = wait(&binding)?;
        Ok(Self { queue: Some(queue), thread: Some(thread), endpoint, replay_endpoint, next: 0 })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Where it tells again what was missed.
    pub fn replay_endpoint(&self) -> Option<&str> {
        self.replay_endpoint.as_deref()
    }

    /// Publishes events as one message, and returns at once; false if too many wait and it was dropped.
    pub fn publish(&mut self, events: &[KvEvent]) -> bool {
        if events.is_empty() {
            return true;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let message = (self.next, wire::encode(now, events));
        self.next += 1;
        self.queue.as_ref().is_some_and(|queue| queue.try_send(message).is_ok())
    }
}

impl Drop for KvEventPublisher {
    /// Sends what waits, and stops to listen.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, there is nobody to tell.
            let _ = thread.join();
        }
    }
}

type Bound = Result<(String, Option<String>)>;

fn wait(binding: &Receiver<Bound>) -> Bound {
    binding
        .recv()
        .unwrap_or_else(|_| Err(Error::unsupported("KV events", "their thread ended early".to_owned())))
}

/// The publisher's thread.
fn serve(
    endpoint: &str,
    replay: Option<&str>,
    topic: String,
    bound: &SyncSender<Bound>,
    queued: mpsc::Receiver<Numbered>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = bound.send(Err(Error::unsupported("KV events", error.to_string())));
            return;
        }
    };
    runtime.block_on(async move {
        let listeners = async {
            let events = bind(endpoint).await?;
            let replay = match replay {
                Some(endpoint) => Some(bind(endpoint).await?),
                None => None,
            };
            Ok((events, replay))
        };
        match listeners.await {
            Ok(((events, at), replay)) => {
                let (replay, replay_at) = replay.unzip();
                let _ = bound.send(Ok((at, replay_at)));
                Publishing::new(topic).run(events, replay, queued).await;
            }
            Err(error) => {
                let _ = bound.send(Err(error));
            }
        }
    });
}

/// Listens at `tcp://HOST:PORT`; returns where that is.
async fn bind(endpoint: &str) -> Result<(TcpListener, String)> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::value(
            "KV events endpoint",
            "one to listen at, tcp://HOST:PORT",
            format!("{endpoint}: {error}"),
        )
    };
    let address = address(endpoint).ok_or_else(|| failed(&"no such address"))?;
    let listener = TcpListener::bind(address).await.map_err(|error| failed(&error))?;
    let at = listener.local_addr().map_err(|error| failed(&error))?;
    Ok((listener, format!("tcp://{at}")))
}

/// The address of an endpoint; a star is all of this machine's.
fn address(endpoint: &str) -> Option<String> {
    let address = endpoint.strip_prefix("tcp://")?;
    Some(address.strip_prefix('*').map_or_else(|| address.to_owned(), |port| format!("0.0.0.0{port}")))
}

/// Whether only this machine reaches an endpoint.
///
/// # Errors
/// [`Error::Value`] for one that names no address.
pub(super) fn is_loopback(endpoint: &str) -> Result<bool> {
    let failed =
        |why: String| Error::value("KV events endpoint", "tcp://HOST:PORT", format!("{endpoint}: {why}"));
    let address = address(endpoint).ok_or_else(|| failed("no such address".to_owned()))?;
    let mut addresses = address.to_socket_addrs().map_err(|error| failed(error.to_string()))?;
    Ok(addresses.all(|address| address.ip().is_loopback()))
}

/// What was published, and those who listen.
struct Publishing {
    topic: Arc<str>,
    told: broadcast::Sender<Arc<Numbered>>,
    sent: Arc<Mutex<VecDeque<Arc<Numbered>>>>,
    subscribers: JoinSet<()>,
    askers: JoinSet<()>,
}

impl Publishing {
    fn new(topic: String) -> Self {
        Self {
            topic: topic.into(),
            told: broadcast::Sender::new(QUEUED),
            sent: Arc::default(),
            subscribers: JoinSet::new(),
            askers: JoinSet::new(),
        }
    }

    async fn run(
        mut self,
        events: TcpListener,
        replay: Option<TcpListener>,
        mut queued: mpsc::Receiver<Numbered>,
    ) {
        loop {
            tokio::select! {
                message = queued.recv() => match message {
                    Some(message) => self.publish(message),
                    None => break,
                },
                stream = accept(Some(&events)) => if self.subscribers.len() < MAX_PEERS {
                    self.subscribers.spawn(tell(stream, self.topic.clone(), self.told.subscribe()));
                },
                stream = accept(replay.as_ref()) => if self.askers.len() < MAX_PEERS {
                    self.askers.spawn(answer(stream, self.sent.clone()));
                },
                Some(_) = self.subscribers.join_next() => {}
                Some(_) = self.askers.join_next() => {}
            }
        }
        let Self { told, mut subscribers, .. } = self;
        drop(told);
        let all = async { while subscribers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, all).await;
    }

    fn publish(&self, message: Numbered) {
        let message = Arc::new(message);
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.len() == REPLAYED {
            sent.pop_front();
        }
        sent.push_back(message.clone());
        // Nobody may listen.
        let _ = self.told.send(message);
    }
}

/// Somebody who connects; nobody, where nothing listens.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // The system has no more descriptors, or the peer is gone already.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Tells a subscriber what it has subscribed to. Who cannot keep up misses some, and may ask for it.
async fn tell(stream: TcpStream, topic: Arc<str>, mut news: broadcast::Receiver<Arc<Numbered>>) {
    let Ok(mut peer) = Peer::greet(stream, "PUB", &["SUB", "XSUB"]).await else { return };
    let mut topics: Vec<Vec<u8>> = Vec::new();
    loop {
        let goes_on = tokio::select! {
            // One that wants nothing is soon gone; one that wants something is found out by what it is sent.
            said = in_time(peer.next(), topics.is_empty()) => match said {
                Ok(Said::Ping(context)) => peer.pong(&context).await.is_ok(),
                Ok(said) => subscribe(said, &mut topics),
                Err(_) => false,
            },
            message = news.recv() => match message {
                Ok(message) if topics.iter().any(|prefix| topic.as_bytes().starts_with(prefix)) => {
                    let (number, events) = &*message;
                    peer.send(&[topic.as_bytes(), &number.to_be_bytes(), events]).await.is_ok()
                }
                Ok(_) | Err(RecvError::Lagged(_)) => true,
                Err(RecvError::Closed) => false,
            },
        };
        if !goes_on {
            return;
        }
    }
}

/// What a peer says, which it says soon if it holds a place for nothing otherwise.
async fn in_time(said: impl Future<Output = io::Result<Said>>, is_idle: bool) -> io::Result<Said> {
    if !is_idle {
        return said.await;
    }
    tokio::time::timeout(IDLE, said).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Changes what somebody has subscribed to; whether that may go on.
fn subscribe(said: Said, topics: &mut Vec<Vec<u8>>) -> bool {
    // In older versions a message whose first byte says which.
    let (is_on, topic) = match said {
        Said::Subscribe(topic) => (true, topic),
        Said::Cancel(topic) => (false, topic),
        Said::Message(frames) => match &frames[..] {
            [frame] if frame.first() == Some(&1) => (true, frame[1..].to_vec()),
            [frame] if frame.first() == Some(&0) => (false, frame[1..].to_vec()),
            _ => return true,
        },
        Said::Ping(_) => return true,
    };
    if is_on {
        topics.push(topic);
    } else if let Some(index) = topics.iter().position(|known| *known == topic) {
        topics.remove(index);
    }
    topics.len() <= MAX_TOPICS
}

/// Tells again what was sent from a number on; what is no such question is left without an answer.
async fn answer(stream: TcpStream, sent: Arc<Mutex<VecDeque<Arc<Numbered>>>>) {
    let Ok(mut peer) = Peer::greet(stream, "ROUTER", &["REQ", "DEALER", "ROUTER"]).await else { return };
    while let Ok(said) = in_time(peer.next(), true).await {
        let frames = match said {
            Said::Message(frames) => frames,
            Said::Ping(context) if peer.pong(&context).await.is_err() => return,
            _ => continue,
        };
        let [empty, first] = &frames[..] else { continue };
        let Ok(first) = <[u8; 8]>::try_from(&first[..]).map(u64::from_be_bytes) else { continue };
        let answers: Vec<Arc<Numbered>> = {
            let sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.iter().filter(|message| message.0 >= first).cloned().collect()
        };
        for message in &answers {
            if peer.send(&[empty, &message.0.to_be_bytes(), &message.1]).await.is_err() {
                return;
            }
        }
        if peer.send(&[empty, &END, &[]]).await.is_err() {
            return;
        }
    }
}
