//! Ollama's protocol.

mod models;
mod request;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};
use tilewise_engine::chat::{CallPart, Said};

pub(crate) use models::{__path_ps, __path_show, __path_tags, __path_version, ps, show, tags, version};
pub(crate) use request::{OllamaChatRequest, OllamaGenerateRequest};

use crate::body;
use crate::chats::{Chat, ChatNews};
use crate::error::{ApiError, Dialect};
use crate::generation::End;
use crate::prompt::OnePrompt;
use crate::request::{Body, Ignored};
use crate::sse::{self, Events};
use crate::state::{App, Room, blocking};

/// Continues a conversation.
#[utoipa::path(
    post, path = "/api/chat", tag = "ollama", request_body = OllamaChatRequest,
    responses((status = 200, description = "An object, or with `stream` one on each line"))
)]
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Body(request, mut ignored): Body<OllamaChatRequest>,
) -> Result<Response, ApiError> {
    check_model(&app, request.common.model.as_deref())?;
    if request.chat.messages.is_empty() {
        return Ok(body::json(&loaded(&app, true)));
    }
    let ask = request.ask(&app, &mut ignored)?;
    let room = app.admit(1)?;
    let chat = Chat::start(&app, ask, room, &app.new_name("ollama-")).await?;
    Answer::new(&app, chat, true).respond(request.common.streams(), &ignored).await
}

/// Continues a prompt.
#[utoipa::path(
    post, path = "/api/generate", tag = "ollama", request_body = OllamaGenerateRequest,
    responses((status = 200, description = "An object, or with `stream` one on each line"))
)]
pub(crate) async fn generate(
    State(app): State<Arc<App>>,
    Body(request, mut ignored): Body<OllamaGenerateRequest>,
) -> Result<Response, ApiError> {
    check_model(&app, request.common.model.as_deref())?;
    request.check()?;
    if request.generate.prompt.as_deref().unwrap_or_default().is_empty() {
        return Ok(body::json(&loaded(&app, false)));
    }
    let room = app.admit(1)?;
    let name = app.new_name("ollama-");
    let has_template = app.model.tokenizer.chat_template().is_ok();
    let chat = match request.generate.raw.unwrap_or(false) || !has_template {
        true => raw(&app, &request, &mut ignored, room, &name).await?,
        false => Chat::start(&app, request.ask(&app, &mut ignored)?, room, &name).await?,
    };
    Answer::new(&app, chat, false).respond(request.common.streams(), &ignored).await
}

/// Continues a prompt as it stands.
async fn raw(
    app: &Arc<App>,
    request: &OllamaGenerateRequest,
    ignored: &mut Ignored,
    room: Room,
    name: &str,
) -> Result<Chat, ApiError> {
    let (sampling, grammar) = (request.common.sampling(ignored)?, request.common.grammar()?);
    let prompt = OnePrompt::Text(request.generate.prompt.clone().unwrap_or_default());
    let worker = app.clone();
    let prepare = move || {
        let ids = prompt.encode(&worker, "prompt")?;
        Ok((room, sampling.ask(&worker, ids, "prompt", grammar)?))
    };
    let (room, ask) = blocking(prepare).await?;
    Chat::plain(app, ask, room, name, "prompt").await
}

/// Refuses a model that is not served; `:latest` is the one there is.
fn check_model(app: &App, model: Option<&str>) -> Result<(), ApiError> {
    app.check_model(model.map(|model| model.strip_suffix(":latest").unwrap_or(model)))
}

fn timestamp() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}

/// The answer to a request that only asks for the model to be loaded.
fn loaded(app: &App, is_chat: bool) -> Value {
    let mut answer = json!({
        "model": app.config.served_model_name, "created_at": timestamp(), "done": true, "done_reason": "load",
    });
    match is_chat {
        true => answer["message"] = json!({ "role": "assistant", "content": "" }),
        false => answer["response"] = "".into(),
    }
    answer
}

/// An answer that is being made.
struct Answer {
    app: Arc<App>,
    /// Whether it is a message; it is a text otherwise.
    is_chat: bool,
    chat: Chat,
    /// A call whose arguments still come.
    call: Option<(String, String)>,
    began: Instant,
    first: Option<Instant>,
    is_over: bool,
}

impl Answer {
    fn new(app: &Arc<App>, chat: Chat, is_chat: bool) -> Self {
        Self {
            app: app.clone(),
            is_chat,
            chat,
            call: None,
            began: Instant::now(),
            first: None,
            is_over: false,
        }
    }

    async fn respond(self, streams: bool, ignored: &Ignored) -> Result<Response, ApiError> {
        let response = if streams { sse::respond_lines(self) } else { self.whole().await? };
        Ok(ignored.name_in(response))
    }

    /// An object of what is new.
    fn part(&self, content: &str, thinking: &str, calls: Vec<Value>) -> Value {
        let mut part = json!({
            "model": self.app.config.served_model_name, "created_at": timestamp(), "done": false,
        });
        let mut words = match self.is_chat {
            true => json!({ "role": "assistant", "content": content }),
            false => json!({ "response": content }),
        };
        if !thinking.is_empty() {
            words["thinking"] = thinking.into();
        }
        if !calls.is_empty() {
            words["tool_calls"] = calls.into();
        }
        match (self.is_chat, words) {
            (false, Value::Object(words)) => part.as_object_mut().into_iter().for_each(|part| {
                part.extend(words.clone());
            }),
            (_, words) => part["message"] = words,
        }
        part
    }

    /// Calls that are whole: each is told at once.
    fn calls(&mut self, parts: Vec<CallPart>, is_end: bool) -> Vec<Value> {
        let mut whole = Vec::new();
        for CallPart { name, arguments } in parts {
            match (name, &mut self.call) {
                (Some(name), _) => whole.extend(self.call.replace((name, arguments))),
                (None, Some((_, all))) => all.push_str(&arguments),
                (None, None) => {}
            }
        }
        if is_end {
            whole.extend(self.call.take());
        }
        let call = |(name, arguments): (String, String)| {
            let arguments: Value = serde_json::from_str(&arguments).unwrap_or_else(|_| json!({}));
            json!({ "function": { "name": name, "arguments": arguments } })
        };
        whole.into_iter().map(call).collect()
    }

    /// What news add, if anything.
    fn take(&mut self, news: ChatNews) -> Option<Value> {
        self.first.get_or_insert_with(Instant::now);
        match news {
            ChatNews::Token { said, .. } => {
                let Said { content, reasoning, calls } = said;
                let calls = self.calls(calls, false);
                let is_empty = content.is_empty() && reasoning.is_empty() && calls.is_empty();
                (!is_empty).then(|| self.part(&content, &reasoning, calls))
            }
            ChatNews::End { said, end, .. } => {
                let calls = self.calls(said.calls, true);
                let mut last = self.part(&said.content, &said.reasoning, calls);
                self.finish(&mut last, &end);
                Some(last)
            }
        }
    }

    /// Says that the answer is over, and what it took, in nanoseconds.
    fn finish(&self, last: &mut Value, end: &End) {
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        let nanoseconds = |from: Instant, to: Instant| Value::from((to - from).as_nanos() as u64);
        let usage = self.chat.usage();
        last["done"] = true.into();
        last["done_reason"] = if *end == End::Length { "length" } else { "stop" }.into();
        last["total_duration"] = nanoseconds(self.began, now);
        last["load_duration"] = 0.into();
        last["prompt_eval_count"] = usage.prompt_tokens.into();
        last["prompt_eval_duration"] = nanoseconds(self.began, first);
        last["eval_count"] = usage.completion_tokens.into();
        last["eval_duration"] = nanoseconds(first, now);
    }

    /// All of it at once.
    async fn whole(mut self) -> Result<Response, ApiError> {
        let (mut content, mut thinking, mut calls) = (String::new(), String::new(), Vec::new());
        let mut whole = Value::Null;
        while let Some(news) = self.chat.next().await {
            let Some(part) = self.take(news?) else { continue };
            let words = if self.is_chat { &part["message"] } else { &part };
            let text = |name: &str| words[name].as_str().unwrap_or_default();
            content.push_str(text(if self.is_chat { "content" } else { "response" }));
            thinking.push_str(text("thinking"));
            calls.extend(words["tool_calls"].as_array().cloned().unwrap_or_default());
            whole = part;
        }
        let words = self.part(&content, &thinking, calls);
        for name in ["message", "response", "thinking"] {
            if let Some(value) = words.get(name) {
                whole[name] = value.clone();
            }
        }
        Ok(body::json(&whole))
    }
}

impl Events for Answer {
    async fn next(&mut self) -> Option<String> {
        while !self.is_over {
            match self.chat.next().await {
                Some(Ok(news)) => {
                    if let Some(part) = self.take(news) {
                        return Some(format!("{part}\n"));
                    }
                }
                Some(Err(error)) => {
                    self.is_over = true;
                    return Some(format!("{}\n", Dialect::Ollama.error(&error)));
                }
                None => self.is_over = true,
            }
        }
        None
    }
}
