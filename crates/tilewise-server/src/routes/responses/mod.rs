//! Texts answered, in OpenAI's newer protocol.

mod answer;
mod request;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};
use tilewise_engine::tokenizer::ChatInput;

pub(crate) use answer::ResponseObject;
use answer::{IncompleteDetails, OutputItem, OutputText, failure};
pub(crate) use request::ResponsesRequest;

use crate::body::{self, Json};
use crate::error::ApiError;
use crate::generation::{Batch, End, Generation, News};
use crate::prompt::{check_length, encode};
use crate::sse::{self, Events};
use crate::state::{App, blocking, now};

/// Answers a text.
#[utoipa::path(
    post, path = "/v1/responses", tag = "openai", request_body = ResponsesRequest,
    responses((status = 200, body = ResponseObject, description = "With `stream`, named server-sent events"))
)]
pub(crate) async fn responses(
    State(app): State<Arc<App>>,
    Json(request): Json<ResponsesRequest>,
) -> Result<Response, ApiError> {
    app.check_model(request.model.as_deref())?;
    let sampling = request.sampling()?;
    let room = app.admit(1)?;
    let (id, item) = (app.new_name("resp_"), app.new_name("msg_"));
    let response = ResponseObject {
        id: id.clone(),
        object: "response",
        created_at: now(),
        status: "in_progress",
        error: None,
        incomplete_details: None,
        instructions: request.instructions.clone(),
        max_output_tokens: request.max_output_tokens,
        model: app.config.served_model_name.clone(),
        output: Vec::new(),
        parallel_tool_calls: true,
        previous_response_id: None,
        store: false,
        temperature: request.temperature.unwrap_or(1.0),
        top_p: request.top_p.unwrap_or(1.0),
        tool_choice: "auto",
        tools: [],
        truncation: "disabled",
        metadata: request.metadata.clone().unwrap_or_default(),
        usage: None,
    };
    let stream = request.stream.unwrap_or(false);
    let name = request.request_id.clone().unwrap_or(id);
    let worker = app.clone();
    let (room, ask) = blocking(move || {
        let invalid = |error| ApiError::refused(&error, "input");
        let template = worker.model.tokenizer.chat_template().map_err(invalid)?;
        let messages = request.conversation()?;
        let input = ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() };
        let text = template.render(&input).map_err(invalid)?;
        check_length(&worker, &text, "input")?;
        let prompt = encode(&worker, &text, false, "input")?;
        Ok((room, sampling.ask(&worker, prompt, "input")?))
    })
    .await?;
    let generation = Generation::start(&app, ask, room, &name, "input").await?;
    let answer = Answer {
        response,
        item,
        text: String::new(),
        sent: 0,
        state: Progress::Begins,
        batch: Batch::new(vec![generation]),
    };
    if stream { Ok(sse::respond(&app, answer)) } else { answer.whole().await }
}

/// Where a stream is.
enum Progress {
    Begins,
    Runs,
    IsOver,
}

/// An answer that is being made.
struct Answer {
    response: ResponseObject,
    /// The name of its message.
    item: String,
    text: String,
    /// Events so far.
    sent: usize,
    state: Progress,
    batch: Batch,
}

impl Answer {
    /// Sets what is known at the end.
    fn finish(&mut self, end: &End) {
        let reason = match end {
            End::Length => Some("max_output_tokens"),
            End::Aborted => Some("aborted"),
            _ => None,
        };
        self.response.status = if reason.is_some() { "incomplete" } else { "completed" };
        self.response.incomplete_details = reason.map(|reason| IncompleteDetails { reason });
        self.response.output = vec![OutputItem::new(&self.item, self.response.status, Some(&self.text))];
        self.response.usage = Some(self.batch.usage().into());
    }

    /// All of it at once.
    async fn whole(mut self) -> Result<Response, ApiError> {
        while let Some(news) = self.batch.next().await {
            match news?.1 {
                News::Token { text, .. } => self.text.push_str(&text),
                News::End { text, end, .. } => {
                    self.text.push_str(&text);
                    self.finish(&end);
                }
                News::Prompt { .. } => {}
            }
        }
        Ok(body::json(&self.response))
    }

    /// An event with its number.
    fn event(&mut self, name: &str, mut fields: Value) -> String {
        fields["type"] = name.into();
        fields["sequence_number"] = self.sent.into();
        self.sent += 1;
        sse::event(name, &fields)
    }

    fn response_event(&mut self, name: &str) -> String {
        let response = json!(self.response);
        self.event(name, json!({ "response": response }))
    }

    /// An event of the text.
    fn text_event(&mut self, name: &str, more: (&str, Value)) -> String {
        let mut fields = json!({ "item_id": self.item, "output_index": 0, "content_index": 0 });
        fields[more.0] = more.1;
        self.event(name, fields)
    }

    fn begin(&mut self) -> String {
        let item = json!(OutputItem::new(&self.item, "in_progress", None));
        self.response_event("response.created")
            + &self.response_event("response.in_progress")
            + &self.event("response.output_item.added", json!({ "output_index": 0, "item": item }))
            + &self.text_event("response.content_part.added", ("part", json!(OutputText::new(""))))
    }

    fn delta(&mut self, text: &str) -> Option<String> {
        self.text.push_str(text);
        let event = |this: &mut Self| {
            this.event(
                "response.output_text.delta",
                json!({ "item_id": this.item, "output_index": 0, "content_index": 0, "delta": text, "logprobs": [] }),
            )
        };
        (!text.is_empty()).then(|| event(self))
    }

    fn end(&mut self, end: &End) -> String {
        self.finish(end);
        let text = json!({
            "item_id": self.item, "output_index": 0, "content_index": 0, "text": self.text, "logprobs": [],
        });
        let item = json!(self.response.output[0]);
        let part = json!(OutputText::new(&self.text));
        let last = format!("response.{}", self.response.status);
        self.event("response.output_text.done", text)
            + &self.text_event("response.content_part.done", ("part", part))
            + &self.event("response.output_item.done", json!({ "output_index": 0, "item": item }))
            + &self.response_event(&last)
    }

    fn fail(&mut self, error: &ApiError) -> String {
        self.response.status = "failed";
        self.response.error = Some(failure(&error.to_string()));
        self.response_event("response.failed")
    }
}

impl Events for Answer {
    async fn next(&mut self) -> Option<String> {
        loop {
            match self.state {
                Progress::IsOver => return None,
                Progress::Begins => {
                    self.state = Progress::Runs;
                    return Some(self.begin());
                }
                Progress::Runs => {}
            }
            match self.batch.next().await {
                Some(Ok((_, News::Token { text, .. }))) => {
                    if let Some(event) = self.delta(&text) {
                        return Some(event);
                    }
                }
                Some(Ok((_, News::End { text, end, .. }))) => {
                    let last = self.delta(&text).unwrap_or_default();
                    return Some(last + &self.end(&end));
                }
                Some(Ok((_, News::Prompt { .. }))) => {}
                Some(Err(error)) => {
                    self.state = Progress::IsOver;
                    return Some(self.fail(&error));
                }
                None => {
                    self.state = Progress::IsOver;
                    return None;
                }
            }
        }
    }
}
