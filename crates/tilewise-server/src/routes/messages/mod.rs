//! Conversations continued, in Anthropic's protocol.

mod answer;
mod request;

use std::mem::discriminant;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};
use tilewise_engine::chat::{CallPart, Piece, Said};

use answer::{Block, stop_reason};
pub(crate) use answer::{MessageObject, TokenCount};
pub(crate) use request::MessagesRequest;

use crate::body;
use crate::chats::{Answer, Chat, ChatNews, Protocol};
use crate::error::{ApiError, Dialect};
use crate::fields::Usage;
use crate::generation::End;
use crate::request::Body;
use crate::sse;
use crate::state::App;

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
    let answer = Answer::new(chat, Blocks { app: app.clone(), message, open: None, broken: false });
    let response = match streams {
        true => sse::respond(&app, answer),
        false => body::json(&answer.whole().await?.0.whole()),
    };
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
    let input_tokens = {
        let worker = app.clone();
        worker.prepare_alone(move || Ok(ask.prompt(&app)?.0.len())).await?
    };
    Ok(ignored.name_in(body::json(&TokenCount { input_tokens })))
}

/// An answer as blocks, and the events that tell them.
struct Blocks {
    app: Arc<App>,
    message: MessageObject,
    /// The block that goes on.
    open: Option<Block>,
    /// Whether the last block is a call that broke off.
    broken: bool,
}

fn event(name: &str, mut fields: Value) -> String {
    fields["type"] = name.into();
    sse::event(name, &fields)
}

impl Blocks {
    /// All of it at once. Arguments that broke off are no object: there is nothing to tell of such a call.
    fn whole(mut self) -> MessageObject {
        if self.broken {
            self.message.content.pop();
        }
        self.message
    }

    /// Adds what was thought, said and called.
    fn say(&mut self, said: Said) -> String {
        let mut events = String::new();
        for piece in said.0 {
            let (block, words) = match piece {
                Piece::Thought(text) => (Block::Thinking(String::new()), text),
                Piece::Words(text) => (Block::Text(String::new()), text),
                Piece::Call(CallPart { name: Some(name), arguments }) => {
                    let id = self.app.new_name("toolu_");
                    events += &self.begin_block(Block::ToolUse(id, name, String::new()));
                    events += &self.add(&arguments);
                    continue;
                }
                Piece::Call(CallPart { name: None, arguments }) => {
                    events += &self.add(&arguments);
                    continue;
                }
            };
            let is_open = self.open.as_ref().is_some_and(|open| discriminant(open) == discriminant(&block));
            if !is_open {
                events += &self.begin_block(block);
            }
            events += &self.add(&words);
        }
        events
    }

    /// Begins a block, and ends the one before it.
    fn begin_block(&mut self, block: Block) -> String {
        let closed = self.close();
        let begun = json!({ "index": self.message.content.len(), "content_block": block.begun() });
        self.open = Some(block);
        closed + &event("content_block_start", begun)
    }

    fn add(&mut self, words: &str) -> String {
        let Some(block) = self.open.as_mut().filter(|_| !words.is_empty()) else { return String::new() };
        let delta = block.push(words);
        event("content_block_delta", json!({ "index": self.message.content.len(), "delta": delta }))
    }

    fn close(&mut self) -> String {
        let Some(block) = self.open.take() else { return String::new() };
        let stop = event("content_block_stop", json!({ "index": self.message.content.len() }));
        self.message.content.push(block.whole());
        self.broken = !block.is_whole();
        stop
    }

    /// Ends the answer. It has a text, if an empty one, where there is nothing else but thoughts.
    fn finish(&mut self, end: &End, is_call: bool, usage: Usage) -> String {
        let is_thought = |block: &Value| block["type"] == "thinking";
        let is_said = self.open.as_ref().is_some_and(|block| !matches!(block, Block::Thinking(_)))
            || !self.message.content.iter().all(is_thought);
        let mut events = if is_said { String::new() } else { self.begin_block(Block::Text(String::new())) };
        events += &self.close();
        let (reason, sequence) = stop_reason(end, is_call);
        (self.message.stop_reason, self.message.stop_sequence) = (Some(reason), sequence.clone());
        self.message.usage = usage.into();
        let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
        events += &event("message_delta", json!({ "delta": delta, "usage": self.message.usage }));
        events + &event("message_stop", json!({}))
    }
}

impl Protocol for Blocks {
    fn begin(&mut self, usage: Usage) -> String {
        self.message.usage = usage.into();
        event("message_start", json!({ "message": self.message }))
    }

    fn take(&mut self, news: ChatNews, usage: Usage) -> String {
        match news {
            ChatNews::Token { said, .. } => self.say(said),
            ChatNews::End { said, end, is_call, .. } => self.say(said) + &self.finish(&end, is_call, usage),
        }
    }

    fn fail(&mut self, error: &ApiError) -> String {
        sse::event("error", &Dialect::Anthropic.error(error))
    }
}
