//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tilewise::DType;

/// Exact attention and language models on your own machine.
#[derive(Debug, Parser)]
#[command(name = "tilewise", version, arg_required_else_help = true, disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Continue a text; with no model given, by the embedded one, which knows Python
    Generate(GenerateArgs),
    /// Measure a kernel
    #[command(subcommand)]
    Bench(Bench),
    /// Measure a model's prefill and decode, one batch at a time
    BenchOneBatch(BenchOneBatchArgs),
    /// Measure a trace of requests through the engine: throughput, latencies, cache hits
    BenchServingOffline(BenchServingOfflineArgs),
    /// List the devices that --device can name
    Devices(DevicesArgs),
    /// Say which attention kernel a shape gets, by which rule and record
    Explain(ExplainArgs),
    /// Say what is in a model's folder, and how many tokens fit in memory
    Inspect(InspectArgs),
    /// Measure a device's attention kernels and write down which to use when
    Tune(TuneArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Measure every attention kernel on a shape, after checking its answer
    Attention(BenchAttentionArgs),
}

/// The element types that models and kernels take.
const TYPES: &str = "f32|f16|bf16";

/// Reads a command line.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Command, clap::Error> {
    CommandLine::try_parse_from(args).map(|line| line.command)
}

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

/// Several tokens of a sequence in one step. The text is the same.
#[derive(Debug, Clone, Args)]
pub(crate) struct SpeculationArgs {
    /// Guess tokens and verify several in a step: by what followed before in the text (lookup), by the embedded model's
    /// draft (embedded) or by a smaller model's folder
    #[arg(long, default_value = "off", value_name = "off|lookup|embedded|DIR")]
    pub(crate) speculate: PathBuf,
    /// Tokens of a sequence that are guessed at most
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(crate) max_drafts: usize,
    /// Guesses of a sequence that are verified side by side at most, by lookup
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) draft_branches: usize,
    /// Always guess as many, in place of as many as pay
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
pub(crate) enum Format {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The text to continue
    #[arg(required_unless_present = "token_ids")]
    pub(crate) prompt: Option<String>,
    /// A Hugging Face folder; the embedded model unless given
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
    #[command(flatten)]
    pub(crate) speculation: SpeculationArgs,
    /// Element type of the weights in memory; auto is the file's
    #[arg(long, default_value = "auto", value_parser = weight_dtype, value_name = "auto|f32|f16|bf16")]
    pub(crate) dtype: WeightDType,
    /// Tokens to generate at most; 128 or what the model's context holds, unless given
    #[arg(long, value_name = "N")]
    pub(crate) max_new_tokens: Option<usize>,
    /// Divides the logits; 0 takes the most probable token
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "T")]
    pub(crate) temperature: f32,
    /// Draw among the tokens whose probability is at least P of the largest
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "P")]
    pub(crate) min_p: f32,
    /// Draw among the K most probable tokens only
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Draw among the fewest tokens whose probabilities reach P
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true, value_name = "P")]
    pub(crate) top_p: f32,
    /// Divides the logits of tokens that were there, or multiplies those below zero; 1 changes nothing
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true, value_name = "R")]
    pub(crate) repetition_penalty: f32,
    /// Subtracted from the logits of tokens that were generated
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "X")]
    pub(crate) presence_penalty: f32,
    /// Subtracted as often as the token was generated
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "X")]
    pub(crate) frequency_penalty: f32,
    /// Selects the random stream
    #[arg(long, default_value_t = 0, value_name = "S")]
    pub(crate) seed: u64,
    /// End before this text, which is not shown; may be given several times
    #[arg(long, allow_hyphen_values = true, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Write JSON that this file's JSON schema describes
    #[arg(long, value_name = "FILE")]
    pub(crate) json_schema: Option<PathBuf>,
    /// Put the prompt into the model's chat template, as the user's turn
    #[arg(long, conflicts_with = "token_ids")]
    pub(crate) chat: bool,
    /// Token ids to continue, in place of a text
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt", value_name = "1,2,3")]
    pub(crate) token_ids: Option<Vec<u32>>,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) tiers: TierArgs,
}

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

#[derive(Debug, Args)]
pub(crate) struct BenchAttentionArgs {
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    /// Only this kernel; the scalar reference is left out of large shapes unless it is asked for
    #[arg(long, value_name = "NAME")]
    pub(crate) kernel: Option<String>,
    /// Seconds to measure each shape for
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    pub(crate) budget: f64,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
    /// Write a report with plots that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    /// Ask for this kernel
    #[arg(long, value_name = "NAME")]
    pub(crate) kernel: Option<String>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A Hugging Face folder; the embedded model unless given
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct TuneArgs {
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// The file to write, for --policy
    #[arg(long, default_value = "policy.json", value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Queries per sequence, each a row of its KV head
    #[arg(long, default_value = "1,2,4,8,16,32,64", value_delimiter = ',', value_name = "N")]
    pub(crate) rows: Vec<usize>,
    /// Keys per sequence
    #[arg(long, default_value = "512,4096,16384", value_delimiter = ',', value_name = "N")]
    pub(crate) kv_len: Vec<usize>,
    /// Elements per head
    #[arg(long, default_value = "64,128", value_delimiter = ',', value_name = "N")]
    pub(crate) head_dim: Vec<usize>,
    /// Element types of keys and values
    #[arg(long, default_value = "bf16,f16,f32", value_delimiter = ',', value_parser = dtype, value_name = TYPES)]
    pub(crate) kv_dtype: Vec<DType>,
    /// Sequences
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub(crate) batch: usize,
    /// Seconds to measure each shape for
    #[arg(long, default_value_t = 0.2, value_name = "S")]
    pub(crate) budget: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadFormat {
    /// The folder's safetensors
    Auto,
    /// Random weights for the folder's config.json, which needs no other file
    Dummy,
}

#[derive(Debug, Args)]
pub(crate) struct BenchOneBatchArgs {
    /// A Hugging Face folder; the embedded model unless given
    #[arg(long, visible_alias = "model", value_name = "DIR")]
    pub(crate) model_path: Option<PathBuf>,
    /// Where the weights come from
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) load_format: LoadFormat,
    /// Sequences per batch
    #[arg(long, default_value = "1", num_args = 1.., value_name = "N")]
    pub(crate) batch_size: Vec<usize>,
    /// Tokens of each prompt
    #[arg(long, default_value = "1024", num_args = 1.., value_name = "N")]
    pub(crate) input_len: Vec<usize>,
    /// Tokens of the shortest prompt: those of a batch are spread evenly from it to --input-len
    #[arg(long, value_name = "N")]
    pub(crate) min_input_len: Option<usize>,
    /// Tokens to generate
    #[arg(long, default_value = "16", num_args = 1.., value_name = "N")]
    pub(crate) output_len: Vec<usize>,
    /// Name of this run in the results
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub(crate) run_name: String,
    /// File that a JSON line per combination is appended to
    #[arg(long, default_value = "result.jsonl", value_name = "FILE")]
    pub(crate) result_filename: PathBuf,
    /// Show logits and texts of fixed prompts, whole and in two parts, instead of measuring
    #[arg(long)]
    pub(crate) correctness_test: bool,
    /// Tokens of the first part in --correctness-test
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub(crate) cut_len: usize,
    /// Print every Nth decode step besides the first five
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) log_decode_step: usize,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
    /// Element type of the weights in memory; auto is the file's
    #[arg(long, default_value = "auto", value_parser = weight_dtype, value_name = "auto|f32|f16|bf16")]
    pub(crate) dtype: WeightDType,
    /// Force this attention kernel
    #[arg(long, value_name = "NAME")]
    pub(crate) attention_backend: Option<String>,
    /// Tokens that one step computes at most
    #[arg(long, default_value_t = 2048, value_name = "N")]
    pub(crate) chunked_prefill_size: usize,
    /// Accepted for compatibility: prompts are computed and never looked up here
    #[arg(long)]
    pub(crate) disable_radix_cache: bool,
    /// Devices to split the model over; only 1 is possible
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) tp_size: usize,
}

#[derive(Debug, Args)]
pub(crate) struct BenchServingOfflineArgs {
    /// synthetic, or a file with a JSON object per line: arrival_s, prompt_ids or prompt, max_new_tokens, cache_salt,
    /// ignore_eos
    #[arg(long, default_value = "synthetic", value_name = "synthetic|FILE")]
    pub(crate) trace: PathBuf,
    /// Requests of the synthetic trace
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) num_requests: usize,
    /// Prefixes that the synthetic requests share
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub(crate) prefixes: usize,
    /// Tokens of a shared prefix; 0 for none
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub(crate) prefix_len: usize,
    /// Tokens of a prompt after its prefix
    #[arg(long, default_value = "16,128", value_parser = range, value_name = "N|FROM,TO")]
    pub(crate) input_len: (usize, usize),
    /// Tokens to generate
    #[arg(long, default_value = "16,64", value_parser = range, value_name = "N|FROM,TO")]
    pub(crate) output_len: (usize, usize),
    /// Synthetic requests per second, at random times; all at once unless given
    #[arg(long, value_name = "R")]
    pub(crate) request_rate: Option<f64>,
    /// Selects the synthetic trace
    #[arg(long, default_value_t = 0, value_name = "S")]
    pub(crate) seed: u64,
    /// A Hugging Face folder; the embedded model unless given
    #[arg(long, visible_alias = "model-path", value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
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
    /// Prompts slow requests that generate down so many times at most; they take whole steps unless given
    #[arg(long, value_name = "X")]
    pub(crate) decode_slowdown: Option<f64>,
    /// Tokens that the cache holds; as many as fit unless given
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
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) tiers: TierArgs,
}

/// Parses `N` or `FROM,TO`.
fn range(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| text.trim().parse().map_err(|_| format!("{text:?} is no number"));
    match text.split_once(',') {
        Some((from, to)) => Ok((number(from)?, number(to)?)),
        None => number(text).map(|n| (n, n)),
    }
}

/// Parses a number of bytes, in units of 1, K, M, G or T, each 1024 of the one before.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, power) = match text.char_indices().last().map(|(at, c)| (at, c.to_ascii_uppercase())) {
        Some((at, unit @ ('K' | 'M' | 'G' | 'T'))) => (&text[..at], 1 + "KMGT".find(unit).unwrap_or(0)),
        _ => (text, 0),
    };
    let number: Option<u64> = digits.trim().parse().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << (10 * power)));
    bytes.ok_or_else(|| format!("{text:?} is no size, such as 512M or 16G"))
}

/// An element type of weights, or that of the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightDType(pub(crate) Option<DType>);

fn weight_dtype(name: &str) -> Result<WeightDType, String> {
    if name == "auto" { Ok(WeightDType(None)) } else { dtype(name).map(|dtype| WeightDType(Some(dtype))) }
}

/// Parses one of [`TYPES`].
fn dtype(name: &str) -> Result<DType, String> {
    name.parse().map_err(|error: tilewise::Error| error.to_string())
}
