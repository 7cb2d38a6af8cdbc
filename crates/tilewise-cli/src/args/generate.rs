//! What `generate` takes.

use std::path::PathBuf;

use clap::Args;

use super::{ConversationArgs, RunArgs};

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The text to continue; -, or nothing where stdin is a pipe or a file, reads it from stdin, without the line break at
    /// its end. One that begins with a dash stands behind --
    pub(crate) prompt: Option<String>,
    /// Read the text from this file, without the line break at its end
    #[arg(long, conflicts_with_all = ["prompt", "token_ids"], value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Token ids to continue, in place of a text
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt", value_name = "1,2,3")]
    pub(crate) token_ids: Option<Vec<u32>>,
    /// Put the prompt into the model's chat template, as the user's turn
    #[arg(long, conflicts_with = "token_ids")]
    pub(crate) chat: bool,
    #[command(flatten)]
    pub(crate) conversation: ConversationArgs,
    /// Tokens to generate at most; unless given, what the model's context holds, and without --chat at most 128
    #[arg(long, value_name = "N")]
    pub(crate) max_new_tokens: Option<usize>,
    /// Write JSON that this file's JSON schema describes
    #[arg(long, value_name = "FILE")]
    pub(crate) json_schema: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}
