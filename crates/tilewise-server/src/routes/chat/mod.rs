//! Conversations continued, in OpenAI's protocol.

mod answer;
mod request;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use tilewise_engine::tokenizer::ChatInput;

use answer::{ChatChoice, ChatLogprobs, ChunkChoice, Delta, FunctionDelta, ToolCallDelta};
pub(crate) use answer::{ChatChunk, ChatCompletion};
pub(crate) use request::ChatRequest;

use crate::body::{Json, json};
use crate::calls::CallPart;
use crate::error::ApiError;
use crate::fields::Usage;
use crate::generation::{Batch, End, Generation, News, Token};
use crate::parsers::{OutputReader, Parsed};
use crate::prompt::{check_length, encode};
use crate::sampling::Ask;
use crate::sse::{self, Events};
use crate::state::{App, blocking, now};
use crate::tools::Tools;

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
    Json(request): Json<ChatRequest>,
) -> Result<Response, ApiError> {
    app.check_model(request.model.as_deref())?;
    let tools = tools(&app, &request)?;
    let sampling = request.sampling(tools.grammar.clone())?;
    let n = sampling.completions()?;
    let room = app.admit(n)?;
    let reasons = request.separate_reasoning.unwrap_or(true);
    let (has_logprobs, options) = (request.logprobs.unwrap_or(false), request.stream_options);
    let (stream, rid) = (request.stream.unwrap_or(false), request.rid.clone());
    let worker = app.clone();
    let (room, tools, text, ask) = blocking(move || {
        let text = render(&worker, &request, &tools)?;
        check_length(&worker, &text, "messages")?;
        let prompt = encode(&worker, &text, false, "messages")?;
        let mut ask: Ask = sampling.ask(&worker, prompt, "messages")?;
        ask.request.cache_salt = request.cache_salt;
        Ok((room, tools, text, ask))
    })
    .await?;
    let id = app.new_name("chatcmpl-");
    let name = rid.as_deref().unwrap_or(&id);
    let generation = Generation::start(&app, ask, room, name, "messages").await?;
    let reader = |_| app.model.parsers.reader(tools.names(), reasons, &text);
    let answer = Answer {
        app: app.clone(),
        id,
        created: now(),
        has_logprobs,
        readers: (0..n).map(reader).collect(),
        calls: vec![0; n],
        includes_usage: options.and_then(|options| options.include_usage).unwrap_or(false),
        state: Progress::Begins,
        batch: Batch::new(vec![generation]),
    };
    if stream { Ok(sse::respond(&app, answer)) } else { answer.whole().await }
}

/// The functions of a request, which the model must be able to see and to call.
fn tools(app: &App, request: &ChatRequest) -> Result<Tools, ApiError> {
    let definitions = request.tools.clone().unwrap_or_default();
    let parallel = request.parallel_tool_calls.unwrap_or(false);
    let tools = Tools::of(definitions, request.tool_choice.as_ref(), parallel)?;
    if tools.is_empty() {
        return Ok(tools);
    }
    let sees = app.model.tokenizer.chat_template().is_ok_and(|template| template.reads("tools"));
    if !sees || !app.model.parsers.reads_calls {
        return Err(ApiError::unsupported("tools", "the model's chat template has no tools"));
    }
    Ok(tools)
}

/// The conversation as text.
fn render(app: &App, request: &ChatRequest, tools: &Tools) -> Result<String, ApiError> {
    let invalid = |error| ApiError::refused(&error, "messages");
    let template = app.model.tokenizer.chat_template().map_err(invalid)?;
    let options = request.chat_template_kwargs.clone().unwrap_or_default();
    for reserved in ["messages", "tools", "add_generation_prompt"] {
        if options.contains_key(reserved) {
            let message = format!("chat_template_kwargs must not have {reserved:?}");
            return Err(ApiError::param("chat_template_kwargs", message));
        }
    }
    let continues = request.continues()?;
    let messages = request.conversation()?;
    let last =
        messages.as_array().and_then(|messages| messages.last()?["content"].as_str()).map(str::to_owned);
    let input =
        ChatInput { messages, tools: tools.for_template(), options, add_generation_prompt: !continues };
    let mut text = template.render(&input).map_err(invalid)?;
    if continues {
        // What the template puts behind the message would end it.
        let last = last.unwrap_or_default();
        let end = text.rfind(last.trim_end()).map(|start| start + last.trim_end().len());
        text.truncate(end.unwrap_or(text.len()));
    }
    Ok(text)
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
    id: String,
    created: u64,
    has_logprobs: bool,
    /// Of each choice.
    readers: Vec<OutputReader>,
    /// Calls of each so far.
    calls: Vec<usize>,
    includes_usage: bool,
    state: Progress,
    batch: Batch,
}

impl Answer {
    /// What news add, if anything.
    fn part(&mut self, news: News) -> Option<ChunkChoice> {
        match news {
            News::Prompt { .. } => None,
            News::Token { index, text, token } => {
                let parsed = self.readers[index].push(&text);
                let part = self.delta(index, parsed, Some(&token));
                let Delta { content, reasoning_content, tool_calls, .. } = &part.delta;
                let is_empty = content.is_none() && reasoning_content.is_none() && tool_calls.is_empty();
                (!is_empty || part.logprobs.is_some()).then_some(part)
            }
            News::End { index, text, end } => {
                let parsed = self.readers[index].finish(&text);
                let mut part = self.delta(index, parsed, None);
                let is_call = self.readers[index].has_calls() && !matches!(end, End::Length | End::Aborted);
                part.finish_reason = Some(if is_call { "tool_calls" } else { end.name() });
                part.matched_stop = end.matched();
                Some(part)
            }
        }
    }

    fn delta(&mut self, index: usize, parsed: Parsed, token: Option<&Token>) -> ChunkChoice {
        let some = |text: String| (!text.is_empty()).then_some(text);
        let calls = &mut self.calls[index];
        let call = |CallPart { name, arguments }| {
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
            content: some(parsed.content),
            reasoning_content: some(parsed.reasoning),
            tool_calls: parsed.calls.into_iter().map(call).collect(),
        };
        let logprobs = token.filter(|_| self.has_logprobs).map(|token| ChatLogprobs::of(&self.app, token));
        ChunkChoice { index, delta, logprobs, ..ChunkChoice::default() }
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

    /// All of it at once.
    async fn whole(mut self) -> Result<Response, ApiError> {
        let choice = |index| ChatChoice { index, ..ChatChoice::default() };
        let mut choices: Vec<ChatChoice> = (0..self.readers.len()).map(choice).collect();
        while let Some(news) = self.batch.next().await {
            if let Some(part) = self.part(news?.1) {
                choices[part.index].append(part);
            }
        }
        Ok(json(&ChatCompletion {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: self.app.config.served_model_name.clone(),
            choices: choices.into_iter().map(ChatChoice::finished).collect(),
            usage: self.batch.usage(),
        }))
    }

    /// Who speaks, once for each choice.
    fn roles(&self) -> String {
        let role = |index| {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            self.chunk(vec![ChunkChoice { index, delta, ..ChunkChoice::default() }], None)
        };
        (0..self.readers.len()).map(role).collect()
    }
}

impl Events for Answer {
    async fn next(&mut self) -> Option<String> {
        loop {
            match self.state {
                Progress::IsOver => return None,
                Progress::Begins => {
                    self.state = Progress::Runs;
                    return Some(self.roles());
                }
                Progress::Runs => {}
            }
            match self.batch.next().await {
                Some(Ok((_, news))) => {
                    if let Some(part) = self.part(news) {
                        return Some(self.chunk(vec![part], None));
                    }
                }
                Some(Err(error)) => {
                    self.state = Progress::IsOver;
                    return Some(sse::error(&error) + sse::DONE);
                }
                None => {
                    self.state = Progress::IsOver;
                    let usage = self.includes_usage.then(|| self.chunk(Vec::new(), Some(self.batch.usage())));
                    return Some(usage.unwrap_or_default() + sse::DONE);
                }
            }
        }
    }
}
