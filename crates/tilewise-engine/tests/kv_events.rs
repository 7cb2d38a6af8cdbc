//! What enters and leaves the prefix cache, as a subscriber of vLLM's events sees it.

mod common;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use common::{model_folder, open, prompts, run_all, small, tiny_config};
use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde_bytes::ByteBuf;
use tilewise_engine::cache::events::{KvEvent, KvEventPublisher, PageHash};
use tilewise_engine::{EngineConfig, GenerateRequest, KvBudget};
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
