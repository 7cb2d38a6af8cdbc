//! How an engine is set up.

use tilewise::DType;

use crate::cache::tiers::TierConfig;
use crate::model::ModelSource;
use crate::scheduler::Priority;
use crate::{Error, Result};

/// How much memory the key-value cache takes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum KvBudget {
    /// This share of the device's memory that is left after the weights, but no more than `max_running` full
    /// contexts take.
    Fraction(f64),
    /// This many bytes.
    Bytes(usize),
    /// Room for this many tokens, rounded up to whole pages.
    Tokens(usize),
}

/// What becomes of the pages of a sequence that gives way to an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preemption {
    /// Nothing: what the prefix cache does not have any more is computed again.
    Recompute,
    /// They are copied to the host's memory and back. What there is no room for is computed again.
    Swap {
        /// The memory that they take at most.
        bytes: usize,
    },
}

/// Where drafts come from.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Drafter {
    /// The text itself: what followed when its last tokens were there before.
    PromptLookup,
    /// A smaller model of the same vocabulary. It has keys and values of its own for every token of the cache.
    Model(ModelSource),
}

/// How many drafts a step verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DraftLength {
    /// As many as make the most tokens per second, by what was accepted and what steps took so far; none where they do
    /// not pay.
    Adaptive,
    /// As many as there are, up to `max_drafts` of each sequence.
    Fixed,
}

/// Speculative decoding. It changes when tokens come, and never which.
#[derive(Debug, Clone, PartialEq)]
pub struct Speculation {
    /// Where drafts come from.
    pub drafter: Drafter,
    /// Drafts of a sequence that one step verifies at most, from 1 to 32.
    pub max_drafts: usize,
    /// How many.
    pub length: DraftLength,
}

impl Default for Speculation {
    fn default() -> Self {
        Self { drafter: Drafter::PromptLookup, max_drafts: 8, length: DraftLength::Adaptive }
    }
}

/// The sizes and types of an engine. Start from `EngineConfig::default()`.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Element type of the weights in memory; `None` keeps the file's.
    pub dtype: Option<DType>,
    /// Element type of the cache; `None` takes that of the weights.
    pub kv_dtype: Option<DType>,
    /// Tokens per page: 16, 32, 64 or 128.
    pub page_size: usize,
    /// Size of the cache.
    pub kv: KvBudget,
    /// Tokens that one step computes at most; longer prompts enter in chunks.
    pub max_batch_tokens: usize,
    /// Sequences that run together at most.
    pub max_running: usize,
    /// Whether full pages are kept after their request and shared by prompts that begin alike.
    pub prefix_cache: bool,
    /// Whether what enters and leaves the prefix cache is kept until [`crate::Engine::take_kv_events`] asks for it.
    pub kv_events: bool,
    /// Where the prefix cache is kept besides, fastest first: what the device has lost, a restart included, is fetched
    /// from there instead of being computed.
    pub tiers: Vec<TierConfig>,
    /// What a step serves first.
    pub priority: Priority,
    /// How long a step with sequences that generate may take, as a multiple of one without prompts beside them, above 1:
    /// prompts enter in chunks that fit, by what steps took so far. `None` leaves them the whole step, which is the
    /// highest throughput.
    pub decode_slowdown: Option<f64>,
    /// What becomes of the pages of a sequence that gives way.
    pub preemption: Preemption,
    /// Whether several tokens of a sequence are guessed and verified in one step.
    pub speculation: Option<Speculation>,
    /// Runs this attention kernel or fails, instead of the one that dispatch chooses.
    pub attention_kernel: Option<String>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            dtype: None,
            kv_dtype: None,
            page_size: 32,
            kv: KvBudget::Fraction(0.8),
            max_batch_tokens: 2048,
            max_running: 64,
            prefix_cache: true,
            kv_events: false,
            tiers: Vec::new(),
            priority: Priority::Decode,
            decode_slowdown: None,
            preemption: Preemption::Recompute,
            speculation: None,
            attention_kernel: None,
        }
    }
}

impl EngineConfig {
    /// Checks that every value means something.
    ///
    /// # Errors
    /// [`Error::Value`] that names the first that does not.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [("max_batch_tokens", self.max_batch_tokens), ("max_running", self.max_running)]
        {
            if !(1..=1 << 20).contains(&value) {
                return Err(Error::value(name, "from 1 to 1048576", value));
            }
        }
        if let KvBudget::Fraction(share) = self.kv
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(Error::value("KV memory fraction", "above 0 and at most 1", share));
        }
        if let Some(speculation) = &self.speculation
            && !(1..=32).contains(&speculation.max_drafts)
        {
            return Err(Error::value("max_drafts", "from 1 to 32", speculation.max_drafts));
        }
        if let Some(slowdown) = self.decode_slowdown {
            if !(slowdown > 1.0 && slowdown.is_finite()) {
                return Err(Error::value("decode_slowdown", "above 1", slowdown));
            }
            if self.priority == Priority::Prefill {
                return Err(Error::value("decode_slowdown", "none where prompts are served first", slowdown));
            }
        }
        if self.kv_events && !self.prefix_cache {
            return Err(Error::value("KV events", "none without the prefix cache", "some"));
        }
        if !self.tiers.is_empty() && !self.prefix_cache {
            return Err(no_tiers());
        }
        for dtype in [self.dtype, self.kv_dtype].into_iter().flatten() {
            if !matches!(dtype, DType::F32 | DType::F16 | DType::Bf16) {
                return Err(Error::value("dtype", "f32, f16 or bf16", dtype));
            }
        }
        Ok(())
    }
}

/// What tiers keep is found through the prefix cache.
pub(crate) fn no_tiers() -> Error {
    Error::value("cache tiers", "none without the prefix cache", "some")
}
