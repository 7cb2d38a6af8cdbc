//! Models by name: in a folder, in Hugging Face's cache on this machine, or fetched from its hub into that cache.
//!
//! The cache is laid out as the Python library `huggingface_hub` lays it out, so that both find what the other fetched.

mod cache;
mod client;
mod download;
mod name;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cache::repository_of;
pub use name::HubModel;

use super::files;
use crate::{Error, Result};
use cache::Repository;

/// How the hub is reached, and where its files are kept.
#[derive(Clone)]
pub struct HubConfig {
    /// The hub's address, an http or https URL.
    pub endpoint: String,
    /// The folder that holds a folder `models--org--name` per model.
    pub cache: PathBuf,
    /// Who asks. It goes to the endpoint's own host and to no other, wherever that sends us.
    pub token: Option<String>,
    /// Whether to use the cache alone.
    pub offline: bool,
    /// The proxy to ask through, a URL.
    pub proxy: Option<String>,
    /// Hosts that are asked without the proxy, as `NO_PROXY` lists them.
    pub no_proxy: Option<String>,
    /// How long to wait for a connection, and for each next byte.
    pub timeout: Duration,
    /// Tries in a row that bring nothing, before giving up.
    pub tries: u32,
    /// The pause after the first of them; it doubles with each.
    pub pause: Duration,
}

impl Default for HubConfig {
    /// The hub at huggingface.co without a token, and a cache in the current folder.
    fn default() -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            cache: PathBuf::from("hub"),
            token: None,
            offline: false,
            proxy: None,
            no_proxy: None,
            timeout: Duration::from_secs(30),
            tries: 4,
            pause: Duration::from_millis(500),
        }
    }
}

impl std::fmt::Debug for HubConfig {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, cache, offline, .. } = self;
        write!(f, "HubConfig {{ endpoint: {endpoint:?}, cache: {cache:?}, offline: {offline}, .. }}")
    }
}

/// How far fetching a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Download<'a> {
    /// The file's name in its repository.
    pub file: &'a str,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes that it has; 0 where the hub does not say.
    pub total: u64,
}

/// The folder of a model that is named by `model`: the path of a folder, that of a model in a Hugging Face cache, or
/// `org/name[@revision]`, which is looked up in the cache first and fetched from the hub where it is not there whole.
/// `report` is told how far fetching is. This blocks: do not call it from an asynchronous task.
///
/// # Errors
/// [`Error::File`] for a path that holds no model, [`Error::Hub`] for a model that cannot be fetched; both say what to do.
pub fn locate(
    model: &Path,
    revision: Option<&str>,
    hub: &HubConfig,
    report: &mut dyn FnMut(Download<'_>),
) -> Result<PathBuf> {
    if files::is_there(model) {
        return folder(model, revision);
    }
    let Some(mut wanted) = model.to_str().and_then(HubModel::parse) else {
        let why =
            "there is no such folder; give a model's folder, or org/name for a model of the Hugging Face hub";
        return Err(Error::file(model.display().to_string(), why));
    };
    if let Some(revision) = revision {
        wanted = wanted.at(revision)?;
    }
    let repository = Repository::new(&hub.cache, &wanted);
    let cached = repository.snapshot(&wanted.revision);
    let lacks = match &cached {
        Some(snapshot) => match cache::lacks(snapshot, !hub.offline) {
            None => return Ok(snapshot.clone()),
            Some(file) => format!("{file} of it is not in the cache {}", hub.cache.display()),
        },
        None => format!("it is not in the cache {}", hub.cache.display()),
    };
    if hub.offline {
        let why = format!("{lacks}, and HF_HUB_OFFLINE is set; unset it, or give the model's folder");
        return Err(Error::hub(&wanted, why));
    }
    // What not every model has is not worth a failure: weights that are here run.
    let whole = cached.filter(|snapshot| cache::lacks(snapshot, false).is_none());
    download::fetch(hub, &wanted, &repository, report).or_else(|error| whole.ok_or(error))
}

/// The folder at a path that is there.
fn folder(path: &Path, revision: Option<&str>) -> Result<PathBuf> {
    let error = |why: String| Error::file(path.display().to_string(), why);
    let metadata = path.metadata().map_err(|e| files::unreadable(path, &e))?;
    if !metadata.is_dir() {
        return Err(error(what_file_is_this(path)));
    }
    if path.join("snapshots").is_dir() {
        return cache::newest(path, revision);
    }
    if let Some(revision) = revision {
        let why =
            format!("is a folder and has no revision {revision}; leave --revision out, or give org/name");
        return Err(error(why));
    }
    let models = cache::models_in(path);
    if let Some(first) = models.first().filter(|_| !files::is_there(&path.join("config.json"))) {
        let why = format!("is a cache of {} models; give one of them, such as {first}", models.len());
        return Err(error(why));
    }
    Ok(path.to_owned())
}

/// What to say of a file where a folder is wanted.
fn what_file_is_this(path: &Path) -> String {
    let mut start = [0; 4];
    let begins =
        std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start));
    let ending = path.extension().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
    match ending {
        _ if begins.is_ok() && &start == b"GGUF" => format!("is a GGUF file; {}", files::GET_SAFETENSORS),
        "gguf" => format!("is a GGUF file; {}", files::GET_SAFETENSORS),
        "safetensors" | "json" => "is a file; give the folder that it is in".to_owned(),
        "bin" | "pt" | "pth" => {
            format!("is a pickle, which can run code when it is read; {}", files::GET_SAFETENSORS)
        }
        _ => format!("is a file; {}", files::GET_SAFETENSORS),
    }
}
