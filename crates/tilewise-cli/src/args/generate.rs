//! What `generate` takes.

use std::path::PathBuf;

use clap::Args;

use super::values::most_tokens;
use super::{ConversationArgs, RunArgs};

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The text to continue; - reads it from stdin, and so does no text where stdin is a pipe or a file, less the line break
    /// at its end. A text that begins with a dash stands behind --
    pub(crate) prompt: Option<String>,
    /// The text to continue, in place of PROMPT
    #[arg(
        long = "prompt",
        short = 'p',
        conflicts_with = "prompt",
        allow_hyphen_values = true,
        value_name = "TEXT"
    )]
    pub(crate) prompt_text: Option<String>,
    /// Read the text from this file, without the line break at its end
    #[arg(long, conflicts_with_all = ["prompt", "prompt_text", "token_ids"], value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Token ids to continue, in place of a text
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["prompt", "prompt_text"], value_name = "1,2,3")]
    pub(crate) token_ids: Option<Vec<u32>>,
    /// Put the prompt into the model's chat template, as the user's turn
    #[arg(long, conflicts_with = "token_ids")]
    pub(crate) chat: bool,
    #[command(flatten)]
    pub(crate) conversation: ConversationArgs,
    /// Tokens to generate at most; -1 is as many as the context holds. Unless given, 128, and with --chat -1
    #[arg(
        long,
        short = 'n',
        visible_alias = "max-tokens",
        value_parser = most_tokens,
        allow_negative_numbers = true,
        value_name = "N"
    )]
    pub(crate) max_new_tokens: Option<usize>,
    /// Write JSON that this file's JSON schema describes
    #[arg(long, value_name = "FILE")]
    pub(crate) json_schema: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}
