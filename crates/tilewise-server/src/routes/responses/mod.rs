//! Texts answered, in OpenAI's newer protocol.

mod answer;
mod items;
mod kept;
mod request;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};
use tilewise_engine::chat::{CallPart, Piece, Said};

pub(crate) use answer::ResponseObject;
use answer::{Draft, IncompleteDetails, Kind, OutputItem, failure};
pub(crate) use kept::KeptItems;
pub(crate) use request::ResponsesRequest;

use crate::body;
use crate::chats::{Answer, Chat, ChatNews, Protocol};
use crate::error::ApiError;
use crate::fields::Usage;
use crate::generation::End;
use crate::request::Body;
use crate::sse;
use crate::state::{App, now};

/// Answers a text or a conversation.
#[utoipa::path(
    post, path = "/v1/responses", tag = "openai", request_body = ResponsesRequest,
    responses((status = 200, body = ResponseObject, description = "With `stream`, named server-sent events"))
)]
pub(crate) async fn responses(
    State(app): State<Arc<App>>,
    Body(request, mut ignored): Body<ResponsesRequest>,
) -> Result<Response, ApiError> {
    app.check_model(request.common.model.as_deref())?;
    let (ask, tools) = request.ask(&app, &mut ignored)?;
    let room = app.admit(1)?;
    let response = begun(&app, &request, tools);
    let name = request.common.name().unwrap_or(&response.id).to_owned();
    let chat = Chat::start(&app, ask, room, &name).await?;
    let streams = request.common.streams();
    let answer = Answer::new(chat, Items { app: app.clone(), response, open: None, streams, sent: 0 });
    let response = match streams {
        true => sse::respond(&app, answer),
        false => body::json(&answer.whole().await?.0.response),
    };
    Ok(ignored.name_in(response))
}

/// The answer before its first item.
fn begun(app: &App, request: &ResponsesRequest, tools: Vec<Value>) -> ResponseObject {
    let (fields, sampling, defaults) = (&request.response, &request.sampling, &app.model.defaults);
    ResponseObject {
        id: app.new_name("resp_"),
        object: "response",
        created_at: now(),
        status: "in_progress",
        error: None,
        incomplete_details: None,
        instructions: fields.instructions.clone(),
        max_output_tokens: fields.max_output_tokens,
        model: app.config.served_model_name.clone(),
        output: Vec::new(),
        parallel_tool_calls: fields.parallel_tool_calls.unwrap_or(true),
        previous_response_id: None,
        store: false,
        temperature: sampling.temperature.or(defaults.temperature).unwrap_or(1.0),
        top_p: sampling.top_p.or(defaults.top_p).unwrap_or(1.0),
        tool_choice: fields.tool_choice.clone().unwrap_or_default().into(),
        tools,
        truncation: "disabled",
        metadata: fields.metadata.clone().filter(Value::is_object).unwrap_or_else(|| json!({})),
        usage: None,
    }
}

/// An answer as items, and the events that tell them.
struct Items {
    app: Arc<App>,
    response: ResponseObject,
    /// The item that goes on.
    open: Option<Draft>,
    streams: bool,
    /// Events so far.
    sent: usize,
}

impl Items {
    /// An event with its number; nothing where nobody listens.
    fn event(&mut self, name: &str, mut fields: Value) -> String {
        if !self.streams {
            return String::new();
        }
        fields["type"] = name.into();
        fields["sequence_number"] = self.sent.into();
        self.sent += 1;
        sse::event(name, &fields)
    }

    fn response_event(&mut self, name: &str) -> String {
        let response = json!(self.response);
        self.event(name, json!({ "response": response }))
    }

    /// Adds what was thought, said and called.
    fn say(&mut self, said: Said) -> String {
        let mut events = String::new();
        for piece in said.0 {
            events += &match piece {
                Piece::Thought(text) => self.add(Kind::Reasoning, &text),
                Piece::Words(text) => self.add(Kind::Message, &text),
                Piece::Call(CallPart { name: Some(name), arguments }) => {
                    self.begin_item(Kind::Call, name) + &self.add(Kind::Call, &arguments)
                }
                Piece::Call(CallPart { name: None, arguments }) => self.add(Kind::Call, &arguments),
            };
        }
        events
    }

    /// Begins an item, and ends the one before it.
    fn begin_item(&mut self, kind: Kind, name: String) -> String {
        let closed = self.close("completed");
        let (prefix, call_id) = match kind {
            Kind::Message => ("msg_", String::new()),
            Kind::Reasoning => ("rs_", String::new()),
            Kind::Call => ("fc_", self.app.new_name("call_")),
        };
        let draft = Draft { kind, id: self.app.new_name(prefix), call_id, name, text: String::new() };
        let (item, part) = (json!(draft.item("in_progress", false)), draft.part(""));
        let (id, place) = (draft.id.clone(), self.response.output.len());
        self.open = Some(draft);
        let added = self.event("response.output_item.added", json!({ "output_index": place, "item": item }));
        let part = part.map(|part| {
            let fields = json!({ "item_id": id, "output_index": place, "content_index": 0, "part": part });
            self.event("response.content_part.added", fields)
        });
        closed + &added + &part.unwrap_or_default()
    }

    /// Adds words to the item of a kind, which begins if another or none is open.
    fn add(&mut self, kind: Kind, words: &str) -> String {
        let is_open = self.open.as_ref().is_some_and(|draft| draft.kind == kind);
        let begun = if is_open { String::new() } else { self.begin_item(kind, String::new()) };
        let Some(draft) = &mut self.open else { return begun };
        draft.text.push_str(words);
        if words.is_empty() {
            return begun;
        }
        let mut fields =
            json!({ "item_id": draft.id, "output_index": self.response.output.len(), "delta": words });
        if kind != Kind::Call {
            fields["content_index"] = 0.into();
        }
        let name = match kind {
            Kind::Message => {
                fields["logprobs"] = json!([]);
                "response.output_text.delta"
            }
            Kind::Reasoning => "response.reasoning_text.delta",
            Kind::Call => "response.function_call_arguments.delta",
        };
        begun + &self.event(name, fields)
    }

    /// Ends the item that is open.
    fn close(&mut self, status: &'static str) -> String {
        let Some(draft) = self.open.take() else { return String::new() };
        let status = if draft.is_whole() { status } else { "incomplete" };
        let place = self.response.output.len();
        let at = json!({ "item_id": draft.id, "output_index": place });
        let with = |more: Value| {
            let mut fields = at.clone();
            fields.as_object_mut().into_iter().for_each(|fields| {
                fields.extend(more.as_object().cloned().unwrap_or_default());
            });
            fields
        };
        let (name, done) = match draft.kind {
            Kind::Message => (
                "response.output_text.done",
                with(json!({ "content_index": 0, "text": draft.text, "logprobs": [] })),
            ),
            Kind::Reasoning => {
                ("response.reasoning_text.done", with(json!({ "content_index": 0, "text": draft.text })))
            }
            Kind::Call => (
                "response.function_call_arguments.done",
                with(json!({ "name": draft.name, "arguments": draft.text })),
            ),
        };
        let mut events = self.event(name, done);
        if let Some(part) = draft.part(&draft.text) {
            events +=
                &self.event("response.content_part.done", with(json!({ "content_index": 0, "part": part })));
        }
        let item = draft.item(status, true);
        events +=
            &self.event("response.output_item.done", json!({ "output_index": place, "item": json!(item) }));
        self.app.kept_items.keep(json!(item));
        self.response.output.push(item);
        events
    }

    /// Ends the answer. It has a message, if an empty one, where there is nothing else but thoughts.
    fn finish(&mut self, end: &End, usage: Usage) -> String {
        let reason = match end {
            End::Length => Some("max_output_tokens"),
            End::Aborted => Some("aborted"),
            _ => None,
        };
        let status = if reason.is_some() { "incomplete" } else { "completed" };
        let is_thought = |item: &OutputItem| matches!(item, OutputItem::Reasoning { .. });
        let is_said = self.open.as_ref().is_some_and(|draft| draft.kind != Kind::Reasoning)
            || !self.response.output.iter().all(is_thought);
        let mut events = if is_said { String::new() } else { self.add(Kind::Message, "") };
        events += &self.close(status);
        self.response.status = status;
        self.response.incomplete_details = reason.map(|reason| IncompleteDetails { reason });
        self.response.usage = Some(usage.into());
        events + &self.response_event(&format!("response.{status}"))
    }
}

impl Protocol for Items {
    fn begin(&mut self, _: Usage) -> String {
        self.response_event("response.created") + &self.response_event("response.in_progress")
    }

    fn take(&mut self, news: ChatNews, usage: Usage) -> String {
        match news {
            ChatNews::Token { said, .. } => self.say(said),
            ChatNews::End { said, end, .. } => self.say(said) + &self.finish(&end, usage),
        }
    }

    fn fail(&mut self, error: &ApiError) -> String {
        self.response.status = "failed";
        self.response.error = Some(failure(&error.to_string()));
        self.response_event("response.failed")
    }
}
