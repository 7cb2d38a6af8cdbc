//! Who may come in: keys, whose they are, and what they may do.

use std::sync::Arc;

use subtle::ConstantTimeEq;

use crate::{ServerConfig, ServerError};

/// What shows the work of all, or ends it.
const ADMINISTRATION: [&str; 4] = ["/flush_cache", "/metrics", "/v1/loads", "/get_load"];

/// A key with the name of who has it.
#[derive(Clone, PartialEq, Eq)]
pub struct NamedKey {
    /// Whose it is: visible ASCII characters.
    pub name: String,
    /// What its holder presents.
    pub key: String,
    /// Keys of one group share cached prefixes; a key is a group of its own unless given.
    pub group: Option<String>,
}

impl std::fmt::Debug for NamedKey {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NamedKey({})", self.name)
    }
}

impl NamedKey {
    /// Reads a file of keys: on each line a name, a key and, if it shares cached prefixes, a group, with blanks between
    /// them. Empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// [`ServerError::Config`] that names the line.
    pub fn read(text: &str) -> Result<Vec<Self>, ServerError> {
        let mut keys: Vec<Self> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let refuse = |why: &str| ServerError::Config(format!("line {} of the keys: {why}", number + 1));
            let (name, key, group) = match words[..] {
                [] => continue,
                [word, ..] if word.starts_with('#') => continue,
                [name, key] => (name, key, None),
                [name, key, group] => (name, key, Some(group.to_owned())),
                _ => return Err(refuse("a name, a key and perhaps a group must stand there")),
            };
            if !line.trim().bytes().all(|b| b.is_ascii_graphic() || b == b' ' || b == b'\t') {
                return Err(refuse("names and keys are of visible ASCII characters"));
            }
            if keys.iter().any(|other| other.name == name || other.key == key) {
                return Err(refuse("the name or the key has stood there before"));
            }
            keys.push(Self { name: name.to_owned(), key: key.to_owned(), group });
        }
        Ok(keys)
    }
}

/// Who asks, by the key that was presented.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tenant {
    /// `None` where keys have no names.
    pub(crate) name: Option<Arc<str>>,
    /// Whose cached prefixes it shares.
    group: Option<Arc<str>>,
    is_admin: bool,
}

impl Tenant {
    /// The name of one of its requests among those of all.
    pub(crate) fn own(&self, request: &str) -> String {
        match &self.name {
            Some(name) => format!("{name} {request}"),
            None => request.to_owned(),
        }
    }

    /// The salt of its cached prefixes: the same on every server and after every start, and no other group's.
    pub(crate) fn salt(&self, given: Option<String>) -> Option<String> {
        let Some(group) = &self.group else { return given };
        let text = format!("{group} {}", given.unwrap_or_default());
        Some(blake3::Hash::from_bytes(blake3::derive_key("tilewise tenant 1", text.as_bytes())).to_string())
    }

    /// Whether it may see the work of all, and end it.
    pub(crate) fn may_administer(&self, config: &ServerConfig) -> bool {
        self.is_admin || config.admin_api_key.is_none() && self.name.is_none()
    }
}

impl ServerConfig {
    /// Whether nobody comes in without a key.
    pub(crate) fn asks_for_keys(&self) -> bool {
        self.api_key.is_some() || self.admin_api_key.is_some() || !self.api_keys.is_empty()
    }

    /// Who has one of these keys. The time that this takes depends on the lengths of the keys alone.
    pub(crate) fn tenant(&self, given: &[&str]) -> Option<Tenant> {
        let is_given = |key: &String| {
            given
                .iter()
                .fold(false, |found, given| found | bool::from(key.as_bytes().ct_eq(given.as_bytes())))
        };
        let mut tenant = self.api_key.as_ref().filter(|key| is_given(key)).map(|_| Tenant::default());
        for NamedKey { name, key, group } in &self.api_keys {
            if is_given(key) {
                let group = Some(group.as_ref().unwrap_or(name).as_str().into());
                tenant = Some(Tenant { name: Some(name.as_str().into()), group, is_admin: false });
            }
        }
        if self.admin_api_key.as_ref().is_some_and(is_given) {
            tenant = Some(Tenant { is_admin: true, ..Tenant::default() });
        }
        tenant
    }
}

/// Whether a path shows the work of all, or ends it.
pub(crate) fn is_administration(path: &str) -> bool {
    ADMINISTRATION.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(keys: &str) -> ServerConfig {
        let mut config = ServerConfig::new(([127, 0, 0, 1], 0).into(), "m");
        config.api_keys = NamedKey::read(keys).unwrap();
        config
    }

    #[test]
    fn a_file_of_keys_is_read_line_by_line_and_refused_by_line() {
        let keys = NamedKey::read("# keys\n\nann  s3cret\nbob\tother team\n").unwrap();
        let key = |name: &str, key: &str, group: Option<&str>| NamedKey {
            name: name.to_owned(),
            key: key.to_owned(),
            group: group.map(str::to_owned),
        };
        assert_eq!(keys, [key("ann", "s3cret", None), key("bob", "other", Some("team"))]);
        for (text, line) in [("ann", 1), ("a b\nc b", 2), ("a b\n#\na c", 3), ("a b c d", 1), ("a \u{e9}", 1)]
        {
            let error = NamedKey::read(text).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line} ")) && !error.contains("s3cret"), "{error}");
        }
        assert!(!format!("{keys:?}").contains("s3cret"));
    }

    #[test]
    fn a_key_has_names_and_a_salt_of_its_own_or_its_groups() {
        let mut config = config("ann a\nbob b team\ncay c team");
        let tenant = |config: &ServerConfig, key: &str| config.tenant(&["", key]).unwrap();
        let [ann, bob, cay] = ["a", "b", "c"].map(|key| tenant(&config, key));
        assert_eq!(bob.salt(None), cay.salt(None));
        assert_ne!(ann.salt(None), bob.salt(None));
        assert_ne!(bob.salt(None), bob.salt(Some("x".to_owned())));
        assert!(ann.salt(None).unwrap().len() == 64 && ann.own("x") != bob.own("x"));
        assert_eq!(config.tenant(&["d"]), None);
        assert!(!ann.may_administer(&config));
        // A key without a name is everybody's who has it.
        config.api_key = Some("plain".to_owned());
        let plain = tenant(&config, "plain");
        assert_eq!((plain.salt(None), plain.own("x")), (None, "x".to_owned()));
        assert!(plain.may_administer(&config));
        config.admin_api_key = Some("admin".to_owned());
        assert!(tenant(&config, "admin").may_administer(&config) && !plain.may_administer(&config));
    }
}
