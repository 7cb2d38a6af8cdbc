//! Names of cached chunks outside the device: the same tokens of the same model have the same name everywhere.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tilewise::{DType, KvCacheConfig, PageLayout};

use crate::model::ModelSource;
use crate::{Error, Result};

/// Tokens of a chunk, whatever the page size, which divides it.
pub const CHUNK_TOKENS: usize = 256;

/// Bytes that a model name may have, so that keys are names of files and objects too.
pub(crate) const NAME_BYTES: usize = 96;

/// What the tokens of a chunk and of all chunks before it hash to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkHash([u8; 32]);

impl ChunkHash {
    /// The hash before the first chunk: that of 8 zero bytes and a zero of 32 bits.
    pub fn root() -> Self {
        Self(*blake3::hash(&[0; 12]).as_bytes())
    }

    /// The hash of the next chunk: that of these 32 bytes and the token ids, each 32 bits, big-endian.
    pub fn then(self, chunk: &[u32; CHUNK_TOKENS]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        let mut bytes = [0; 4 * CHUNK_TOKENS];
        for (bytes, id) in bytes.as_chunks_mut().0.iter_mut().zip(chunk) {
            *bytes = id.to_be_bytes();
        }
        hasher.update(&bytes);
        Self(*hasher.finalize().as_bytes())
    }

    /// The hashes of all whole chunks of `tokens`, in order.
    pub fn chain(tokens: &[u32]) -> impl Iterator<Item = Self> {
        tokens.as_chunks().0.iter().scan(Self::root(), |hash, chunk| {
            *hash = hash.then(chunk);
            Some(*hash)
        })
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkHash({self})")
    }
}

/// Which weights made the keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelDigest([u8; 32]);

impl ModelDigest {
    /// A digest that the caller has computed.
    pub fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest of a model's `config.json` and of all its weights, in the order of the files' names.
    ///
    /// The weights' headers would not do: those of a fine-tuned model are the original's. This reads the weights once.
    ///
    /// # Errors
    /// [`Error::File`] for a folder or file that cannot be read.
    pub fn of(source: &ModelSource) -> Result<Self> {
        let mut hasher = blake3::Hasher::new();
        match source {
            ModelSource::Folder(folder) => {
                digest_file(&mut hasher, &folder.join("config.json"))?;
                let paths = crate::model::weight_files(folder)?;
                paths.iter().try_for_each(|path| digest_file(&mut hasher, path))?;
            }
            // Random weights are a function of the shapes.
            ModelSource::Dummy(folder) => {
                hasher.update(b"dummy");
                digest_file(&mut hasher, &folder.join("config.json"))?;
            }
            ModelSource::Embedded(model) => {
                for bytes in [model.config.as_bytes(), model.weights] {
                    digest_part(&mut hasher, bytes.len() as u64);
                    hasher.update(bytes);
                }
            }
        }
        Ok(Self(*hasher.finalize().as_bytes()))
    }
}

/// A length before every part: else bytes could move from one part to the next unseen.
fn digest_part(hasher: &mut blake3::Hasher, len: u64) {
    hasher.update(&len.to_le_bytes());
}

fn digest_file(hasher: &mut blake3::Hasher, path: &Path) -> Result<()> {
    let failed = |e| Error::file(path.display().to_string(), e);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    digest_part(hasher, file.metadata().map_err(failed)?.len());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(()),
            len => hasher.update(&buffer[..len]),
        };
    }
}

/// All that must be the same where a chunk is written and where it is read: the layout of its bytes, what computed them,
/// the types, the page size and the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    text: Arc<str>,
    chunk_bytes: usize,
}

impl Namespace {
    /// The namespace of a cache of this shape and layout, filled by a model whose weights are in `weights` in memory.
    pub fn new(layout: &PageLayout, config: &KvCacheConfig, weights: DType, model: ModelDigest) -> Self {
        let PageLayout { name, dtype, bytes } = layout;
        let page_size = config.page_size;
        // The name of a layout has those of an adapter and its driver, which may be longer than a file's.
        let mut made_by = blake3::Hasher::new();
        digest_part(&mut made_by, name.len() as u64);
        made_by.update(name.as_bytes()).update(&model.0);
        let made_by = hex(made_by.finalize().as_bytes());
        let text = format!("tilewise-kv/{dtype}/{weights}/{page_size}x{bytes}/{made_by}");
        Self { text: text.into(), chunk_bytes: CHUNK_TOKENS / config.page_size.max(1) * bytes }
    }

    /// Bytes of a chunk's pages.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Makes the keys of one model's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpace {
    namespace: Namespace,
    model: String,
    rank: u32,
    group: u32,
}

impl KeySpace {
    /// Keys of rank 0 and group 0; `model` is the name of the model.
    ///
    /// # Errors
    /// [`Error::Value`] for a name that keys cannot carry.
    pub fn new(namespace: Namespace, model: &str) -> Result<Self> {
        check_name("model name", model)?;
        Ok(Self { namespace, model: model.to_owned(), rank: 0, group: 0 })
    }

    /// Keys of one of the ranks that share a model's heads.
    #[must_use]
    pub fn rank(mut self, rank: u32) -> Self {
        self.rank = rank;
        self
    }

    /// Keys of one of the groups of layers whose caches differ.
    #[must_use]
    pub fn group(mut self, group: u32) -> Self {
        self.group = group;
        self
    }

    /// The key of a chunk. Only who knows the salt finds what was stored with it, and nobody reads it in the key.
    pub fn key(&self, hash: ChunkHash, salt: Option<&str>) -> ChunkKey {
        self.named(hash, salt.map(hashed).as_deref())
    }

    /// The keys of all whole chunks of `tokens`, in order.
    pub fn keys(&self, tokens: &[u32], salt: Option<&str>) -> Vec<ChunkKey> {
        let salt = salt.map(hashed);
        ChunkHash::chain(tokens).map(|hash| self.named(hash, salt.as_deref())).collect()
    }

    fn named(&self, hash: ChunkHash, salt: Option<&str>) -> ChunkKey {
        let Self { namespace, model, rank, group } = self;
        let mut name = format!("{model}@{rank:08x}@{group:x}@{hash}");
        if let Some(salt) = salt {
            name.extend(["@", salt]);
        }
        ChunkKey { namespace: namespace.clone(), name: name.into() }
    }
}

/// A salt as keys carry it.
fn hashed(salt: &str) -> String {
    hex(&blake3::derive_key("tilewise cache salt 1", salt.as_bytes()))
}

/// Names take part in keys between `@`, and in logs.
fn check_name(what: &'static str, name: &str) -> Result<()> {
    let bad = |c: char| c == '@' || c.is_control();
    if name.is_empty() || name.len() > NAME_BYTES || name.contains(bad) {
        let expected = format!("from 1 to {NAME_BYTES} bytes without @ and control characters");
        return Err(Error::value(what, expected, format!("{name:?}")));
    }
    Ok(())
}

/// The name of a chunk in every tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkKey {
    namespace: Namespace,
    name: Arc<str>,
}

impl ChunkKey {
    /// `{model}@{rank:08x}@{group:x}@{hash}[@{salt}]`, the salt hashed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the name is unique in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Bytes of the chunk's pages.
    pub fn chunk_bytes(&self) -> usize {
        self.namespace.chunk_bytes
    }

    /// 32 bytes that stand for namespace and name, where those are too long.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(self.to_string().as_bytes()).as_bytes()
    }
}

impl fmt::Display for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.namespace, self.name)
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
