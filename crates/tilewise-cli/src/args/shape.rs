//! Shapes of attention.

use clap::{Args, ValueEnum};
use tilewise::DType;

use super::TYPES;
use super::values::dtype;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// Batch, heads, tokens, head_dim
    Dense,
    /// Tokens, heads, head_dim: sequence after sequence
    Ragged,
    /// Keys and values in pages
    Paged,
}

impl Layout {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Ragged => "ragged",
            Self::Paged => "paged",
        }
    }
}

/// Shapes of attention; several values separated by commas sweep.
#[derive(Debug, Clone, Args)]
pub(crate) struct ShapeArgs {
    /// Sequences
    #[arg(long, default_value = "1", value_delimiter = ',', value_name = "N")]
    pub(crate) batch: Vec<usize>,
    /// Query heads
    #[arg(long, default_value = "16", value_delimiter = ',', value_name = "N")]
    pub(crate) qo_heads: Vec<usize>,
    /// Key and value heads
    #[arg(long, default_value = "8", value_delimiter = ',', value_name = "N")]
    pub(crate) kv_heads: Vec<usize>,
    /// Queries per sequence
    #[arg(long, default_value = "2048", value_delimiter = ',', value_name = "N")]
    pub(crate) q_len: Vec<usize>,
    /// Keys per sequence; as many as queries unless given
    #[arg(long, value_delimiter = ',', value_name = "N")]
    pub(crate) kv_len: Vec<usize>,
    /// Elements per head
    #[arg(long, default_value = "128", value_delimiter = ',', value_name = "N")]
    pub(crate) head_dim: Vec<usize>,
    /// A query sees no key after its own position
    #[arg(long)]
    pub(crate) causal: bool,
    /// A query sees at most this many keys before its own position and, without --causal, after it
    #[arg(long, value_delimiter = ',', value_name = "N")]
    pub(crate) window: Vec<u32>,
    /// Element types of queries, keys and values
    #[arg(long, default_value = "f32", value_delimiter = ',', value_parser = dtype, value_name = TYPES)]
    pub(crate) dtype: Vec<DType>,
    /// Element types of keys and values, where they differ from the queries'
    #[arg(long, value_delimiter = ',', value_parser = dtype, value_name = TYPES)]
    pub(crate) kv_dtype: Vec<DType>,
    /// Where the keys and values are
    #[arg(long, default_value = "dense", value_enum, value_delimiter = ',')]
    pub(crate) layout: Vec<Layout>,
    /// Tokens per page of the paged layout
    #[arg(long, default_value = "16", value_delimiter = ',', value_name = "16|32|64|128")]
    pub(crate) page_size: Vec<usize>,
}
