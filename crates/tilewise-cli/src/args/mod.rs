//! The command line.

mod bench;
mod chat;
mod engine;
mod generate;
mod run;
mod sampling;
mod serve;
mod shape;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use tilewise::DType;

pub(crate) use bench::{BenchAttentionArgs, BenchOneBatchArgs, BenchServingOfflineArgs};
pub(crate) use chat::ChatArgs;
pub(crate) use engine::{
    DeviceArgs, EngineArgs, LoadFormat, ModelArgs, PolicyArgs, SpeculationArgs, TierArgs,
};
pub(crate) use generate::GenerateArgs;
pub(crate) use run::RunArgs;
pub(crate) use sampling::{ConversationArgs, SamplingArgs};
pub(crate) use serve::{LogFormat, ServeArgs};
pub(crate) use shape::{Layout, ShapeArgs};
use values::dtype;

/// Exact attention and language models on your own machine.
#[derive(Debug, Parser)]
#[command(name = "tilewise", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Continue a text; with no model given, by the embedded one, which knows Python
    Generate(GenerateArgs),
    /// Talk with a model in the terminal; with no model given, with the embedded one, which knows Python
    Chat(ChatArgs),
    /// Measure a kernel
    #[command(subcommand)]
    Bench(Bench),
    /// Measure a model's prefill and decode, one batch at a time
    BenchOneBatch(BenchOneBatchArgs),
    /// Measure a trace of requests through the engine: throughput, latencies, cache hits
    BenchServingOffline(BenchServingOfflineArgs),
    /// Print what the documentation says of this program
    #[command(hide = true)]
    Docs(DocsArgs),
    /// List the devices that --device can name
    Devices(DevicesArgs),
    /// Say which attention kernel a shape gets, by which rule and record
    Explain(ExplainArgs),
    /// Say what is in a model's folder, and how many tokens fit in memory
    Inspect(InspectArgs),
    /// Serve a model over HTTP; with no model given, the embedded one
    Serve(ServeArgs),
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

/// The command that a command line names, as far as it names one, and its words.
pub(crate) fn named(args: &[OsString]) -> (clap::Command, String) {
    let (mut command, mut words) = (command(), "tilewise".to_owned());
    for word in args.iter().skip(1) {
        let Some(inner) = command.find_subcommand(word) else { break };
        words.extend([" ", inner.get_name()]);
        command = inner.clone();
    }
    (command, words)
}

/// Reads a command line.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Command, clap::Error> {
    CommandLine::try_parse_from(args).map(|line| line.command)
}

/// Whose sampling parameters count where nobody says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SamplingDefaults {
    /// Those of the model's generation_config.json
    Model,
    /// The most probable token in a terminal; OpenAI's, with temperature 1, in a server
    None,
}

/// All that a command line may say.
pub(crate) fn command() -> clap::Command {
    CommandLine::command()
}

#[derive(Debug, Args)]
pub(crate) struct DocsArgs {
    /// Of what
    pub(crate) topic: DocsTopic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DocsTopic {
    /// Commands and their flags
    Commands,
    /// Attention kernels and the rules that choose among them
    Kernels,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// One JSON object per line
    Json,
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
    /// A model: its folder, or org/name[@revision] on the Hugging Face hub; the embedded one unless given
    #[arg(value_name = "DIR|ORG/NAME")]
    pub(crate) model: Option<PathBuf>,
    /// The same, as other commands take it
    #[arg(
        long = "model",
        visible_alias = "model-path",
        conflicts_with = "model",
        value_name = "DIR|ORG/NAME"
    )]
    pub(crate) named: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub
    #[arg(long, value_name = "REV")]
    pub(crate) revision: Option<String>,
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
