//! How a server begins and ends.

use std::sync::mpsc;
use std::time::Duration;

use serde_json::json;
use tilewise_engine::worker::Worker;
use tilewise_engine::{Engine, EngineConfig, KvBudget};
use tilewise_server::{Server, ServerConfig, ServerError};

use crate::common::{LONG, Running, chunks, demo, start};

fn long() -> serde_json::Value {
    json!({ "prompt": "def add(a, b):", "max_tokens": 500, "temperature": 0, "ignore_eos": true, "stream": true })
}

/// A server whose engine comes out of `load`.
fn unloaded(load: impl FnOnce() -> tilewise_engine::Result<Engine> + Send + 'static) -> Running {
    let (tell, told) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async move {
            let config = ServerConfig::new("127.0.0.1:0".parse().unwrap(), "demo");
            let server = Server::bind(config, &demo(), Worker::start(load, None)?).await?;
            tell.send(server.address()).unwrap();
            server
                .serve(async {
                    let _ = stopped.await;
                })
                .await
        })
    });
    Running::new(told.recv_timeout(LONG).unwrap(), stop, thread)
}

#[test]
fn a_server_that_drains_refuses_new_requests_and_finishes_those_that_run() {
    let mut server = start(|_, _| {});
    let mut running = server.open("/v1/completions", &long());
    assert_eq!(running.status, 200);
    running.chunk().unwrap();
    server.stop();
    let start = std::time::Instant::now();
    let health = loop {
        let health = server.get("/health");
        if health.status != 200 || start.elapsed() > LONG {
            break health;
        }
    };
    assert_eq!((health.status, health.header("retry-after")), (503, Some("5")));
    let refused = server.post("/v1/completions", &json!({ "prompt": "x" }));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    let chunks = chunks(&running.whole().events());
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    server.ended().unwrap();
}

#[test]
fn a_server_that_cannot_wait_any_longer_aborts_what_runs() {
    let mut server = start(|config, _| config.limits.drain_time = Duration::from_millis(50));
    let mut running = server.open("/v1/completions", &long());
    running.chunk().unwrap();
    server.stop();
    let chunks = chunks(&running.whole().events());
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "abort");
    server.ended().unwrap();
}

#[test]
fn a_server_says_that_its_model_is_loading() {
    let (finish, finished) = mpsc::channel::<()>();
    let mut server = unloaded(move || {
        finished.recv().unwrap();
        let config = EngineConfig { kv: KvBudget::Tokens(2048), ..EngineConfig::default() };
        Engine::new(tilewise::open("cpu", Some(1))?, &demo(), &config, &mut tilewise_engine::model::unwatched)
    });
    assert_eq!(server.get("/health").status, 503);
    assert_eq!(server.post("/generate", &json!({ "text": "x" })).header("retry-after"), Some("5"));
    assert_eq!(server.get("/v1/models").status, 200);
    finish.send(()).unwrap();
    let start = std::time::Instant::now();
    while server.get("/health").status != 200 {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(10));
    }
    server.stop();
    server.ended().unwrap();
}

#[test]
fn an_engine_that_fails_is_no_hang() {
    let mut server = unloaded(|| panic!("the device is on fire"));
    let start = std::time::Instant::now();
    while !server.get("/health").text().contains("failed") {
        assert!(start.elapsed() < LONG);
    }
    assert_eq!(server.post("/generate", &json!({ "text": "x" })).status, 503);
    assert_eq!(server.send("POST", "/flush_cache", &[], b"").status, 503);
    server.stop();
    assert!(matches!(server.ended(), Err(ServerError::Engine(why)) if why.contains("on fire")));
}

#[test]
fn an_address_that_others_reach_needs_a_key() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bind = |config: ServerConfig| {
        let worker = Worker::start(|| panic!("never asked"), None).unwrap();
        runtime.block_on(Server::bind(config, &demo(), worker)).map(|server| server.address())
    };
    let config = ServerConfig::new("0.0.0.0:0".parse().unwrap(), "demo");
    assert!(matches!(bind(config.clone()), Err(ServerError::Config(_))));
    assert!(matches!(
        bind(ServerConfig { api_key: Some(String::new()), ..config.clone() }),
        Err(ServerError::Config(_))
    ));
    bind(ServerConfig { api_key: Some("secret".to_owned()), ..config.clone() }).unwrap();
    bind(ServerConfig { insecure: true, ..config }).unwrap();
}
