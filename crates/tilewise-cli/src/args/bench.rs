//! What the benchmarks take.

use std::path::PathBuf;

use clap::Args;

use super::values::{WeightDType, range, weight_dtype};
use super::{DeviceArgs, EngineArgs, Format, LoadFormat, ModelArgs, PolicyArgs, ShapeArgs};

#[derive(Debug, Args)]
pub(crate) struct BenchAttentionArgs {
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    /// First keys that all sequences of a batch have in the same pages: whole ones of the paged layout
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) shared_prefix: usize,
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
pub(crate) struct BenchOneBatchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Where the weights come from
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) load_format: LoadFormat,
    /// Sequences per batch
    #[arg(long, default_value = "1", num_args = 1.., value_name = "N")]
    pub(crate) batch_size: Vec<usize>,
    /// Tokens of each prompt; unless given, 1024 or what the model's context leaves beside --output-len
    #[arg(long, num_args = 1.., value_name = "N")]
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
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
}
