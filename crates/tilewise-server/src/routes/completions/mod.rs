//! Texts continued, in OpenAI's protocol.

mod answer;
mod request;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use tilewise_engine::Logprobs;

pub(crate) use answer::{Completion, LEAST};
use answer::{CompletionChoice, CompletionLogprobs};
pub(crate) use request::CompletionRequest;

use crate::body::{Json, json};
use crate::error::ApiError;
use crate::generation::{Batch, Generation, News};
use crate::sse::{self, Events};
use crate::state::{App, blocking, now};

/// Continues texts.
#[utoipa::path(
    post, path = "/v1/completions", tag = "openai", request_body = CompletionRequest,
    responses((status = 200, body = Completion, description = "With `stream`, parts of it as server-sent events"))
)]
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    Json(request): Json<CompletionRequest>,
) -> Result<Response, ApiError> {
    app.check_model(request.model.as_deref())?;
    let sampling = request.sampling()?;
    let missing = || ApiError::param("prompt", "prompt is missing").code("missing_field");
    let prompts = request.prompt.clone().ok_or_else(missing)?.each("prompt")?;
    let n = sampling.completions()?;
    let room = app.admit(prompts.len() * n)?;
    let (echo, logprobs) = (request.echo.unwrap_or(false), request.logprobs);
    let (worker, salt) = (app.clone(), request.cache_salt.clone());
    let (room, asks) = blocking(move || {
        let ask = |prompt: crate::prompt::OnePrompt| {
            let mut ask = sampling.ask(&worker, prompt.encode(&worker, "prompt")?, "prompt")?;
            ask.request.cache_salt.clone_from(&salt);
            ask.request.prompt_logprobs = logprobs.filter(|_| echo).map(|top| top as usize);
            Ok(ask)
        };
        let asks = prompts.into_iter().map(ask).collect::<Result<Vec<_>, ApiError>>()?;
        Ok((room, asks))
    })
    .await?;
    let id = app.new_name("cmpl-");
    let name = request.rid.as_deref().unwrap_or(&id);
    let generations = Generation::start_all(&app, asks, room, name, "prompt").await?;
    let answer = Answer {
        app: app.clone(),
        id,
        created: now(),
        echo,
        has_logprobs: logprobs.is_some(),
        prompts: vec![Vec::new(); generations.len()],
        offsets: vec![None; generations.len() * n],
        n,
        includes_usage: request.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        is_over: false,
        batch: Batch::new(generations),
    };
    match request.stream {
        Some(true) => Ok(sse::respond(&app, answer)),
        _ => answer.whole().await,
    }
}

/// An answer that is being made.
struct Answer {
    app: Arc<App>,
    id: String,
    created: u64,
    echo: bool,
    has_logprobs: bool,
    /// Of each prompt's tokens but the first.
    prompts: Vec<Vec<Option<Logprobs>>>,
    /// Of each choice, bytes of the tokens so far; `None` before the first.
    offsets: Vec<Option<usize>>,
    n: usize,
    includes_usage: bool,
    is_over: bool,
    batch: Batch,
}

impl Answer {
    /// What news add to a choice, if anything.
    fn part(&mut self, prompt: usize, news: News) -> Option<CompletionChoice> {
        match news {
            News::Prompt { logprobs } => {
                self.prompts[prompt].extend(logprobs.into_iter().map(Result::ok));
                None
            }
            News::Token { index, text, token } => {
                let mut choice = self.begin(prompt, index);
                if self.has_logprobs {
                    let offset = self.offsets[choice.index].get_or_insert(0);
                    let more = CompletionLogprobs::of_token(&self.app, &token, offset);
                    choice.append(CompletionChoice { logprobs: Some(more), ..CompletionChoice::default() });
                }
                choice.text.push_str(&text);
                (!choice.text.is_empty() || choice.logprobs.is_some()).then_some(choice)
            }
            News::End { index, text, end } => {
                let mut choice = self.begin(prompt, index);
                choice.text.push_str(&text);
                choice.finish_reason = Some(end.name());
                choice.matched_stop = end.matched();
                Some(choice)
            }
        }
    }

    /// A part of a choice; the first one begins with the prompt, where that is asked for.
    fn begin(&mut self, prompt: usize, index: usize) -> CompletionChoice {
        let mut choice = CompletionChoice { index: prompt * self.n + index, ..CompletionChoice::default() };
        if self.offsets[choice.index].is_some() {
            return choice;
        }
        let mut offset = 0;
        if self.echo {
            let ids = &self.batch.generations[prompt].prompt;
            choice.text = self.app.model.tokenizer.decode(ids).unwrap_or_default();
            choice.logprobs = self
                .has_logprobs
                .then(|| CompletionLogprobs::of_prompt(&self.app, ids, &self.prompts[prompt], &mut offset));
        }
        self.offsets[choice.index] = Some(offset);
        choice
    }

    fn answer(&self, choices: Vec<CompletionChoice>, usage: Option<crate::fields::Usage>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.app.config.served_model_name.clone(),
            choices,
            usage,
        }
    }

    /// All of it at once.
    async fn whole(mut self) -> Result<Response, ApiError> {
        let choice = |index| CompletionChoice { index, ..CompletionChoice::default() };
        let mut choices: Vec<CompletionChoice> = (0..self.offsets.len()).map(choice).collect();
        while let Some(news) = self.batch.next().await {
            let (prompt, news) = news?;
            if let Some(part) = self.part(prompt, news) {
                choices[part.index].append(part);
            }
        }
        Ok(json(&self.answer(choices, Some(self.batch.usage()))))
    }
}

impl Events for Answer {
    async fn next(&mut self) -> Option<String> {
        while !self.is_over {
            match self.batch.next().await {
                Some(Ok((prompt, news))) => {
                    if let Some(part) = self.part(prompt, news) {
                        return Some(sse::data(&self.answer(vec![part], None)));
                    }
                }
                Some(Err(error)) => {
                    self.is_over = true;
                    return Some(sse::error(&error) + sse::DONE);
                }
                None => {
                    self.is_over = true;
                    let usage = self.includes_usage.then(|| self.batch.usage());
                    let usage = usage.map(|usage| sse::data(&self.answer(Vec::new(), Some(usage))));
                    return Some(usage.unwrap_or_default() + sse::DONE);
                }
            }
        }
        None
    }
}
