//! Devices, models and how they are served: what several commands take.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values::{Slowdown, WeightDType, bytes, mode, slowdown, weight_dtype};

#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArgs {
    /// Where to compute: cpu, gpu, gpu:N, or auto, which takes a GPU where there is a real one
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    pub(crate) device: String,
    /// Threads of the cpu; one per core unless given
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PolicyArgs {
    /// Choose attention kernels by what tilewise tune wrote on this device
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
}

/// Which model.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ModelArgs {
    /// A model: its folder, or org/name[@revision] on the Hugging Face hub; the embedded one unless given
    #[arg(long = "model", visible_alias = "model-path", value_name = "DIR|ORG/NAME")]
    pub(crate) path: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub
    #[arg(long, value_name = "REV")]
    pub(crate) revision: Option<String>,
}

/// Several tokens of a sequence in one step. The text is the same.
#[derive(Debug, Clone, Args)]
pub(crate) struct SpeculationArgs {
    /// Guess tokens and verify several in a step: by what followed before in the text (lookup), by the embedded model's
    /// draft (embedded) or by a smaller model, its folder or org/name
    #[arg(long, default_value = "off", value_name = "off|lookup|embedded|MODEL")]
    pub(crate) speculate: PathBuf,
    /// Tokens of a sequence that are guessed at most
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(crate) max_drafts: usize,
    /// Guesses of a sequence that are verified side by side at most, by lookup
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) draft_branches: usize,
    /// Guess --max-drafts tokens each time; unless given, fewer where guesses are often wrong
    #[arg(long)]
    pub(crate) fixed_drafts: bool,
}

/// Where the prefix cache is kept besides the device: fastest first, the order in which they stand here.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cache tiers")]
pub(crate) struct TierArgs {
    /// Keep the prefix cache in the host's memory too, up to this size
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    pub(crate) host_cache: Option<u64>,
    /// Keep the prefix cache in this folder too, where later runs find it
    #[arg(long, value_name = "DIR")]
    pub(crate) disk_cache: Option<PathBuf>,
    /// Size that the folder may have: bytes, or with K, M, G or T
    #[arg(long, default_value = "16G", value_parser = bytes, value_name = "SIZE")]
    pub(crate) disk_cache_size: u64,
    /// Permissions of its files: 600 is for you alone, since files give prompts back; 660 shares the folder with its group
    #[arg(long, default_value = "600", value_parser = mode, value_name = "MODE")]
    pub(crate) disk_cache_mode: u32,
    /// Keep the prefix cache on a server that speaks RESP, such as Redis, too
    #[arg(long, value_name = "redis://HOST[:PORT]")]
    pub(crate) resp_cache: Option<String>,
    /// Keep the prefix cache as objects too: in a bucket, or in a folder that exists
    #[arg(long, value_name = "s3://BUCKET|DIR")]
    pub(crate) object_cache: Option<String>,
    /// Region of the bucket
    #[arg(long, default_value = "us-east-1", value_name = "NAME")]
    pub(crate) s3_region: String,
    /// Where the bucket is, if not at Amazon
    #[arg(long, value_name = "http[s]://HOST[:PORT]")]
    pub(crate) s3_endpoint: Option<String>,
    /// File with key id and secret, each on a line; the role of the machine unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) s3_credentials: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadFormat {
    /// The folder's safetensors
    Auto,
    /// Random weights for the folder's config.json, which needs no other file but, to serve, a tokenizer.json
    Dummy,
}

/// A model and how an engine serves it.
#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Where the weights come from
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) load_format: LoadFormat,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
    #[command(flatten)]
    pub(crate) speculation: SpeculationArgs,
    /// Element type of the weights in memory; auto is the file's
    #[arg(long, default_value = "auto", value_parser = weight_dtype, value_name = "auto|f32|f16|bf16")]
    pub(crate) dtype: WeightDType,
    /// Sequences that run together at most
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) max_running: usize,
    /// Tokens that one step computes at most
    #[arg(long, default_value_t = 2048, value_name = "N")]
    pub(crate) chunked_prefill_size: usize,
    /// How many times slower a step may become for requests that generate when it computes prompts too; off sets no bound.
    /// Unless given, 2 with serve and off with benchmarks
    #[arg(long, value_parser = slowdown, value_name = "X|off")]
    pub(crate) decode_slowdown: Option<Slowdown>,
    /// Tokens that the cache holds, in whole pages; as many as fit unless given
    #[arg(long, value_name = "N")]
    pub(crate) kv_tokens: Option<usize>,
    /// Memory for the pages of requests that give way to older ones: they are computed again unless given
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    pub(crate) swap_space: Option<u64>,
    /// Compute every prompt whole
    #[arg(long)]
    pub(crate) disable_radix_cache: bool,
    /// Publish what enters and leaves the prefix cache here, over ZeroMQ as vLLM does
    #[arg(long, value_name = "tcp://HOST:PORT")]
    pub(crate) kv_events: Option<String>,
    /// Tell again here what a subscriber missed
    #[arg(long, value_name = "tcp://HOST:PORT", requires = "kv_events")]
    pub(crate) kv_events_replay: Option<String>,
    #[command(flatten)]
    pub(crate) tiers: TierArgs,
}
