//! Where a request may come from: pages in browsers by their origin, names of this machine, and preflights.

use axum::response::Response;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use hyper::{Method, StatusCode};

use crate::ServerConfig;
use crate::error::ApiError;

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Headers of answers that scripts may read, besides the few that they always may.
const EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, retry-after, x-ignored-fields");

/// Any origin.
pub(crate) const ANY: &str = "*";

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The origin of a page that asks and is allowed to, though it is not the server's own.
pub(crate) fn allowed_origin(config: &ServerConfig, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    let given = normal(origin.to_str().ok()?);
    let is_allowed = |allowed: &String| allowed == ANY || normal(allowed) == given;
    config.allowed_origins.iter().any(is_allowed).then(|| origin.clone())
}

/// Refuses what a page of another site has a browser send. Without a key, that includes names that such a site has made
/// point here.
///
/// # Errors
/// 403.
pub(crate) fn check(config: &ServerConfig, headers: &HeaderMap) -> Result<(), ApiError> {
    // A host that is no text is no name of this machine.
    let host = headers.get(HOST).map_or("", |host| host.to_str().unwrap_or("?"));
    let forbidden = |why: &str| Err(ApiError::new(StatusCode::FORBIDDEN, why).code("forbidden"));
    if let Some(origin) = headers.get(ORIGIN)
        && allowed_origin(config, headers).is_none()
    {
        // What a proxy says counts where a key shows that the request was meant.
        let forwarded = header(headers, &FORWARDED_HOST).filter(|_| config.asks_for_keys());
        let origin = origin.to_str().unwrap_or_default();
        let is_own = |host: &str| is_site(origin, host.trim());
        if !(is_own(host) || forwarded.is_some_and(|hosts| hosts.split(',').any(is_own))) {
            return forbidden("requests from the pages of other sites are not served; see --allow-origin");
        }
    }
    // Browsers send no origin with what a page only shows, such as an image.
    let is_foreign = ["cross-site", "same-site"].map(Some).contains(&header(headers, &FETCH_SITE));
    if is_foreign && !headers.contains_key(ORIGIN) && header(headers, &FETCH_MODE) != Some("navigate") {
        return forbidden("requests from the pages of other sites are not served; see --allow-origin");
    }
    let is_guarded = config.asks_for_keys() || config.insecure;
    if is_guarded || host.is_empty() || is_this_machine(host) {
        return Ok(());
    }
    forbidden("without an API key, this machine is served by its own names and addresses alone")
}

/// The answer to a browser that asks whether a page may send a request; it comes before any key.
pub(crate) fn preflight(config: &ServerConfig, method: &Method, headers: &HeaderMap) -> Option<Response> {
    let wanted = headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| method == Method::OPTIONS)?;
    allowed_origin(config, headers)?;
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    let answer = response.headers_mut();
    answer.insert(ACCESS_CONTROL_ALLOW_METHODS, wanted.clone());
    if let Some(names) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    if headers.contains_key(REQUEST_PRIVATE_NETWORK) {
        answer.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
    answer.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    Some(response)
}

/// Lets a page of an allowed origin read the answer.
pub(crate) fn allow(origin: HeaderValue, response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    headers.append(VARY, HeaderValue::from_static("origin"));
}

/// Whether an origin is that of the pages of a host.
fn is_site(origin: &str, host: &str) -> bool {
    let Some((scheme, _)) = origin.split_once("://") else { return false };
    normal(origin) == normal(&format!("{scheme}://{host}"))
}

/// An origin in lower case, without a default port or a final slash.
fn normal(origin: &str) -> String {
    let origin = origin.trim_end_matches('/').to_ascii_lowercase();
    let port = match origin.split_once("://") {
        Some(("http", _)) => ":80",
        Some(("https", _)) => ":443",
        _ => return origin,
    };
    origin.strip_suffix(port).map_or(origin.clone(), str::to_owned)
}

/// Whether a host is an address, or a name that no public server gives out: `localhost`, names of multicast DNS and of
/// private networks, and this machine's own.
fn is_this_machine(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let name = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    if address.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_private = [".localhost", ".local", ".internal"].iter().any(|end| name.ends_with(end));
    let own = || gethostname::gethostname().to_string_lossy().to_ascii_lowercase();
    name == "localhost" || is_private || !name.is_empty() && name == own()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_only_this_machine_or_its_network_gives_are_its_own() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "localhost.:21000",
            "a.localhost",
            "my-mac.local:8000",
            "host.docker.internal",
            "127.0.0.1:9",
            "[::1]:9",
            "192.168.0.7",
            &gethostname::gethostname().to_string_lossy(),
        ] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in
            ["example.com", "localhost.example.com", "local", "internal.example.com:80", ".", "a.locals"]
        {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn an_origin_is_a_hosts_own_whatever_the_default_port() {
        for (origin, host, own) in [
            ("http://a.b", "a.b", true),
            ("https://A.b", "a.B:443", true),
            ("https://a.b:443", "a.b", true),
            ("http://a.b", "a.b:443", false),
            ("http://a.b:8000", "a.b:8000", true),
            ("http://a.b:8000", "a.b:8001", false),
            ("null", "null", false),
        ] {
            assert_eq!(is_site(origin, host), own, "{origin} at {host}");
        }
    }
}
