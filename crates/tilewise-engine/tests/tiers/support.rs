//! Keys, chunks whose bytes tell which they are, and stacks to put them through.

use std::time::Duration;

use tilewise::{DType, KvCacheConfig, PageLayout};
use tilewise_engine::cache::keys::{ChunkHash, ChunkKey, KeySpace, ModelDigest, Namespace};
use tilewise_engine::cache::tiers::{CacheTier, Fetched, Poll, Source, Ticket, TierStats, Tiers, Value};

/// More than any test waits for.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// A small generator: SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }
}

/// The chunks of one prompt, in a cache of pages of 128 tokens.
pub(crate) struct Chunks {
    space: KeySpace,
    keys: Vec<ChunkKey>,
}

impl Chunks {
    /// The keys of one prefix of `count` chunks of `bytes`, an even number.
    pub(crate) fn new(count: usize, bytes: usize) -> Self {
        let config = KvCacheConfig {
            num_layers: 1,
            num_pages: 2,
            page_size: 128,
            num_kv_heads: 1,
            head_dim: 8,
            value_dim: 8,
            dtype: DType::F32,
        };
        let layout = PageLayout { name: "test".to_owned(), dtype: DType::F32, bytes: bytes / 2 };
        let digest = ModelDigest::from_bytes([1; 32]);
        let space = KeySpace::new(Namespace::new(&layout, &config, DType::F32, digest), "org/model").unwrap();
        let tokens: Vec<u32> = (0..256 * count as u32).collect();
        let keys = space.keys(&tokens, None);
        Self { space, keys }
    }

    /// The keys of another model in the same namespace, with a salt or without.
    pub(crate) fn named(&self, model: &str, salt: Option<&str>) -> ChunkKey {
        let space = KeySpace::new(self.keys[0].namespace().clone(), model).unwrap();
        space.key(ChunkHash::root(), salt)
    }

    pub(crate) fn keys(&self) -> Vec<ChunkKey> {
        self.keys.clone()
    }

    pub(crate) fn key(&self, index: usize) -> ChunkKey {
        self.keys[index].clone()
    }

    /// A key of the same cache under which nothing was stored.
    pub(crate) fn unknown(&self) -> ChunkKey {
        self.space.key(ChunkHash::root(), Some("nobody"))
    }

    /// Bytes that only this chunk has.
    pub(crate) fn pages(&self, index: usize) -> Vec<u8> {
        let mut random = Random::new(index as u64 + 1);
        let mut bytes = Vec::with_capacity(self.keys[0].chunk_bytes());
        while bytes.len() < self.keys[0].chunk_bytes() {
            bytes.extend_from_slice(&random.bits().to_le_bytes());
        }
        bytes.truncate(self.keys[0].chunk_bytes());
        bytes
    }

    pub(crate) fn value(&self, index: usize) -> Value {
        Value::seal(&self.keys[index], &self.pages(index))
    }

    /// Whether a tier has a chunk, which must then be the right one.
    pub(crate) fn is_in(&self, tier: &mut dyn CacheTier, index: usize) -> bool {
        let Some(value) = tier.load(&self.keys[index]).unwrap() else { return false };
        let chunk = value.open(&self.keys[index]).unwrap_or_else(|flaw| panic!("chunk {index}: {flaw:?}"));
        assert_eq!(*chunk, self.pages(index), "chunk {index}");
        true
    }

    /// Hands over chunks and waits until they are stored.
    pub(crate) fn store(&self, tiers: &Tiers, indices: impl IntoIterator<Item = usize>) {
        for index in indices {
            assert!(tiers.demote(self.key(index), self.pages(index)).unwrap(), "chunk {index} was dropped");
            assert!(tiers.flush(LONG), "chunk {index} was not stored in time");
        }
    }

    /// Fetches the whole prefix; checks that what comes is a prefix with the right bytes. Returns who had each chunk.
    pub(crate) fn fetch(&self, tiers: &Tiers) -> Vec<Source> {
        let mut ticket = tiers.fetch(self.keys());
        let fetched = all(&mut ticket);
        for (index, fetched) in fetched.iter().enumerate() {
            assert_eq!(fetched.index, index, "chunks come in the order of the prefix");
            assert_eq!(*fetched.bytes, self.pages(index), "chunk {index} from {}", fetched.source);
        }
        fetched.iter().map(|fetched| fetched.source).collect()
    }
}

/// All that a ticket gives.
pub(crate) fn all(ticket: &mut Ticket) -> Vec<Fetched> {
    let mut chunks = Vec::new();
    loop {
        match ticket.wait(LONG) {
            Poll::Chunk(fetched) => chunks.push(fetched),
            Poll::End => return chunks,
            Poll::Pending => panic!("a ticket did not come to its end"),
        }
    }
}

pub(crate) fn stack(tiers: Vec<Box<dyn CacheTier>>) -> Tiers {
    Tiers::new(tiers, 64 << 20).unwrap()
}

/// What the tier of a kind did.
pub(crate) fn stats(tiers: &Tiers, source: Source) -> TierStats {
    tiers.stats().tiers.into_iter().find(|stats| stats.source == source).unwrap()
}
