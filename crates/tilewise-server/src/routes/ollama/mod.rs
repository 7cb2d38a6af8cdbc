//! Ollama's protocol.

mod models;
mod request;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};
use tilewise_engine::chat::CallPart;

pub(crate) use models::{__path_ps, __path_show, __path_tags, __path_version, ps, show, tags, version};
pub(crate) use request::{OllamaChatRequest, OllamaGenerateRequest};

use crate::body;
use crate::chats::{Answer, Chat, ChatNews, Protocol};
use crate::error::{ApiError, Dialect};
use crate::fields::Usage;
use crate::generation::End;
use crate::prompt::OnePrompt;
use crate::request::{Body, Ignored};
use crate::sse;
use crate::state::{App, Room};

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
    respond(&app, chat, true, request.common.streams(), &ignored).await
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
    respond(&app, chat, false, request.common.streams(), &ignored).await
}

/// Continues a prompt as it stands.
async fn raw(
    app: &Arc<App>,
    request: &OllamaGenerateRequest,
    ignored: &mut Ignored,
    room: Room,
    name: &str,
) -> Result<Chat, ApiError> {
    let (sampling, form) = (request.common.sampling(ignored)?, request.common.form()?);
    let prompt = OnePrompt::Text(request.generate.prompt.clone().unwrap_or_default());
    let worker = app.clone();
    let prepare = move || {
        let ids = prompt.encode(&worker, "prompt")?;
        Ok((room, sampling.ask(&worker, ids, "prompt", form)?))
    };
    let (room, ask) = app.prepare(prepare).await?;
    Chat::plain(app, ask, room, name, "prompt").await
}

/// Refuses a model that is not served; a name without a tag and one with `:latest` are the same.
fn check_model(app: &App, model: Option<&str>) -> Result<(), ApiError> {
    fn bare(name: &str) -> &str {
        name.strip_suffix(":latest").unwrap_or(name)
    }
    let served = app.config.served_model_name.as_str();
    app.check_model(model.map(|model| if bare(model) == bare(served) { served } else { model }))
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

/// The answer, whole or in lines.
async fn respond(
    app: &Arc<App>,
    chat: Chat,
    is_chat: bool,
    streams: bool,
    ignored: &Ignored,
) -> Result<Response, ApiError> {
    let whole = (!streams).then(Whole::default);
    let lines = Lines { app: app.clone(), is_chat, call: None, began: Instant::now(), first: None, whole };
    let answer = Answer::new(chat, lines);
    let response = match streams {
        true => sse::respond_lines(answer),
        false => {
            let lines = answer.whole().await?.0;
            body::json(&lines.whole.map(|whole| whole.last).unwrap_or_default())
        }
    };
    Ok(ignored.name_in(response))
}

/// An answer as objects, each of which is a line.
struct Lines {
    app: Arc<App>,
    /// Whether it is a message; it is a text otherwise.
    is_chat: bool,
    /// A call whose arguments still come.
    call: Option<(String, String)>,
    began: Instant,
    first: Option<Instant>,
    /// What came so far, where all is told at once.
    whole: Option<Whole>,
}

/// All words and calls, and at the end the object of them.
#[derive(Default)]
struct Whole {
    content: String,
    thinking: String,
    calls: Vec<Value>,
    last: Value,
}

impl Lines {
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
    fn calls(&mut self, parts: impl Iterator<Item = CallPart>, is_end: bool) -> Vec<Value> {
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
        // A call that broke off is none.
        let call = |(name, arguments): (String, String)| {
            let arguments: Value = serde_json::from_str(&arguments).ok()?;
            Some(json!({ "function": { "name": name, "arguments": arguments } }))
        };
        whole.into_iter().filter_map(call).collect()
    }

    /// Says that the answer is over, and what it took, in nanoseconds.
    fn finish(&self, last: &mut Value, end: &End, usage: Usage) {
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        let nanoseconds = |from: Instant, to: Instant| Value::from((to - from).as_nanos() as u64);
        last["done"] = true.into();
        last["done_reason"] = if *end == End::Length { "length" } else { "stop" }.into();
        last["total_duration"] = nanoseconds(self.began, now);
        last["load_duration"] = 0.into();
        last["prompt_eval_count"] = usage.prompt_tokens.into();
        last["prompt_eval_duration"] = nanoseconds(self.began, first);
        last["eval_count"] = usage.completion_tokens.into();
        last["eval_duration"] = nanoseconds(first, now);
    }
}

impl Protocol for Lines {
    fn begin(&mut self, _: Usage) -> String {
        String::new()
    }

    fn take(&mut self, news: ChatNews, usage: Usage) -> String {
        self.first.get_or_insert_with(Instant::now);
        let (said, end) = match news {
            ChatNews::Token { said, .. } => (said, None),
            ChatNews::End { said, end, .. } => (said, Some(end)),
        };
        let calls = self.calls(said.calls().cloned(), end.is_some());
        let (mut content, mut thinking, mut all_calls) = (said.content(), said.reasoning(), calls);
        if let Some(whole) = &mut self.whole {
            whole.content.push_str(&content);
            whole.thinking.push_str(&thinking);
            whole.calls.append(&mut all_calls);
            if end.is_none() {
                return String::new();
            }
            (content, thinking) = (std::mem::take(&mut whole.content), std::mem::take(&mut whole.thinking));
            all_calls = std::mem::take(&mut whole.calls);
        } else if end.is_none() && content.is_empty() && thinking.is_empty() && all_calls.is_empty() {
            return String::new();
        }
        let mut part = self.part(&content, &thinking, all_calls);
        if let Some(end) = end {
            self.finish(&mut part, &end, usage);
        }
        match &mut self.whole {
            Some(whole) => {
                whole.last = part;
                String::new()
            }
            None => format!("{part}\n"),
        }
    }

    fn fail(&mut self, error: &ApiError) -> String {
        format!("{}\n", Dialect::Ollama.error(error))
    }
}
