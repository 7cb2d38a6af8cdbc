//! Real servers on loopback, and ones that break off in the middle.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use tilewise_engine::Error;
use tilewise_engine::cache::tiers::{
    CacheTier, DiskTier, HostTier, ObjectTier, Poll, RespTier, S3Bucket, Source, Tiers, Value,
};

use crate::process::{Redis, Server, free_port};
use crate::support::{Chunks, LONG, all, stack, stats};

const TIMEOUT: Duration = Duration::from_secs(2);

impl Redis {
    fn tier(&self) -> Box<RespTier> {
        Box::new(RespTier::new(&self.address(), TIMEOUT).unwrap())
    }

    fn tiers(&self) -> Tiers {
        stack(vec![self.tier()])
    }
}

#[test]
fn a_resp_server_gives_what_another_process_stored() {
    let Some(redis) = Redis::start() else { return };
    let chunks = Chunks::new(3, 100_000);
    let writer = redis.tiers();
    chunks.store(&writer, 0..3);
    assert_eq!(chunks.fetch(&redis.tiers()), [Source::Resp; 3]);
    assert_eq!(stats(&writer, Source::Resp).errors, 0);
    chunks.store(&writer, 0..3);
    assert_eq!(stats(&writer, Source::Resp).stores, 3, "what is there is not sent again");
    // The key is the one that others would ask for.
    let mut client = redis::Client::open(redis.address()).unwrap().get_connection().unwrap();
    let key = chunks.key(1);
    let name = format!("{}:{}", key.namespace(), key.name());
    let bytes: Vec<u8> = redis::cmd("GET").arg(name).query(&mut client).unwrap();
    assert_eq!(bytes, chunks.value(1).as_bytes());
}

#[test]
fn a_value_evicted_in_the_middle_of_a_prefix_shortens_the_hit_and_no_more() {
    let Some(redis) = Redis::start() else { return };
    // 150 MB into 64.
    let chunks = Chunks::new(50, 3 << 20);
    let tiers = redis.tiers();
    chunks.store(&tiers, 0..50);
    // The last ones are there, and the first again, stored after all others: the server evicts by samples, old or not.
    (0..5).rev().for_each(|index| chunks.store(&tiers, index..index + 1));
    let held: Vec<bool> = (0..50).map(|index| redis.tier().contains(&chunks.key(index)).unwrap()).collect();
    let prefix = held.iter().take_while(|held| **held).count();
    assert!((1..50).contains(&prefix) && held[prefix..].contains(&true), "{held:?}");
    assert_eq!(chunks.fetch(&tiers).len(), prefix, "{held:?}");
    assert_eq!(stats(&tiers, Source::Resp).misses.total(), 1);
    // The same by hand.
    redis.tier().remove(&chunks.key(1)).unwrap();
    assert_eq!(chunks.fetch(&tiers).len(), 1);
}

#[test]
fn a_server_that_is_killed_is_a_miss_and_one_that_comes_back_is_used_again() {
    let Some(redis) = Redis::start() else { return };
    let chunks = Chunks::new(20, 1 << 20);
    let folder = tempfile::tempdir().unwrap();
    let tiers = redis.tiers();
    chunks.store(&tiers, 0..20);
    let port = redis.0.port;
    let mut ticket = tiers.fetch(chunks.keys());
    let first = ticket.wait(LONG);
    assert!(matches!(first, Poll::Chunk(_)), "{first:?}");
    drop(redis);
    let rest = all(&mut ticket);
    assert!(rest.len() < 19, "it was read to its end before the server was killed");
    rest.iter().for_each(|fetched| assert_eq!(*fetched.bytes, chunks.pages(fetched.index)));
    assert!(tiers.demote(chunks.key(0), chunks.pages(0)).unwrap() && tiers.flush(LONG));
    let resp = stats(&tiers, Source::Resp);
    assert!(resp.misses.failed + resp.misses.resting >= 1 && resp.failed_stores == 1, "{resp:?}");

    // A stack does not miss what other tiers have.
    let gone = RespTier::new(&format!("redis://127.0.0.1:{port}"), TIMEOUT).unwrap();
    let disk = DiskTier::open(folder.path(), 1 << 30).unwrap();
    let both = stack(vec![Box::new(gone), Box::new(disk)]);
    chunks.store(&both, 0..2);
    assert_eq!(chunks.fetch(&both), [Source::Disk; 2]);

    let Some(_redis) = Redis::start_at(port) else { panic!("the server does not start again") };
    let start = Instant::now();
    while chunks.fetch(&tiers).is_empty() {
        assert!(start.elapsed() < LONG, "it was never used again: {:?}", tiers.stats());
        assert!(tiers.demote(chunks.key(0), chunks.pages(0)).unwrap() && tiers.flush(LONG));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_server_that_was_started_again_meanwhile_is_asked_at_once() {
    let Some(redis) = Redis::start() else { return };
    let chunks = Chunks::new(2, 1000);
    let tiers = redis.tiers();
    chunks.store(&tiers, 0..2);
    let port = redis.0.port;
    drop(redis);
    let Some(_redis) = Redis::start_at(port) else { panic!("the server does not start again") };
    assert_eq!(chunks.fetch(&tiers), []);
    let resp = stats(&tiers, Source::Resp);
    assert_eq!((resp.misses.absent, resp.misses.total(), resp.errors), (1, 1, 0), "{:?}", tiers.stats());
}

/// A server that reads a request and says what it is told to, then does what else it is told.
fn talker(answer: Vec<u8>, then: impl Fn(&mut TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("redis://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            // What is said while connecting is agreed to; the command gets the answer.
            while let Ok(len @ 1..) = stream.read(&mut request) {
                let request = String::from_utf8_lossy(&request[..len]).into_owned();
                let agreed = "+OK\r\n".repeat(request.matches("SETINFO").count());
                let _ = stream.write_all(agreed.as_bytes());
                if request.contains("GET") {
                    let _ = stream.write_all(&answer);
                    then(&mut stream);
                    break;
                }
            }
        }
    });
    address
}

#[test]
fn a_server_that_breaks_off_lies_or_hangs_in_an_answer_is_a_miss_in_time() {
    let chunks = Chunks::new(1, 4096);
    let good = chunks.value(0).as_bytes().to_vec();
    let bulk = |bytes: &[u8]| [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let whole = bulk(&good);
    let nothing = |_: &mut TcpStream| {};
    let hang = |_: &mut TcpStream| std::thread::sleep(Duration::from_secs(5));
    let answers: Vec<(&str, String)> = vec![
        ("closes at once", talker(vec![], nothing)),
        ("closes in the length", talker(whole[..3].to_vec(), nothing)),
        ("closes in the value", talker(whole[..whole.len() / 2].to_vec(), nothing)),
        ("hangs", talker(vec![], hang)),
        ("hangs in the value", talker(whole[..whole.len() / 2].to_vec(), hang)),
        ("gives a shorter value", talker(bulk(&good[..good.len() - 1]), nothing)),
        ("gives nothing", talker(bulk(b""), nothing)),
        ("gives an error", talker(b"-LOADING wait\r\n".to_vec(), nothing)),
        ("gives a number", talker(b":7\r\n".to_vec(), nothing)),
        ("does not speak RESP", talker(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), nothing)),
        ("has nothing", talker(b"$-1\r\n".to_vec(), nothing)),
    ];
    for (what, address) in answers {
        let tiers = stack(vec![Box::new(RespTier::new(&address, Duration::from_millis(300)).unwrap())]);
        let start = Instant::now();
        assert_eq!(chunks.fetch(&tiers), [], "a server that {what}");
        assert!(start.elapsed() < Duration::from_secs(2), "a server that {what}: {:?}", start.elapsed());
        assert_eq!(stats(&tiers, Source::Resp).misses.total(), 1, "a server that {what}");
    }
    // The same server with nothing wrong is no miss.
    let tiers = stack(vec![Box::new(RespTier::new(&talker(whole, nothing), TIMEOUT).unwrap())]);
    assert_eq!(chunks.fetch(&tiers), [Source::Resp], "{:?}", tiers.stats());
}

#[test]
fn addresses_that_mean_nothing_are_refused_and_passwords_are_not_repeated() {
    for address in ["", "redis.example", "http://127.0.0.1", "rediss://user:secret@host"] {
        match RespTier::new(address, TIMEOUT) {
            Err(Error::Value { name: "RESP address", got, .. }) => assert!(!got.contains("secret"), "{got}"),
            other => panic!("{address:?}: {:?}", other.err()),
        }
    }
    let never = RespTier::new("redis://127.0.0.1", Duration::ZERO).err();
    assert!(matches!(never, Some(Error::Value { name: "RESP timeout", .. })), "{never:?}");
    let with = |change: fn(&mut S3Bucket)| {
        let mut bucket = bucket(1);
        change(&mut bucket);
        match ObjectTier::s3(&bucket, TIMEOUT) {
            Err(Error::Value { name, got, .. }) if !got.contains("secret") => name,
            other => panic!("{bucket:?}: {:?}", other.err()),
        }
    };
    for endpoint in ["", "not an address", "localhost:1", "ftp://host", "http://", "http://id:secret@host"] {
        let bucket = S3Bucket { endpoint: Some(endpoint.to_owned()), ..bucket(1) };
        let error = ObjectTier::s3(&bucket, TIMEOUT).err();
        let Some(Error::Value { name: "S3 endpoint", got, .. }) = &error else { panic!("{error:?}") };
        assert!(!got.contains("secret"), "{got}");
    }
    assert_eq!(with(|bucket| bucket.bucket = "a b".to_owned()), "S3 bucket");
    assert_eq!(with(|bucket| bucket.bucket = String::new()), "S3 bucket");
    assert_eq!(with(|bucket| bucket.region = "a\n".to_owned()), "S3 region");
    let credentials = |bucket: &mut S3Bucket| bucket.credentials = Some(("id".into(), "secret\n".into()));
    assert_eq!(with(credentials), "S3 credentials");
    assert!(!format!("{:?}", bucket(1)).contains("secret"));
    let never = ObjectTier::s3(&bucket(1), Duration::ZERO).err();
    assert!(matches!(never, Some(Error::Value { name: "object store timeout", .. })), "{never:?}");
    let missing = ObjectTier::folder(Path::new("/nonexistent/folder"), TIMEOUT).err();
    assert!(matches!(missing, Some(Error::File { .. })), "{missing:?}");
}

fn bucket(port: u16) -> S3Bucket {
    S3Bucket {
        bucket: "tiers".to_owned(),
        region: "us-east-1".to_owned(),
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        credentials: Some(("id".to_owned(), "secret".to_owned())),
    }
}

/// A server with S3's protocol.
fn start_s3() -> Option<Server> {
    let port = free_port();
    Server::start("moto_server", port, &["-H", "127.0.0.1", "-p", &port.to_string()])
}

fn make_bucket(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = "PUT /tiers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn an_object_store_gives_what_another_process_stored_and_is_missed_when_it_is_killed() {
    let Some(s3) = start_s3() else { return };
    let chunks = Chunks::new(3, 100_000);
    let open = || stack(vec![Box::new(ObjectTier::s3(&bucket(s3.port), Duration::from_secs(10)).unwrap())]);

    let tiers = open();
    chunks.store(&tiers, [0]);
    let early = stats(&tiers, Source::Object);
    assert_eq!((early.stores, early.failed_stores), (0, 1), "there is no bucket yet");

    make_bucket(s3.port);
    let tiers = open();
    chunks.store(&tiers, 0..3);
    assert_eq!(chunks.fetch(&open()), [Source::Object; 3]);
    assert_eq!(stats(&tiers, Source::Object).errors, 0, "{:?}", tiers.stats());
    ObjectTier::s3(&bucket(s3.port), TIMEOUT).unwrap().remove(&chunks.key(1)).unwrap();
    assert_eq!(chunks.fetch(&tiers).len(), 1, "removed in the middle of the prefix");
    drop(s3);
    assert_eq!(chunks.fetch(&tiers), []);
    assert_eq!(stats(&tiers, Source::Object).misses.failed, 1);
}

#[test]
fn a_folder_of_objects_gives_what_another_process_stored() {
    let folder = tempfile::tempdir().unwrap();
    let chunks = Chunks::new(3, 100_000);
    let open = || stack(vec![Box::new(ObjectTier::folder(folder.path(), LONG).unwrap())]);
    chunks.store(&open(), 0..3);
    let tiers = open();
    assert_eq!(chunks.fetch(&tiers), [Source::Object; 3]);
    ObjectTier::folder(folder.path(), LONG).unwrap().remove(&chunks.key(1)).unwrap();
    assert_eq!(chunks.fetch(&tiers).len(), 1);
}

#[test]
fn a_store_that_does_not_answer_is_a_miss_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let chunks = Chunks::new(1, 64);
    let tier = ObjectTier::s3(&bucket(port), Duration::from_millis(300)).unwrap();
    let tiers = stack(vec![Box::new(tier)]);
    let start = Instant::now();
    assert_eq!(chunks.fetch(&tiers), []);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(stats(&tiers, Source::Object).misses.failed, 1);
}

/// Names that mean something to shells, paths, addresses or protocols.
const ODD: [&str; 8] =
    ["../../../../tmp/x", "/", "a b%2F#?&=", ".", "модель", "org/model:tag", "$(x)*~`'\"", "\\..\\x"];

fn odd_names_are_kept_apart_by(tier: &mut dyn CacheTier) {
    let source = tier.source();
    let chunks = Chunks::new(1, 64);
    let names = ODD.iter().flat_map(|name| [(*name, None), ("model", Some(*name))]);
    let keys: Vec<_> = names.map(|(model, salt)| chunks.named(model, salt)).collect();
    let value = |at: usize| Value::seal(&keys[at], &[at as u8; 64]);
    for (at, key) in keys.iter().enumerate() {
        assert!(!tier.contains(key).unwrap(), "{source}: {key}");
        tier.store(key, &value(at)).unwrap_or_else(|error| panic!("{source}: {key}: {error}"));
    }
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(tier.load(key).unwrap(), Some(value(at)), "{source}: {key}");
    }
    tier.remove(&keys[0]).unwrap();
    let held: Vec<bool> = keys.iter().map(|key| tier.contains(key).unwrap()).collect();
    assert_eq!(held.iter().position(|held| !held), Some(0), "{source}");
    assert_eq!(held.iter().filter(|held| **held).count(), keys.len() - 1, "{source}");
}

#[test]
fn odd_names_are_kept_apart_and_lead_nowhere_else_in_every_tier() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, objects) = (folder.path().join("disk"), folder.path().join("objects"));
    std::fs::create_dir(&objects).unwrap();
    odd_names_are_kept_apart_by(&mut HostTier::new(1 << 20));
    odd_names_are_kept_apart_by(&mut DiskTier::open(&disk, 1 << 20).unwrap());
    odd_names_are_kept_apart_by(&mut ObjectTier::folder(&objects, LONG).unwrap());
    let beside: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(beside.len(), 2, "{beside:?}");
    if let Some(redis) = Redis::start() {
        odd_names_are_kept_apart_by(&mut *redis.tier());
    }
    if let Some(s3) = start_s3() {
        make_bucket(s3.port);
        odd_names_are_kept_apart_by(&mut ObjectTier::s3(&bucket(s3.port), LONG).unwrap());
    }
}
