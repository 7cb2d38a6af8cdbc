//! Prompts: texts, tokens, and several of them.

use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::state::App;

/// Prompts of a request at most.
pub(crate) const MAX_PROMPTS: usize = 128;

/// What is continued: a text, tokens, or several of either.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a text, token ids, or a list of either")]
pub(crate) enum Prompt {
    /// A text.
    Text(String),
    /// Its token ids.
    Tokens(Vec<u32>),
    /// Several texts, each continued by itself.
    Texts(Vec<String>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum OnePrompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Each by itself.
    ///
    /// # Errors
    /// 400 for none or too many.
    pub(crate) fn each(self, field: &str) -> Result<Vec<OnePrompt>, ApiError> {
        let each: Vec<OnePrompt> = match self {
            Self::Text(text) => vec![OnePrompt::Text(text)],
            Self::Tokens(ids) => vec![OnePrompt::Tokens(ids)],
            Self::Texts(texts) => texts.into_iter().map(OnePrompt::Text).collect(),
            Self::TokenLists(lists) => lists.into_iter().map(OnePrompt::Tokens).collect(),
        };
        if !(1..=MAX_PROMPTS).contains(&each.len()) {
            let message = format!("{field} must be from 1 to {MAX_PROMPTS} prompts, got {}", each.len());
            return Err(ApiError::param(field, message));
        }
        Ok(each)
    }
}

impl OnePrompt {
    /// Its token ids.
    ///
    /// # Errors
    /// 400 for an empty one.
    pub(crate) fn encode(self, app: &App, field: &str) -> Result<Vec<u32>, ApiError> {
        let ids = match self {
            Self::Text(text) => {
                check_length(app, &text, field)?;
                encode(app, &text, true, field)?
            }
            Self::Tokens(ids) => ids,
        };
        if ids.is_empty() {
            return Err(ApiError::param(field, format!("{field} is empty; give at least one character")));
        }
        Ok(ids)
    }
}

/// Bytes of a text of which some may vanish before it is cut into tokens, as characters are composed.
const SHRINKING: usize = 4;

/// Refuses a text that has too many tokens, however it is cut: a tokenizer takes a second for each megabyte.
///
/// # Errors
/// 400.
pub(crate) fn check_length(app: &App, text: &str, field: &str) -> Result<(), ApiError> {
    let most = app.max_tokens();
    let least = text.len() / app.model.longest_token / SHRINKING;
    let least = if least > most { least } else { count_pieces(app, text, most) };
    if least <= most {
        return Ok(());
    }
    Err(ApiError::too_long(most, &format!("your text has more than {least} tokens"), field))
}

/// Bytes of a token in a text that is worth a closer look before all of it is cut into tokens.
const MANY: usize = 8;

/// Bytes of a piece that is counted by itself.
const PIECE: usize = 32 << 10;

/// Tokens that a piece may have more than it has as a part of the text: those of the words that its ends cut.
const CUT: usize = 256;

/// Tokens that a long text has at least; counts on until there are too many. What fits is counted as a whole, later.
fn count_pieces(app: &App, text: &str, most: usize) -> usize {
    let (mut least, mut begin) = (0, 0);
    if text.len() <= most.saturating_mul(MANY) {
        return 0;
    }
    while begin < text.len() && least <= most {
        let end = text.ceil_char_boundary((begin + PIECE).min(text.len()));
        // What a piece cannot be read for, the whole text is refused for.
        let tokens = app.model.tokenizer.encode(&text[begin..end], false).map_or(0, |ids| ids.len());
        least += tokens.saturating_sub(CUT);
        begin = end;
    }
    least
}

/// The token ids of a text.
///
/// # Errors
/// 400.
pub(crate) fn encode(app: &App, text: &str, special: bool, field: &str) -> Result<Vec<u32>, ApiError> {
    app.model.tokenizer.encode(text, special).map_err(|error| ApiError::refused(&error, field))
}
