//! What enters and leaves the prefix cache, as a subscriber of vLLM's events sees it.

mod common;

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{model_folder, open, prompts, run_all, small, tiny_config};
use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde_bytes::ByteBuf;
use tilewise_engine::cache::events::{KvEvent, KvEventPublisher, PageHash, is_loopback};
use tilewise_engine::{EngineConfig, Error, GenerateRequest, KvBudget};
use zeromq::{ReqSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

/// A message as vLLM's subscribers declare it.
#[derive(Debug, Deserialize, PartialEq)]
struct Batch {
    ts: f64,
    events: Vec<Told>,
    data_parallel_rank: Option<u32>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(tag = "type")]
enum Told {
    BlockStored {
        block_hashes: Vec<ByteBuf>,
        parent_block_hash: Option<ByteBuf>,
        token_ids: Vec<u32>,
        block_size: usize,
        lora_id: Option<u32>,
        medium: Option<String>,
        lora_name: Option<String>,
    },
    BlockRemoved {
        block_hashes: Vec<ByteBuf>,
        medium: Option<String>,
    },
    AllBlocksCleared {},
}

fn stored(pages: u32) -> KvEvent {
    let tokens: Vec<u32> = (0..16 * pages).collect();
    let mut hash = PageHash::root(None);
    let hashes = tokens.chunks(16).map(|page| {
        hash = hash.then(page);
        hash
    });
    KvEvent::Stored { hashes: hashes.collect(), parent: None, tokens: tokens.clone(), page_size: 16 }
}

#[test]
fn events_say_what_is_cached_through_splits_evictions_and_clearing() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let config = EngineConfig { kv_events: true, page_size: 16, kv: KvBudget::Tokens(20 * 16), ..small() };
    let mut engine = open(folder.path(), &config).unwrap();
    let shared: Vec<u32> = (0..70).map(|i| i * 3 % 131).collect();
    let mut cached: HashMap<PageHash, Option<PageHash>> = HashMap::new();
    let (mut removed, mut splits) = (0, HashSet::new());
    for (round, prompt) in prompts(12, 131).into_iter().enumerate() {
        // Prompts part from the shared one at different pages.
        let prompt = [&shared[..round * 7 % 70], &prompt].concat();
        let request = GenerateRequest {
            cache_salt: (round % 5 == 0).then(|| "a".to_owned()),
            ..GenerateRequest::new(prompt, 20)
        };
        run_all(&mut engine, &[request]);
        for event in engine.take_kv_events() {
            match event {
                KvEvent::Stored { hashes, parent, tokens, page_size } => {
                    assert_eq!((tokens.len(), page_size), (16 * hashes.len(), 16));
                    assert!(parent.is_none_or(|parent| cached.contains_key(&parent)), "the parent is cached");
                    splits.extend(parent);
                    let root = PageHash::root((round % 5 == 0).then_some("a"));
                    let mut before = parent;
                    for (hash, page) in hashes.into_iter().zip(tokens.chunks(16)) {
                        assert_eq!(hash, before.unwrap_or(root).then(page));
                        assert_eq!(cached.insert(hash, before), None, "stored twice");
                        before = Some(hash);
                    }
                }
                KvEvent::Removed { hashes } => {
                    removed += hashes.len();
                    hashes.iter().for_each(|hash| assert!(cached.remove(hash).is_some(), "it was stored"));
                }
                KvEvent::Cleared => panic!("nobody asked for it"),
            }
        }
        let orphans = cached.values().flatten().filter(|parent| !cached.contains_key(parent)).count();
        assert_eq!(orphans, 0, "pages leave from the ends of prefixes");
    }
    assert!(removed > 10 && splits.len() > 2, "{removed} pages left, {} branches", splits.len());
    engine.clear_prefix_cache();
    assert_eq!(engine.take_kv_events(), [KvEvent::Cleared]);
    assert_eq!(engine.take_kv_events(), []);
    let mut silent = open(folder.path(), &small()).unwrap();
    run_all(&mut silent, &[GenerateRequest::new(shared, 3)]);
    assert_eq!(silent.take_kv_events(), []);
    let error = open(folder.path(), &EngineConfig { prefix_cache: false, ..config }).err().unwrap();
    assert!(error.to_string().contains("KV events"), "{error}");
}

#[test]
fn a_subscriber_gets_numbered_messages_in_vllms_schema_and_what_it_missed_again() {
    let any = "tcp://127.0.0.1:0";
    let mut publisher = KvEventPublisher::new(any, Some(any), "kv-events").unwrap();
    let (events, replay) = (publisher.endpoint().to_owned(), publisher.replay_endpoint().unwrap().to_owned());
    assert!(publisher.publish(&[]), "nothing to tell takes no number");
    // Nobody listens yet.
    assert!(publisher.publish(&[stored(2)]));
    let KvEvent::Stored { hashes, .. } = stored(2) else { unreachable!() };
    let bytes: Vec<ByteBuf> = hashes.iter().map(|hash| ByteBuf::from(hash.as_bytes().to_vec())).collect();
    let first = Told::BlockStored {
        block_hashes: bytes.clone(),
        parent_block_hash: None,
        token_ids: (0..32).collect(),
        block_size: 16,
        lora_id: None,
        medium: Some("GPU".to_owned()),
        lora_name: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut subscriber = SubSocket::new();
        subscriber.connect(&events).await.unwrap();
        subscriber.subscribe("kv-").await.unwrap();
        // A subscription takes a moment to arrive: publish until one message does.
        let got = loop {
            publisher.publish(&[KvEvent::Removed { hashes: hashes.clone() }, KvEvent::Cleared]);
            match tokio::time::timeout(Duration::from_millis(100), subscriber.recv()).await {
                Ok(got) => break got.unwrap().into_vec(),
                Err(_) => continue,
            }
        };
        assert_eq!(&got[0][..], b"kv-events");
        let number = u64::from_be_bytes(got[1][..].try_into().unwrap());
        let batch: Batch = rmp_serde::from_slice(&got[2]).unwrap();
        let removed = Told::BlockRemoved { block_hashes: bytes, medium: Some("GPU".to_owned()) };
        assert_eq!(batch.events, [removed, Told::AllBlocksCleared {}]);
        assert!(number >= 1 && batch.ts > 1.7e9 && batch.data_parallel_rank == Some(0));

        let mut asker = ReqSocket::new();
        asker.connect(&replay).await.unwrap();
        asker.send(ZmqMessage::from(0u64.to_be_bytes().to_vec())).await.unwrap();
        let answer =
            tokio::time::timeout(Duration::from_secs(5), asker.recv()).await.unwrap().unwrap().into_vec();
        assert_eq!(&answer[0][..], 0u64.to_be_bytes());
        let batch: Batch = rmp_serde::from_slice(&answer[1]).unwrap();
        assert_eq!(batch.events, [first]);

        // From a number that is yet to come there is only the end.
        let mut asker = ReqSocket::new();
        asker.connect(&replay).await.unwrap();
        asker.send(ZmqMessage::from((1u64 << 40).to_be_bytes().to_vec())).await.unwrap();
        let answer =
            tokio::time::timeout(Duration::from_secs(5), asker.recv()).await.unwrap().unwrap().into_vec();
        assert_eq!((&answer[0][..], answer[1].len()), (&(-1i64).to_be_bytes()[..], 0));
    });
    let taken = KvEventPublisher::new(&events, None, "").expect_err("somebody listens there");
    assert!(taken.to_string().contains("KV events endpoint"), "{taken}");
    assert!(KvEventPublisher::new("http://nowhere", None, "").is_err());
}

/// What a peer says until it is one.
fn greeting(kind: &str) -> Vec<u8> {
    let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0];
    bytes.extend(b"NULL");
    bytes.resize(64, 0);
    let ready = [b"\x05READY\x0bSocket-Type".as_slice(), &(kind.len() as u32).to_be_bytes(), kind.as_bytes()]
        .concat();
    bytes.extend([4, ready.len() as u8]);
    bytes.extend(ready);
    bytes
}

/// Connects, says something and reads up to the end, which must come within some seconds.
fn say(endpoint: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(endpoint.strip_prefix("tcp://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("it goes on: {error}"),
        _ => answer,
    }
}

#[test]
fn peers_that_announce_much_or_say_nonsense_are_turned_away_and_end_nothing() {
    let any = "tcp://127.0.0.1:0";
    let mut publisher = KvEventPublisher::new(any, Some(any), "kv-events").unwrap();
    let (events, replay) = (publisher.endpoint().to_owned(), publisher.replay_endpoint().unwrap().to_owned());
    let long = |size: u64| [&[2][..], &size.to_be_bytes(), b"x"].concat();
    for size in [4097, 1 << 31, 1 << 62, u64::MAX] {
        for (endpoint, kind) in [(&events, "SUB"), (&replay, "REQ")] {
            say(endpoint, &[greeting(kind), long(size)].concat());
        }
        say(&events, &[&greeting("SUB")[..64], &long(size)].concat());
    }
    say(
        &events,
        b"GET / HTTP/1.1\r\nhost: localhost\r\nuser-agent: somebody who has the wrong number\r\n\r\n",
    );
    // Sockets that do not belong there, endless messages, too many subscriptions.
    say(&events, &greeting("PUSH"));
    say(&replay, &greeting("SUB"));
    say(&replay, &[greeting("REQ"), [1, 1, b'x'].repeat(9)].concat());
    say(&events, &[greeting("SUB"), [0, 2, 1, b'x'].repeat(65)].concat());
    // As many silent ones as there is room for, and more.
    let silent: Vec<TcpStream> =
        (0..80).map(|_| TcpStream::connect(events.strip_prefix("tcp://").unwrap()).unwrap()).collect();
    assert!(publisher.publish(&[stored(1)]));
    let greeted = silent.iter().filter(|stream| {
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut stream: &TcpStream = stream;
        stream.read_exact(&mut [0; 64]).is_ok()
    });
    assert!((1..=32).contains(&greeted.count()), "no more have a place");
    drop(silent);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let start = Instant::now();
        // It takes a moment until the places of those who went are free.
        let mut subscriber = loop {
            let mut subscriber = SubSocket::new();
            match subscriber.connect(&events).await {
                Ok(()) => break subscriber,
                Err(error) => assert!(start.elapsed() < Duration::from_secs(5), "{error}"),
            }
        };
        subscriber.subscribe("").await.unwrap();
        loop {
            assert!(start.elapsed() < Duration::from_secs(10));
            publisher.publish(&[KvEvent::Cleared]);
            if tokio::time::timeout(Duration::from_millis(100), subscriber.recv()).await.is_ok() {
                break;
            }
        }
    });
}

#[test]
fn whether_others_reach_an_endpoint_is_known_before_it_is_opened() {
    for (endpoint, is_own) in [
        ("tcp://127.0.0.1:5557", true),
        ("tcp://[::1]:0", true),
        ("tcp://localhost:5557", true),
        ("tcp://0.0.0.0:5557", false),
        ("tcp://*:5557", false),
        ("tcp://192.0.2.1:5557", false),
    ] {
        assert_eq!(is_loopback(endpoint).unwrap(), is_own, "{endpoint}");
    }
    for endpoint in ["", "nowhere", "tcp://", "tcp://127.0.0.1", "ipc:///tmp/x"] {
        assert!(matches!(is_loopback(endpoint), Err(Error::Value { .. })), "{endpoint}");
    }
}
