//! Hugging Face's cache: per model `blobs` with the files by their hashes, `snapshots` with links to them by commit, and
//! `refs` with the commits of branches and tags.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::HubModel;
use crate::model::weights;
use crate::{Error, Result};

/// A model's folder in the cache, which need not exist.
pub(super) struct Repository {
    root: PathBuf,
}

impl Repository {
    pub(super) fn new(cache: &Path, model: &HubModel) -> Self {
        Self { root: cache.join(format!("models--{}--{}", model.org, model.name)) }
    }

    /// The snapshot of a branch, a tag or a commit, if it is here.
    pub(super) fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        snapshot(&self.root, revision)
    }

    pub(super) fn snapshot_of(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Lets `file` of a commit be a blob.
    pub(super) fn link(&self, commit: &str, file: &str, blob: &str) -> std::io::Result<()> {
        let link = self.snapshot_of(commit).join(file);
        if let Some(folder) = link.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // From the file's folder up to that of the model.
        let up = "../".repeat(2 + file.matches('/').count());
        let new = beside(&link);
        point(&new, Path::new(&format!("{up}blobs/{blob}")), &self.blobs().join(blob))?;
        std::fs::rename(new, link)
    }

    /// Says which commit a branch or tag is, once its snapshot is whole.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> std::io::Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let new = beside(&path);
        std::fs::write(&new, commit)?;
        std::fs::rename(new, path)
    }
}

/// A name of nobody else's beside a file, which what is made there takes the place of at once.
fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.{count}", std::process::id()))
}

#[cfg(unix)]
fn point(link: &Path, relative: &Path, _: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, link)
}

/// Where links need privileges, the file has two names; across disks, it is copied.
#[cfg(not(unix))]
fn point(link: &Path, _: &Path, blob: &Path) -> std::io::Result<()> {
    std::fs::hard_link(blob, link).or_else(|_| std::fs::copy(blob, link).map(|_| ()))
}

fn snapshot(root: &Path, revision: &str) -> Option<PathBuf> {
    let commit = std::fs::read_to_string(root.join("refs").join(revision));
    let commit = commit.unwrap_or_else(|_| revision.to_owned());
    let is_name = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric());
    let folder = Some(commit.trim())
        .filter(|commit| is_name(commit))
        .map(|commit| root.join("snapshots").join(commit));
    folder.filter(|folder| folder.is_dir())
}

/// The snapshot of a model's folder in a cache: that of `revision`, else that of the branch main, else the only one.
///
/// # Errors
/// [`Error::File`] that says which there are.
pub(super) fn newest(root: &Path, revision: Option<&str>) -> Result<PathBuf> {
    if let Some(folder) = snapshot(root, revision.unwrap_or("main")) {
        return Ok(folder);
    }
    let entries = std::fs::read_dir(root.join("snapshots")).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    if revision.is_none() && folders.len() == 1 {
        return Ok(folders.remove(0));
    }
    let name = |folder: &PathBuf| folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let commits = folders.iter().filter_map(name).collect::<Vec<_>>().join(", ");
    let commits = if commits.is_empty() { "none".to_owned() } else { commits };
    let revision = revision.unwrap_or("main");
    let why = format!(
        "has no snapshot of {revision}; there is {commits}: give one as --revision, or fetch the model again"
    );
    Err(Error::file(root.display().to_string(), why))
}

/// The models in a folder that is a whole cache, as `org/name`.
pub(super) fn models_in(cache: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let mut models: Vec<String> = entries.filter_map(|entry| name_of(&entry.path())).collect();
    models.sort();
    models
}

/// `org/name` of a folder that is a snapshot in a Hugging Face cache.
pub fn repository_of(folder: &Path) -> Option<String> {
    let snapshots = folder.parent()?;
    if snapshots.file_name()? != "snapshots" {
        return None;
    }
    name_of(snapshots.parent()?)
}

fn name_of(root: &Path) -> Option<String> {
    let name = root.file_name()?.to_str()?.strip_prefix("models--")?;
    Some(name.replacen("--", "/", 1))
}

/// A file that a snapshot lacks; `all` asks for those of the tokenizer too, which not every model has.
pub(super) fn lacks(snapshot: &Path, all: bool) -> Option<String> {
    let is_gone = |file: &str| !snapshot.join(file).exists();
    let mut wanted = vec!["config.json"];
    if all {
        wanted.extend(["tokenizer.json", "tokenizer_config.json"]);
    }
    if let Some(file) = wanted.into_iter().find(|file| is_gone(file)) {
        return Some(file.to_owned());
    }
    match weights::weight_files(snapshot) {
        Ok(files) => files
            .iter()
            .find(|file| !file.exists())
            .map(|file| file.strip_prefix(snapshot).unwrap_or(file).display().to_string()),
        Err(_) => Some(weights::INDEX.to_owned()),
    }
}
