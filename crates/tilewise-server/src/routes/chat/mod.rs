//! Conversations continued, in OpenAI's protocol.

mod answer;
mod request;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use tilewise_engine::chat::{CallPart, Said};

use answer::{ChatChoice, ChatLogprobs, ChunkChoice, Delta, FunctionDelta, ToolCallDelta};
pub(crate) use answer::{ChatChunk, ChatCompletion};
pub(crate) use request::ChatRequest;

use crate::body::json;
use crate::chats::{Answer, Chat, ChatNews, Protocol};
use crate::error::ApiError;
use crate::fields::Usage;
use crate::generation::Token;
use crate::request::Body;
use crate::sse;
use crate::state::{App, now};

/// Continues a conversation.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest,
    responses((
        status = 200, body = ChatCompletion,
        description = "With `stream`, objects of the type ChatChunk as server-sent events"
    ))
)]
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Body(request, _): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    app.check_model(request.common.model.as_deref())?;
    let n = request.sampling.completions()?;
    let ask = request.ask(&app)?;
    let room = app.admit(n)?;
    let id = app.new_name("chatcmpl-");
    let chat = Chat::start(&app, ask, room, request.common.name().unwrap_or(&id)).await?;
    let choice = |index| ChatChoice { index, ..ChatChoice::default() };
    let protocol = Chunks {
        app: app.clone(),
        id,
        created: now(),
        has_logprobs: request.chat.logprobs.unwrap_or(false),
        calls: vec![0; n],
        choices: if request.common.streams() { Vec::new() } else { (0..n).map(choice).collect() },
        includes_usage: request.common.includes_usage(),
        counts_on_the_way: request.common.counts_on_the_way(),
    };
    let answer = Answer::new(chat, protocol);
    if request.common.streams() {
        return Ok(sse::respond(&app, answer));
    }
    let (whole, usage) = answer.whole().await?;
    Ok(json(&whole.completion(usage)))
}

/// An answer in OpenAI's protocol.
struct Chunks {
    app: Arc<App>,
    id: String,
    created: u64,
    has_logprobs: bool,
    /// Calls of each choice so far.
    calls: Vec<usize>,
    /// What came of each choice, where all is told at once.
    choices: Vec<ChatChoice>,
    includes_usage: bool,
    counts_on_the_way: bool,
}

impl Chunks {
    /// What news add, if anything.
    fn part(&mut self, news: ChatNews) -> Option<ChunkChoice> {
        match news {
            ChatNews::Token { index, said, token } => {
                let is_empty = said.is_empty();
                let part = self.delta(index, &said, Some(&token));
                (!is_empty || part.logprobs.is_some()).then_some(part)
            }
            ChatNews::End { index, said, end, is_call } => {
                let mut part = self.delta(index, &said, None);
                part.finish_reason = Some(if is_call { "tool_calls" } else { end.name() });
                part.matched_stop = end.matched();
                Some(part)
            }
        }
    }

    fn delta(&mut self, index: usize, said: &Said, token: Option<&Token>) -> ChunkChoice {
        let some = |text: String| (!text.is_empty()).then_some(text);
        let calls = &mut self.calls[index];
        let call = |CallPart { name, arguments }: CallPart| {
            let is_first = name.is_some();
            *calls += usize::from(is_first);
            ToolCallDelta {
                index: *calls - 1,
                id: is_first.then(|| self.app.new_name("call_")),
                kind: is_first.then_some("function"),
                function: FunctionDelta { name, arguments },
            }
        };
        let delta = Delta {
            role: None,
            content: some(said.content()),
            reasoning_content: some(said.reasoning()),
            tool_calls: said.calls().cloned().map(call).collect(),
        };
        let logprobs = token.filter(|_| self.has_logprobs).map(|token| ChatLogprobs::of(&self.app, token));
        ChunkChoice { index, delta, logprobs, ..ChunkChoice::default() }
    }

    /// All of it at once.
    fn completion(self, usage: Usage) -> ChatCompletion {
        ChatCompletion {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.app.config.served_model_name.clone(),
            choices: self.choices.into_iter().map(ChatChoice::finished).collect(),
            usage,
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> String {
        sse::data(&ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.app.config.served_model_name.clone(),
            choices,
            usage,
        })
    }
}

impl Protocol for Chunks {
    /// Who speaks, once for each choice.
    fn begin(&mut self, usage: Usage) -> String {
        let role = |index| {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            let choice = ChunkChoice { index, delta, ..ChunkChoice::default() };
            self.chunk(vec![choice], self.counts_on_the_way.then_some(usage))
        };
        (0..self.calls.len()).map(role).collect()
    }

    fn take(&mut self, news: ChatNews, usage: Usage) -> String {
        let Some(part) = self.part(news) else { return String::new() };
        match self.choices.get_mut(part.index) {
            Some(choice) => {
                choice.append(part);
                String::new()
            }
            None => self.chunk(vec![part], self.counts_on_the_way.then_some(usage)),
        }
    }

    fn fail(&mut self, error: &ApiError) -> String {
        sse::error(error) + sse::DONE
    }

    fn end(&mut self, usage: Usage) -> String {
        let usage = self.includes_usage.then(|| self.chunk(Vec::new(), Some(usage)));
        usage.unwrap_or_default() + sse::DONE
    }
}
