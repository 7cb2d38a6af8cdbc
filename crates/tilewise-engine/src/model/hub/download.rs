//! Files from the hub into the cache: those that a model needs, each whole or to be resumed.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use aws_lc_rs::digest;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE};
use serde::Deserialize;
use url::Url;

use super::cache::Repository;
use super::client::{Client, Failure, Patience, Reply, cause};
use super::{Download, HubConfig, HubModel};
use crate::model::{files, weights};
use crate::{Error, Result};

/// Files besides the weights that are fetched where a model has them.
const SMALL: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// The largest list of files that is read.
const MAX_LIST: usize = 32 << 20;

/// What the hub says of a model.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Fetches a model into the cache and returns its snapshot.
///
/// # Errors
/// [`Error::Hub`] that says what to do; what was fetched stays, and the next call goes on from there.
pub(super) fn fetch(
    hub: &HubConfig,
    model: &HubModel,
    repository: &Repository,
    report: &mut dyn FnMut(Download<'_>),
) -> Result<PathBuf> {
    let client = Client::new(hub, model)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::hub(model, format!("no connection can be made: {e}")))?;
    runtime.block_on(async {
        let listing = list(&client).await?;
        let fetcher = Fetcher { client: &client, repository, commit: &listing.sha };
        let names: Vec<String> = listing.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let is_there = |name: &str| names.iter().any(|known| known == name);
        let lacks = |what: &str| Error::hub(model, files::instead_of_model(&names, what, None));
        if !is_there("config.json") {
            return Err(lacks("has no config.json"));
        }
        let has_single = is_there(weights::SINGLE);
        if !has_single && !is_there(weights::INDEX) {
            return Err(lacks(&format!("has neither {} nor {}", weights::SINGLE, weights::INDEX)));
        }
        for file in SMALL.into_iter().filter(|file| is_there(file)) {
            fetcher.file(file, report).await?;
        }
        if has_single {
            fetcher.file(weights::SINGLE, report).await?;
        } else {
            fetcher.file(weights::INDEX, report).await?;
            let index = repository.snapshot_of(fetcher.commit).join(weights::INDEX);
            let shards = weights::read_index(&index.display().to_string(), &files::read(&index)?)?;
            for shard in shards.keys() {
                fetcher.file(shard, report).await?;
            }
        }
        repository.remember(&model.revision, fetcher.commit).map_err(|e| fetcher.unwritable(&e))?;
        Ok(repository.snapshot_of(fetcher.commit))
    })
}

/// The model's commit and the names of its files.
async fn list(client: &Client<'_>) -> Result<Listing> {
    let model = client.model;
    let url = client.url(["api", "models", &model.org, &model.name, "revision", &model.revision])?;
    let mut patience = Patience::new(client);
    let listing = loop {
        match read_list(client, &url).await {
            Ok(listing) => break listing,
            Err(failure) => patience.wait(failure).await?,
        }
    };
    let is_commit =
        (7..=64).contains(&listing.sha.len()) && listing.sha.chars().all(|c| c.is_ascii_hexdigit());
    if !is_commit {
        return Err(Error::hub(model, "the hub names no commit of it; try again later"));
    }
    Ok(listing)
}

async fn read_list(client: &Client<'_>, url: &Url) -> Result<Listing, Failure> {
    let mut response = client.get(url, 0).await?.response;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| broken(&e))? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_LIST {
            return Err(Error::hub(client.model, "the hub's list of files has no end").into());
        }
    }
    serde_json::from_slice(&body)
        .map_err(|_| Failure::Again("the hub's list of files is no JSON".to_owned(), None))
}

fn broken(error: &reqwest::Error) -> Failure {
    Failure::Again(format!("the connection broke ({})", cause(error)), None)
}

/// Fetches files of one commit.
struct Fetcher<'a> {
    client: &'a Client<'a>,
    repository: &'a Repository,
    commit: &'a str,
}

/// What the hub says of a file.
struct Facts {
    /// Its hash, by which the cache names it.
    etag: String,
    size: Option<u64>,
}

impl Fetcher<'_> {
    /// Fetches a file, if it is not here, and links it into the snapshot.
    async fn file(&self, file: &str, report: &mut dyn FnMut(Download<'_>)) -> Result<()> {
        let model = self.client.model;
        let url = self
            .client
            .url([&model.org, &model.name, "resolve", self.commit].into_iter().chain(file.split('/')))?;
        let mut patience = Patience::new(self.client);
        let facts = loop {
            match self.facts(&url).await {
                Ok(facts) => break facts,
                Err(failure) => patience.wait(failure).await?,
            }
        };
        let blob = self.repository.blobs().join(&facts.etag);
        if !is_whole(&blob, &facts) {
            self.blob(&url, file, &facts, report).await?;
        }
        self.repository.link(self.commit, file, &facts.etag).map_err(|e| self.unwritable(&e))
    }

    async fn facts(&self, url: &Url) -> Result<Facts, Failure> {
        let Reply { response, etag, linked_size } = self.client.head(url).await?;
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let etag = etag.filter(|etag| (1..=128).contains(&etag.len()) && etag.chars().all(is_allowed));
        let Some(etag) = etag else {
            let why = "the hub does not say a file's hash (etag); set HF_ENDPOINT to one that does";
            return Err(Error::hub(self.client.model, why).into());
        };
        // A redirect has a length of its own.
        let length = response.headers().get(CONTENT_LENGTH).filter(|_| response.status().is_success());
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Ok(Facts { etag, size: linked_size.or(length) })
    }

    /// Fetches a blob, or the rest of one that another call began. Who fetches it holds a lock on what is there.
    async fn blob(
        &self,
        url: &Url,
        file: &str,
        facts: &Facts,
        report: &mut dyn FnMut(Download<'_>),
    ) -> Result<()> {
        let blob = self.repository.blobs().join(&facts.etag);
        let part = blob.with_file_name(format!("{}.part", facts.etag));
        let unwritable = |e: std::io::Error| self.unwritable(&e);
        std::fs::create_dir_all(self.repository.blobs()).map_err(unwritable)?;
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&part);
        let mut out = open.map_err(unwritable)?;
        match out.lock() {
            // Some file systems have no locks: two processes there fetch at their own risk, which the hash ends.
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            locked => locked.map_err(unwritable)?,
        }
        if is_whole(&blob, facts) {
            // Another process has fetched it meanwhile.
            return Ok(());
        }
        let mut patience = Patience::new(self.client);
        let mut damaged = 0;
        loop {
            let before = out.metadata().map_err(unwritable)?.len();
            let ended = self.rest(url, file, facts, &mut out, report).await;
            let failure = match ended {
                Ok(()) if is_intact(&mut out, &facts.etag).map_err(unwritable)? => break,
                Ok(()) => {
                    out.set_len(0).map_err(unwritable)?;
                    damaged += 1;
                    let why = format!("{file} arrives with another hash than the hub says");
                    if damaged > 1 {
                        return Err(Error::hub(self.client.model, format!("{why}; try again later")));
                    }
                    Failure::Again(why, None)
                }
                Err(failure) => failure,
            };
            if out.metadata().map_err(unwritable)?.len() > before {
                patience.renew();
            }
            patience.wait(failure).await?;
        }
        out.sync_all().map_err(unwritable)?;
        std::fs::rename(&part, &blob).map_err(unwritable)
    }

    /// Appends what a blob lacks.
    async fn rest(
        &self,
        url: &Url,
        file: &str,
        facts: &Facts,
        out: &mut File,
        report: &mut dyn FnMut(Download<'_>),
    ) -> Result<(), Failure> {
        let unwritable = |e: std::io::Error| Failure::Final(self.unwritable(&e));
        let mut done = out.seek(SeekFrom::End(0)).map_err(unwritable)?;
        if facts.size == Some(done) {
            return Ok(());
        }
        if facts.size.is_none_or(|size| done > size) {
            out.set_len(0).map_err(unwritable)?;
            done = 0;
        }
        let mut response = self.client.get(url, done).await?.response;
        if done > 0 && !continues(&response, done) {
            // The host begins anew, or refuses to go on.
            out.set_len(0).map_err(unwritable)?;
            done = 0;
            if response.status() != StatusCode::OK {
                return Err(Failure::Again(format!("the hub cannot resume {file}"), None));
            }
        }
        out.seek(SeekFrom::Start(done)).map_err(unwritable)?;
        let total = facts.size.unwrap_or(0);
        report(Download { file, done, total });
        while let Some(chunk) = response.chunk().await.map_err(|e| broken(&e))? {
            done += chunk.len() as u64;
            if facts.size.is_some_and(|size| done > size) {
                out.set_len(0).map_err(unwritable)?;
                let why = format!("{file} is longer than the hub says; try again later");
                return Err(Error::hub(self.client.model, why).into());
            }
            out.write_all(&chunk).map_err(unwritable)?;
            report(Download { file, done, total });
        }
        match facts.size {
            Some(size) if done < size => {
                Err(Failure::Again(format!("{file} ended after {done} of {size} bytes"), None))
            }
            _ => Ok(()),
        }
    }

    fn unwritable(&self, error: &std::io::Error) -> Error {
        let folder = self.client.hub.cache.display();
        let why = format!(
            "the cache {folder} cannot be written ({error}); free space there, or set HF_HOME to another"
        );
        Error::hub(self.client.model, why)
    }
}

/// Whether an answer goes on at this byte.
fn continues(response: &reqwest::Response, from: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

fn is_whole(blob: &std::path::Path, facts: &Facts) -> bool {
    blob.metadata().is_ok_and(|blob| blob.is_file() && facts.size.is_none_or(|size| blob.len() == size))
}

/// Whether bytes have the hash that names them: large files are named by SHA-256, and others by what is not checked here.
fn is_intact(bytes: &mut File, etag: &str) -> std::io::Result<bool> {
    if etag.len() != 64 {
        return Ok(true);
    }
    bytes.seek(SeekFrom::Start(0))?;
    let (mut hash, mut buffer) = (digest::Context::new(&digest::SHA256), vec![0; 1 << 20]);
    loop {
        match bytes.read(&mut buffer)? {
            0 => break,
            len => hash.update(&buffer[..len]),
        }
    }
    let digits: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(digits.eq_ignore_ascii_case(etag))
}
