//! Names of models on the hub.

use std::path::{Component, Path};

use crate::{Error, Result};

/// A model of the hub at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// Who published it.
    pub org: String,
    /// Its name there.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// Whether the revision was asked for.
    is_explicit: bool,
}

impl HubModel {
    /// Reads `org/name[@revision]`; `None` for what cannot be one, such as most paths.
    pub fn parse(text: &str) -> Option<Self> {
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (text, None),
        };
        let (org, name) = repository.split_once('/')?;
        let is_explicit = revision.is_some();
        let revision = revision.unwrap_or("main");
        let is_valid = is_part(org) && is_part(name) && is_revision(revision);
        let owned = |text: &str| text.to_owned();
        is_valid.then(|| Self { org: owned(org), name: owned(name), revision: owned(revision), is_explicit })
    }

    /// The same model at a revision that was given beside it.
    ///
    /// # Errors
    /// [`Error::Value`] for one that means nothing or contradicts that in the name.
    pub(super) fn at(mut self, revision: &str) -> Result<Self> {
        if !is_revision(revision) {
            return Err(Error::value("revision", "a branch, a tag or a commit", revision));
        }
        if self.is_explicit && self.revision != revision {
            let expected = format!("{} as in {self}, or left out", self.revision);
            return Err(Error::value("revision", expected, revision));
        }
        revision.clone_into(&mut self.revision);
        self.is_explicit = true;
        Ok(self)
    }
}

impl std::fmt::Display for HubModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.org, self.name)?;
        if self.is_explicit { write!(f, "@{}", self.revision) } else { Ok(()) }
    }
}

/// Whether this may be an organisation or a name: letters, digits, `-`, `_` and `.`, as the hub allows.
fn is_part(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let at_edge = |c: char| matches!(c, '-' | '.');
    (1..=96).contains(&text.len())
        && text.chars().all(is_allowed)
        && !text.starts_with(at_edge)
        && !text.ends_with(at_edge)
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether this may be a revision, which is also a path below `refs` in the cache.
fn is_revision(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+');
    let is_plain = |part| matches!(part, Component::Normal(_));
    (1..=200).contains(&text.len())
        && text.chars().all(is_allowed)
        && !text.contains("..")
        && Path::new(text).components().all(is_plain)
}
