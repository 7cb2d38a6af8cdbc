//! Conversations continued, in Anthropic's protocol.

mod answer;
mod request;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};
use tilewise_engine::chat::{CallPart, Said};

use answer::{Block, stop_reason};
pub(crate) use answer::{MessageObject, TokenCount};
pub(crate) use request::MessagesRequest;

use crate::body;
use crate::chats::{Chat, ChatNews};
use crate::error::{ApiError, Dialect};
use crate::generation::End;
use crate::request::Body;
use crate::sse::{self, Events};
use crate::state::{App, blocking};

/// Continues a conversation.
#[utoipa::path(
    post, path = "/v1/messages", tag = "anthropic", request_body = MessagesRequest,
    responses((status = 200, body = MessageObject, description = "With `stream`, named server-sent events"))
)]
pub(crate) async fn messages(
    State(app): State<Arc<App>>,
    Body(request, mut ignored): Body<MessagesRequest>,
) -> Result<Response, ApiError> {
    app.check_model(request.fields.model.as_deref())?;
    let ask = request.ask(&app, &mut ignored)?;
    let room = app.admit(1)?;
    let id = app.new_name("msg_");
    let chat = Chat::start(&app, ask, room, &id).await?;
    let message = MessageObject {
        id,
        kind: "message",
        role: "assistant",
        model: app.config.served_model_name.clone(),
        content: Vec::new(),
        stop_reason: None,
        stop_sequence: None,
        usage: chat.usage().into(),
    };
    let streams = request.fields.stream.unwrap_or(false);
    let answer =
        Answer { app: app.clone(), message, open: None, blank: String::new(), state: Progress::Begins, chat };
    let response = if streams { sse::respond(&app, answer) } else { answer.whole().await? };
    Ok(ignored.name_in(response))
}

/// Counts the tokens of a conversation, which is not continued.
#[utoipa::path(
    post, path = "/v1/messages/count_tokens", tag = "anthropic", request_body = MessagesRequest,
    responses((status = 200, body = TokenCount))
)]
pub(crate) async fn count_tokens(
    State(app): State<Arc<App>>,
    Body(request, mut ignored): Body<MessagesRequest>,
) -> Result<Response, ApiError> {
    app.check_model(request.fields.model.as_deref())?;
    let ask = request.ask(&app, &mut ignored)?;
    let input_tokens = blocking(move || Ok(ask.prompt(&app)?.0.len())).await?;
    Ok(ignored.name_in(body::json(&TokenCount { input_tokens })))
}

/// Where a stream is.
enum Progress {
    Begins,
    Runs,
    IsOver,
}

/// An answer that is being made.
struct Answer {
    app: Arc<App>,
    message: MessageObject,
    /// The block that goes on.
    open: Option<Block>,
    /// White space that no text has begun with yet: models write it before calls.
    blank: String,
    state: Progress,
    chat: Chat,
}

fn event(name: &str, mut fields: Value) -> String {
    fields["type"] = name.into();
    sse::event(name, &fields)
}

impl Answer {
    /// All of it at once.
    async fn whole(mut self) -> Result<Response, ApiError> {
        while let Some(news) = self.chat.next().await {
            self.take(news?);
        }
        Ok(body::json(&self.message))
    }

    /// Adds news, and tells them.
    fn take(&mut self, news: ChatNews) -> String {
        match news {
            ChatNews::Token { said, .. } => self.say(said),
            ChatNews::End { said, end, is_call, .. } => self.say(said) + &self.end(&end, is_call),
        }
    }

    /// Adds what was thought, said and called, in this order.
    fn say(&mut self, said: Said) -> String {
        let mut events = String::new();
        if !said.reasoning.is_empty() {
            if !matches!(self.open, Some(Block::Thinking(_))) {
                events += &self.begin(Block::Thinking(String::new()));
            }
            events += &self.add(&said.reasoning);
        }
        self.blank.push_str(&said.content);
        let is_open = matches!(self.open, Some(Block::Text(_)));
        if !said.content.is_empty() && (is_open || !self.blank.trim().is_empty()) {
            let text = std::mem::take(&mut self.blank);
            if !is_open {
                events += &self.begin(Block::Text(String::new()));
            }
            events += &self.add(&text);
        }
        for CallPart { name, arguments } in said.calls {
            if let Some(name) = name {
                self.blank.clear();
                let id = self.app.new_name("toolu_");
                events += &self.begin(Block::ToolUse(id, name, String::new()));
            }
            if !arguments.is_empty() {
                events += &self.add(&arguments);
            }
        }
        events
    }

    /// Begins a block, and ends the one before it.
    fn begin(&mut self, block: Block) -> String {
        let closed = self.close();
        let begun = json!({ "index": self.message.content.len(), "content_block": block.begun() });
        self.open = Some(block);
        closed + &event("content_block_start", begun)
    }

    fn add(&mut self, words: &str) -> String {
        let Some(block) = &mut self.open else { return String::new() };
        let delta = block.push(words);
        event("content_block_delta", json!({ "index": self.message.content.len(), "delta": delta }))
    }

    fn close(&mut self) -> String {
        let Some(block) = self.open.take() else { return String::new() };
        let stop = event("content_block_stop", json!({ "index": self.message.content.len() }));
        self.message.content.push(block.whole());
        stop
    }

    /// Ends the answer. It has a text, if an empty one, where there is nothing else but thoughts.
    fn end(&mut self, end: &End, is_call: bool) -> String {
        let is_said = |block: &Value| block["type"] != "thinking";
        let is_open = self.open.as_ref().is_some_and(|block| !matches!(block, Block::Thinking(_)));
        let mut events = String::new();
        if !is_open && !self.message.content.iter().any(is_said) {
            let text = std::mem::take(&mut self.blank);
            events += &self.begin(Block::Text(String::new()));
            if !text.is_empty() {
                events += &self.add(&text);
            }
        }
        events += &self.close();
        let (reason, sequence) = stop_reason(end, is_call);
        (self.message.stop_reason, self.message.stop_sequence) = (Some(reason), sequence.clone());
        self.message.usage = self.chat.usage().into();
        let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
        events
            + &event("message_delta", json!({ "delta": delta, "usage": self.message.usage }))
            + &event("message_stop", json!({}))
    }
}

impl Events for Answer {
    async fn next(&mut self) -> Option<String> {
        loop {
            match self.state {
                Progress::IsOver => return None,
                Progress::Begins => {
                    self.state = Progress::Runs;
                    return Some(event("message_start", json!({ "message": self.message })));
                }
                Progress::Runs => {}
            }
            match self.chat.next().await {
                Some(Ok(news)) => {
                    let events = self.take(news);
                    if !events.is_empty() {
                        return Some(events);
                    }
                }
                Some(Err(error)) => {
                    self.state = Progress::IsOver;
                    return Some(sse::event("error", &Dialect::Anthropic.error(&error)));
                }
                None => {
                    self.state = Progress::IsOver;
                    return None;
                }
            }
        }
    }
}
