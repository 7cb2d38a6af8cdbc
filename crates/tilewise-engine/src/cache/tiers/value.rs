//! Stored values: a header that says what they are, the key, the pages.
//!
//! All numbers are little-endian: magic `TWKV`, schema version (u32), bytes of the key (u32), bytes of the pages (u64),
//! blake3 of all else (32 bytes); then the key as text, then the pages.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::super::keys::ChunkKey;

const MAGIC: [u8; 4] = *b"TWKV";
const SCHEMA: u32 = 1;

/// Bytes before the checksum, and of the whole header.
const FIXED: usize = 20;
const HEADER: usize = FIXED + 32;

/// The bytes that a tier keeps, which nobody has checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Arc<Vec<u8>>);

/// What is wrong with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// It is shorter or longer than it says.
    Length,
    /// It is another schema's, another key's, or none of ours.
    Foreign,
    /// Its checksum is not that of its bytes.
    Checksum,
}

/// The pages of a chunk, checked.
#[derive(Clone)]
pub struct Chunk {
    bytes: Arc<Vec<u8>>,
    pages: Range<usize>,
}

impl Value {
    /// The pages of a chunk with their header, to be kept.
    pub fn seal(key: &ChunkKey, pages: &[u8]) -> Self {
        let name = key.to_string();
        let mut bytes = Vec::with_capacity(HEADER + name.len() + pages.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&SCHEMA.to_le_bytes());
        bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(pages.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&[0; HEADER - FIXED]);
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(pages);
        let checksum = checksum(&bytes);
        bytes[FIXED..HEADER].copy_from_slice(&checksum);
        Self(Arc::new(bytes))
    }

    /// What a tier returned.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(Arc::new(bytes))
    }

    /// All of it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Bytes of the sealed value of a key.
    pub(super) fn sealed_len(key: &ChunkKey) -> usize {
        HEADER + key.to_string().len() + key.chunk_bytes()
    }

    /// The pages, if this is the value that was sealed under the key.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, key: &ChunkKey) -> Result<Chunk, Flaw> {
        let bytes = self.as_bytes();
        let name = key.to_string();
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Err(Flaw::Length) };
        let mut want = [0; FIXED];
        want[..4].copy_from_slice(&MAGIC);
        want[4..8].copy_from_slice(&SCHEMA.to_le_bytes());
        want[8..12].copy_from_slice(&(name.len() as u32).to_le_bytes());
        want[12..].copy_from_slice(&(key.chunk_bytes() as u64).to_le_bytes());
        if header[..FIXED] != want || !rest.starts_with(&name.as_bytes()[..name.len().min(rest.len())]) {
            return Err(Flaw::Foreign);
        }
        if rest.len() != name.len() + key.chunk_bytes() {
            return Err(Flaw::Length);
        }
        if checksum(bytes) != header[FIXED..] {
            return Err(Flaw::Checksum);
        }
        Ok(Chunk { bytes: self.0.clone(), pages: HEADER + name.len()..bytes.len() })
    }
}

/// The checksum of a value of at least a header.
fn checksum(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..FIXED]);
    hasher.update(&bytes[HEADER..]);
    *hasher.finalize().as_bytes()
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Value({} bytes)", self.0.len())
    }
}

impl Chunk {
    /// Pages that were never in a value.
    pub(super) fn unsealed(bytes: Arc<Vec<u8>>) -> Self {
        let pages = 0..bytes.len();
        Self { bytes, pages }
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.pages.clone()]
    }
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chunk({} bytes)", self.len())
    }
}
