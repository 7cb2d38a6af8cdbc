//! What `/v1/chat/completions` answers.

use serde::Serialize;
use utoipa::ToSchema;

use crate::fields::Usage;
use crate::generation::{Matched, Token};
use crate::routes::completions::LEAST;
use crate::state::App;

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    pub(crate) id: String,
    /// `chat.completion`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<ChatChoice>,
    pub(crate) usage: Usage,
}

/// One of `n` answers.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    pub(crate) index: usize,
    pub(crate) message: AnswerMessage,
    pub(crate) logprobs: Option<ChatLogprobs>,
    /// `stop`, `length`, `tool_calls` or `abort`.
    pub(crate) finish_reason: Option<&'static str>,
    /// The string or the token that ended it.
    pub(crate) matched_stop: Option<Matched>,
}

/// What the assistant says.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnswerMessage {
    /// `assistant`.
    role: &'static str,
    /// Null where there are only calls.
    content: Option<String>,
    /// What it thought, where that comes apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

impl Default for AnswerMessage {
    fn default() -> Self {
        Self { role: "assistant", content: None, reasoning_content: None, tool_calls: Vec::new() }
    }
}

/// A call of a function.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ToolCall {
    id: String,
    /// `function`.
    #[serde(rename = "type")]
    kind: &'static str,
    function: CalledFunction,
}

/// A function and what it is called with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CalledFunction {
    name: String,
    /// JSON as text.
    arguments: String,
}

/// A part of an answer as it comes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChunk {
    pub(crate) id: String,
    /// `chat.completion.chunk`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<ChunkChoice>,
    pub(crate) usage: Option<Usage>,
}

/// A part of one of `n` answers.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct ChunkChoice {
    pub(crate) index: usize,
    pub(crate) delta: Delta,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) matched_stop: Option<Matched>,
}

/// What is new.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCallDelta>,
}

/// A part of a call; the first one says which function.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ToolCallDelta {
    /// Which of the calls.
    pub(crate) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// `function`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    pub(crate) function: FunctionDelta,
}

/// A function, and more of what it is called with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// More of JSON as text.
    pub(crate) arguments: String,
}

/// How probable the tokens were.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    content: Vec<TokenLogprob>,
}

/// How probable a token was.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    #[serde(flatten)]
    token: OneLogprob,
    /// The most probable ones in its place.
    top_logprobs: Vec<OneLogprob>,
}

/// A token and its logprob.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OneLogprob {
    token: String,
    logprob: f32,
    /// A token may be a part of a character.
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub(crate) fn of(app: &App, token: &Token) -> Self {
        let one = |id, logprob: f32| OneLogprob {
            token: app.model.token_text(id),
            logprob: logprob.max(LEAST),
            bytes: app.model.bytes_of(id).to_vec(),
        };
        let top_logprobs = token.top_logprobs.iter().map(|&(id, logprob)| one(id, logprob)).collect();
        let token = one(token.id, token.logprob.unwrap_or(LEAST));
        Self { content: vec![TokenLogprob { token, top_logprobs }] }
    }
}

impl AnswerMessage {
    /// Adds the next part of a call.
    fn append_call(&mut self, ToolCallDelta { id, kind, function, .. }: ToolCallDelta) {
        let FunctionDelta { name, arguments } = function;
        match (id, kind, name, self.tool_calls.last_mut()) {
            (Some(id), Some(kind), Some(name), _) => {
                self.tool_calls.push(ToolCall { id, kind, function: CalledFunction { name, arguments } });
            }
            (_, _, _, Some(last)) => last.function.arguments.push_str(&arguments),
            _ => {}
        }
    }
}

impl ChatChoice {
    /// Adds the next part.
    pub(crate) fn append(&mut self, part: ChunkChoice) {
        let Delta { content, reasoning_content, tool_calls, .. } = part.delta;
        append(&mut self.message.content, content);
        append(&mut self.message.reasoning_content, reasoning_content);
        tool_calls.into_iter().for_each(|part| self.message.append_call(part));
        if let Some(more) = part.logprobs {
            self.logprobs.get_or_insert_default().content.extend(more.content);
        }
        self.finish_reason = self.finish_reason.or(part.finish_reason);
        self.matched_stop = self.matched_stop.take().or(part.matched_stop);
    }

    /// Without calls, there is a content, if an empty one.
    pub(crate) fn finished(mut self) -> Self {
        if self.message.tool_calls.is_empty() {
            self.message.content.get_or_insert_default();
        }
        self
    }
}

fn append(whole: &mut Option<String>, part: Option<String>) {
    if let Some(part) = part {
        whole.get_or_insert_default().push_str(&part);
    }
}
