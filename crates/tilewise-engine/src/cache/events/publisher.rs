//! Events over ZeroMQ: published as they come, and told again to whoever missed some.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use zeromq::{Endpoint, PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::{KvEvent, wire};
use crate::{Error, Result};

/// Messages that can be told again.
const REPLAYED: usize = 10_000;
/// Messages that wait to be sent; more are dropped, which leaves a gap in their numbers.
const QUEUED: usize = 10_000;
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

/// Where a publisher listens.
struct Sockets {
    events: PubSocket,
    replay: Option<RouterSocket>,
    topic: String,
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
    mut queued: mpsc::Receiver<Numbered>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = bound.send(Err(Error::unsupported("KV events", error.to_string())));
            return;
        }
    };
    runtime.block_on(async move {
        let (mut sockets, endpoints) = match Sockets::bind(endpoint, replay, topic).await {
            Ok(sockets) => sockets,
            Err(error) => {
                let _ = bound.send(Err(error));
                return;
            }
        };
        let _ = bound.send(Ok(endpoints));
        let mut sent = VecDeque::new();
        loop {
            tokio::select! {
                message = queued.recv() => match message {
                    Some(message) => sockets.publish(message, &mut sent).await,
                    None => return,
                },
                asked = receive(sockets.replay.as_mut()) => sockets.answer(asked, &sent).await,
            }
        }
    });
}

/// What somebody asks of the replay socket; never, where there is none.
async fn receive(replay: Option<&mut RouterSocket>) -> Option<ZmqMessage> {
    match replay {
        Some(replay) => replay.recv().await.ok(),
        None => std::future::pending().await,
    }
}

impl Sockets {
    async fn bind(
        endpoint: &str,
        replay: Option<&str>,
        topic: String,
    ) -> Result<(Self, (String, Option<String>))> {
        let failed = |endpoint: &str, error: &dyn std::fmt::Display| {
            Error::value("KV events endpoint", "one to listen at", format!("{endpoint}: {error}"))
        };
        let mut events = PubSocket::new();
        let at = events.bind(endpoint).await.map_err(|error| failed(endpoint, &error))?;
        let (mut socket, mut replay_at) = (None, None);
        if let Some(endpoint) = replay {
            let mut router = RouterSocket::new();
            let at = router.bind(endpoint).await.map_err(|error| failed(endpoint, &error))?;
            (socket, replay_at) = (Some(router), Some(at));
        }
        let name = |endpoint: Endpoint| endpoint.to_string();
        Ok((Self { events, replay: socket, topic }, (name(at), replay_at.map(name))))
    }

    /// Sends a message to all who listen; who cannot keep up misses it and may ask for it.
    async fn publish(&mut self, message: Numbered, sent: &mut VecDeque<Numbered>) {
        let mut frames = ZmqMessage::from(self.topic.clone());
        frames.push_back(message.0.to_be_bytes().to_vec().into());
        frames.push_back(message.1.clone().into());
        let _ = self.events.send(frames).await;
        if sent.len() == REPLAYED {
            sent.pop_front();
        }
        sent.push_back(message);
    }

    /// Tells again what was sent from a number on; what is no such question is left without an answer.
    async fn answer(&mut self, asked: Option<ZmqMessage>, sent: &VecDeque<Numbered>) {
        let (Some(asked), Some(replay)) = (asked, &mut self.replay) else { return };
        let frames = asked.into_vec();
        let [client, empty, first] = &frames[..] else { return };
        let Ok(first) = <[u8; 8]>::try_from(&first[..]).map(u64::from_be_bytes) else { return };
        let answers = sent.iter().filter(|message| message.0 >= first);
        let answers = answers.map(|(number, events)| (number.to_be_bytes(), events.clone()));
        for (number, events) in answers.chain([(END, Vec::new())]) {
            let mut frames = ZmqMessage::from(client.clone());
            frames.push_back(empty.clone());
            frames.push_back(number.to_vec().into());
            frames.push_back(events.into());
            if replay.send(frames).await.is_err() {
                return;
            }
        }
    }
}
