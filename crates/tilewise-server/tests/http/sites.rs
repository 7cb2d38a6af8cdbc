//! Who may ask, and from where.

use crate::common::{Answer, Running, server, start};

/// Asks for the models, or another path, with these headers and no others.
fn ask(server: &Running, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: 0\r\n");
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    server.raw(format!("{text}\r\n").as_bytes()).whole()
}

#[test]
fn without_a_key_this_machines_names_are_served_and_others_are_not() {
    for (host, status) in [
        ("host.docker.internal:21000", 200),
        ("my-mac.local:21000", 200),
        ("localhost.:21000", 200),
        ("api.localhost", 200),
        ("attacker.example.com", 403),
    ] {
        assert_eq!(ask(server(), "GET", "/v1/models", &[("host", host)]).status, status, "{host}");
    }
}

#[test]
fn pages_of_origins_that_are_named_may_ask_and_read() {
    let server = start(|config, _| {
        config.api_key = Some("secret".to_owned());
        config.allowed_origins = vec!["http://localhost:3000".to_owned(), "app://obsidian.md".to_owned()];
    });
    let host = ("host", "127.0.0.1:8000");
    let preflight = |origin| {
        let headers = [
            host,
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        ask(&server, "OPTIONS", "/v1/chat/completions", &headers)
    };
    for origin in ["http://localhost:3000", "app://obsidian.md"] {
        let answer = preflight(origin);
        assert_eq!(answer.status, 204, "the key is not needed yet");
        assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
        assert_eq!(answer.header("access-control-allow-headers"), Some("authorization,content-type"));
        let asked = ask(
            &server,
            "GET",
            "/v1/models",
            &[host, ("origin", origin), ("authorization", "Bearer secret")],
        );
        assert_eq!((asked.status, asked.header("access-control-allow-origin")), (200, Some(origin)));
        assert!(asked.header("access-control-expose-headers").unwrap().contains("x-request-id"));
        // A page sees why it was refused.
        let refused = ask(&server, "GET", "/v1/models", &[host, ("origin", origin)]);
        assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some(origin)));
    }
    assert_eq!(preflight("http://localhost:3001").status, 403);
    let other = ask(
        &server,
        "GET",
        "/v1/models",
        &[host, ("origin", "http://evil"), ("authorization", "Bearer secret")],
    );
    assert_eq!((other.status, other.header("access-control-allow-origin")), (403, None));
}

#[test]
fn behind_a_proxy_the_page_is_the_servers_own() {
    let server = start(|config, _| config.api_key = Some("secret".to_owned()));
    let key = ("authorization", "bearer secret");
    let origin = ("origin", "https://llm.example.com");
    for (headers, status) in [
        (vec![key, origin, ("host", "127.0.0.1:8000"), ("x-forwarded-host", "llm.example.com")], 200),
        (vec![key, origin, ("host", "llm.example.com:443")], 200),
        (vec![key, origin, ("host", "llm.example.com:8443")], 403),
        (vec![("x-api-key", "secret"), ("host", "x")], 200),
        (vec![("authorization", "Basic secret"), ("host", "x")], 401),
    ] {
        assert_eq!(ask(&server, "GET", "/v1/models", &headers).status, status, "{headers:?}");
    }
    // Without a key nobody has shown that it was meant.
    let headers = [origin, ("host", "127.0.0.1"), ("x-forwarded-host", "llm.example.com")];
    assert_eq!(ask(crate::common::server(), "GET", "/v1/models", &headers).status, 403);
}
