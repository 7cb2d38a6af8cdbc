//! What `generate` takes.

use std::path::PathBuf;

use clap::Args;

use super::values::{WeightDType, weight_dtype};
use super::{DeviceArgs, Format, ModelArgs, PolicyArgs, SpeculationArgs, TierArgs};

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The text to continue
    #[arg(required_unless_present = "token_ids")]
    pub(crate) prompt: Option<String>,
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
