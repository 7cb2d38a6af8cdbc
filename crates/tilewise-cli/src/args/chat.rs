//! What `chat` takes.

use clap::Args;

use super::values::most_tokens;
use super::{ConversationArgs, RunArgs};

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) conversation: ConversationArgs,
    /// Tokens of an answer at most; what the context holds unless given
    #[arg(
        long,
        short = 'n',
        visible_alias = "max-tokens",
        value_parser = most_tokens,
        allow_negative_numbers = true,
        value_name = "N"
    )]
    pub(crate) max_new_tokens: Option<usize>,
    /// Tokens of the conversation that the cache holds, in whole pages; the model's context, as far as memory reaches,
    /// unless given
    #[arg(long, value_name = "N")]
    pub(crate) kv_tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}
