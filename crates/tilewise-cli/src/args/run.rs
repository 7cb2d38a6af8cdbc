//! What the commands take that make one text at a time.

use clap::Args;

use super::values::{WeightDType, weight_dtype};
use super::{DeviceArgs, Format, ModelArgs, PolicyArgs, SamplingArgs, SpeculationArgs, TierArgs};

/// A model, where it runs, and how its text is made.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
    #[command(flatten)]
    pub(crate) speculation: SpeculationArgs,
    /// Element type of the weights in memory; auto is the file's
    #[arg(long, default_value = "auto", value_parser = weight_dtype, value_name = "auto|f32|f16|bf16")]
    pub(crate) dtype: WeightDType,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// End before this text, which is not shown; may be given several times
    #[arg(long, allow_hyphen_values = true, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) tiers: TierArgs,
}
