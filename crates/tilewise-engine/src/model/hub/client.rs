//! Requests to the hub: redirects, refusals, and tries that may be repeated.

use std::error::Error as _;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Method, NoProxy, Proxy, Response, StatusCode};
use url::Url;

use super::{HubConfig, HubModel};
use crate::{Error, Result};

/// Hosts that a request may be sent on to, one after another.
const MAX_REDIRECTS: usize = 10;
/// The longest pause that a hub may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why a try brought nothing.
pub(super) enum Failure {
    /// The next may bring more, after a pause if the hub asks for one.
    Again(String, Option<Duration>),
    /// The next would end alike.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// What came, and what the hosts on the way said of the file.
pub(super) struct Reply {
    pub(super) response: Response,
    /// The file's hash, if a host said it.
    pub(super) etag: Option<String>,
    /// Its size, if a host that stores it apart said it.
    pub(super) linked_size: Option<u64>,
}

/// Asks the hub for one model.
pub(super) struct Client<'a> {
    http: reqwest::Client,
    endpoint: Url,
    pub(super) hub: &'a HubConfig,
    pub(super) model: &'a HubModel,
}

impl<'a> Client<'a> {
    /// # Errors
    /// [`Error::Value`] for an endpoint or proxy that is no URL.
    pub(super) fn new(hub: &'a HubConfig, model: &'a HubModel) -> Result<Self> {
        let endpoint = Url::parse(&hub.endpoint).ok().filter(|url| is_web(url) && url.has_host());
        let endpoint = endpoint
            .ok_or_else(|| Error::value("the hub's endpoint", "an http or https URL", &hub.endpoint))?;
        // Redirects are followed here, where the token can be kept back; the environment is read in one place only.
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(hub.timeout)
            .read_timeout(hub.timeout)
            .user_agent(concat!("tilewise/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = &hub.proxy {
            let wrong = |_| Error::value("the proxy", "a URL", proxy);
            let except = hub.no_proxy.as_deref().and_then(NoProxy::from_string);
            builder = builder.proxy(Proxy::all(proxy).map_err(wrong)?.no_proxy(except));
        }
        let http = builder
            .build()
            .map_err(|e| Error::hub(model, format!("no connection can be made: {}", cause(&e))))?;
        Ok(Self { http, endpoint, hub, model })
    }

    /// The hub's address of these steps, each of which may hold any character.
    ///
    /// # Errors
    /// [`Error::Value`] for an endpoint that has no paths.
    pub(super) fn url<'b>(&self, steps: impl IntoIterator<Item = &'b str>) -> Result<Url> {
        let mut url = self.endpoint.clone();
        match url.path_segments_mut() {
            Ok(mut path) => path.pop_if_empty().extend(steps),
            Err(()) => {
                return Err(Error::value("the hub's endpoint", "an http or https URL", &self.hub.endpoint));
            }
        };
        Ok(url)
    }

    /// What a file is, without its bytes.
    pub(super) async fn head(&self, url: &Url) -> Result<Reply, Failure> {
        self.send(Method::HEAD, url, None).await
    }

    /// The bytes from `from` on, if the host can; all of them else.
    pub(super) async fn get(&self, url: &Url, from: u64) -> Result<Reply, Failure> {
        self.send(Method::GET, url, Some(from).filter(|&from| from > 0)).await
    }

    async fn send(&self, method: Method, url: &Url, from: Option<u64>) -> Result<Reply, Failure> {
        let (mut url, mut etag, mut linked_size) = (url.clone(), None, None);
        for _ in 0..=MAX_REDIRECTS {
            let mut request =
                self.http.request(method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(token) = self.hub.token.as_ref().filter(|_| self.is_endpoint(&url)) {
                request = request.bearer_auth(token);
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response =
                request.send().await.map_err(|e| Failure::Again(self.unreachable(&url, &e), None))?;
            let headers = response.headers();
            etag = etag.or_else(|| header(headers, "x-linked-etag"));
            linked_size = linked_size.or_else(|| header(headers, "x-linked-size")?.parse().ok());
            if !response.status().is_redirection() {
                etag = etag.or_else(|| header(headers, "etag"));
                self.check(&response)?;
                return Ok(Reply { response, etag, linked_size });
            }
            let next = header(headers, LOCATION.as_str()).and_then(|place| url.join(&place).ok());
            let next =
                next.filter(|next| is_web(next) && (next.scheme() == "https" || url.scheme() == "http"));
            let Some(next) = next else {
                let why = format!("{} sends the request on to nowhere; try again later", host(&url));
                return Err(Error::hub(self.model, why).into());
            };
            // A signed address of another host often answers GET alone: what the hub said of the file does.
            if method == Method::HEAD && etag.is_some() && !self.is_endpoint(&next) {
                return Ok(Reply { response, etag, linked_size });
            }
            url = next;
        }
        Err(Error::hub(self.model, format!("{} sends the request on without end", self.hub.endpoint)).into())
    }

    /// Whether a request goes to the hub itself: the same scheme, host and port.
    fn is_endpoint(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// Refuses an answer that is not what was asked for.
    fn check(&self, response: &Response) -> Result<(), Failure> {
        let (status, model) = (response.status(), self.model);
        let page = format!("{}/{}/{}", self.hub.endpoint.trim_end_matches('/'), model.org, model.name);
        let error = |why: String| Err(Failure::Final(Error::hub(model, why)));
        match status {
            _ if status.is_success() => Ok(()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => error(match &self.hub.token {
                None => format!(
                    "the hub knows no public model of this name ({status}); correct it, or set HF_TOKEN if it is private \
                     or gated"
                ),
                Some(_) => format!(
                    "the hub refuses this token ({status}); accept the terms at {page}, or set HF_TOKEN to one that may \
                     read it"
                ),
            }),
            StatusCode::NOT_FOUND => {
                let code = header(response.headers(), "x-error-code");
                error(match code.as_deref() {
                    Some("RevisionNotFound") => {
                        format!("the hub has no revision {} of it; give another --revision", model.revision)
                    }
                    Some("EntryNotFound") => "the hub lacks a file that it lists; try again later".to_owned(),
                    _ => format!(
                        "the hub at {} has no such model or revision (404); correct the name",
                        self.hub.endpoint
                    ),
                })
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let asked =
                    header(response.headers(), RETRY_AFTER.as_str()).and_then(|seconds| seconds.parse().ok());
                let asked = asked.map(Duration::from_secs);
                let why = "the hub has had too many requests from here (429)".to_owned();
                match asked {
                    Some(pause) if pause > LONGEST_PAUSE => {
                        error(format!("{why}; try again in {} s, or set HF_TOKEN", pause.as_secs()))
                    }
                    _ => Err(Failure::Again(why, asked)),
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(()),
            StatusCode::REQUEST_TIMEOUT => Err(Failure::Again(format!("the hub answers {status}"), None)),
            _ if status.is_server_error() => Err(Failure::Again(format!("the hub answers {status}"), None)),
            _ => error(format!("the hub answers {status}; try again later")),
        }
    }

    fn unreachable(&self, url: &Url, error: &reqwest::Error) -> String {
        match error.is_timeout() {
            true => format!("{} does not answer in {} s", host(url), self.hub.timeout.as_secs_f64()),
            false => format!("{} cannot be reached ({})", host(url), cause(error)),
        }
    }
}

/// Repeats what brings nothing, a few times; what brings something may go on for as long as it does.
pub(super) struct Patience<'a> {
    client: &'a Client<'a>,
    failed: u32,
}

impl<'a> Patience<'a> {
    pub(super) fn new(client: &'a Client<'a>) -> Self {
        Self { client, failed: 0 }
    }

    /// Something came: the tries are counted from the start.
    pub(super) fn renew(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure, if it is final or one too many.
    pub(super) async fn wait(&mut self, failure: Failure) -> Result<()> {
        let (why, asked) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Again(why, asked) => (why, asked),
        };
        self.failed += 1;
        let hub = self.client.hub;
        if self.failed >= hub.tries {
            let why = format!("{why}; try again later, or give the model's folder");
            return Err(Error::hub(self.client.model, why));
        }
        let pause = hub.pause.saturating_mul(1 << (self.failed - 1).min(16));
        tokio::time::sleep(asked.unwrap_or(pause).min(LONGEST_PAUSE)).await;
        Ok(())
    }
}

/// A header's value, if it is text.
fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn is_web(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}

fn host(url: &Url) -> &str {
    url.host_str().unwrap_or_default()
}

/// The innermost words of an error, which say what happened.
pub(super) fn cause(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    if error.source().is_none() { "the connection broke".to_owned() } else { inner.to_string() }
}
