//! Keys with names: what one holder learns of another and can do to him.

use serde_json::{Value, json};
use tilewise_server::NamedKey;

use crate::common::{Answer, Running, start};

const PATH: &str = "/v1/completions";

fn keys() -> Running {
    start(|config, _| {
        config.api_keys = NamedKey::read("ann a\nbob b team\ncay c team").unwrap();
        config.admin_api_key = Some("admin".to_owned());
        config.limits.completions = 8;
    })
}

fn ask(server: &Running, key: &str, path: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {key}");
    let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
    server.send("POST", path, &headers, body.to_string().as_bytes()).whole()
}

#[test]
fn what_one_has_cached_tells_another_nothing() {
    let server = keys();
    let prompt = "def add(a, b):\n    return a + b\n\n".repeat(8);
    let cached = |key: &str, salt: Option<&str>| {
        let body = json!({ "prompt": prompt, "max_tokens": 1, "temperature": 0, "cache_salt": salt });
        let answer = ask(&server, key, PATH, &body).json();
        let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
        (cached.as_u64().unwrap() > 0, answer["choices"][0]["text"].clone())
    };
    let (first, text) = cached("a", None);
    assert!(!first && cached("a", None).0, "one finds what he has cached himself");
    for (key, salt, finds) in
        [("b", None, false), ("c", None, true), ("b", Some("x"), false), ("c", Some("x"), true)]
    {
        assert_eq!(cached(key, salt), (finds, text.clone()), "{key} {salt:?}");
    }
    assert!(!cached("admin", None).0);
}

#[test]
fn nobody_ends_the_requests_of_another_or_sees_the_work_of_all() {
    let server = keys();
    let body =
        json!({ "prompt": "def f(", "max_tokens": 900, "ignore_eos": true, "rid": "mine", "stream": true });
    let headers = [("content-type", "application/json"), ("authorization", "Bearer a")];
    let running = server.send("POST", PATH, &headers, body.to_string().as_bytes());
    let aborted = |key: &str, body: Value| {
        let answer = ask(&server, key, "/abort_request", &body);
        (answer.status, answer.json()["aborted"].as_u64())
    };
    assert_eq!(aborted("b", json!({ "rid": "mine" })), (200, Some(0)));
    assert_eq!(aborted("b", json!({ "abort_all": true })), (403, None));
    for path in ["/metrics", "/v1/loads", "/get_load"] {
        let status = |key: &str| {
            let bearer = format!("Bearer {key}");
            server.send("GET", path, &[("authorization", bearer.as_str())], b"").whole().status
        };
        assert_eq!((status("a"), status("admin"), status("x")), (403, 200, 401), "{path}");
    }
    assert_eq!(ask(&server, "a", "/flush_cache", &json!({})).status, 403);
    assert_eq!(aborted("a", json!({ "rid": "mine" })), (200, Some(1)));
    drop(running);
}

#[test]
fn nobody_takes_all_places() {
    let server = keys();
    let body = |n: usize| json!({ "prompt": "def f(", "max_tokens": 900, "ignore_eos": true, "n": n, "stream": true });
    let headers = [("content-type", "application/json"), ("authorization", "Bearer a")];
    let running = server.send("POST", PATH, &headers, body(4).to_string().as_bytes());
    assert_eq!(ask(&server, "a", PATH, &body(1)).status, 429);
    let one = json!({ "prompt": "def f(", "max_tokens": 1 });
    assert_eq!(ask(&server, "b", PATH, &one).status, 200);
    drop(running);
}
