//! Texts continued, in OpenAI's protocol.

mod answer;
mod request;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use tilewise_engine::Logprobs;

pub(crate) use answer::{Completion, LEAST};
use answer::{CompletionChoice, LogprobsOfText};
pub(crate) use request::CompletionRequest;

use crate::body::json;
use crate::error::ApiError;
use crate::generation::{Batch, Generation, News, Token};
use crate::request::Body;
use crate::sse::{self, Events};
use crate::state::{App, now};

/// Continues texts.
#[utoipa::path(
    post, path = "/v1/completions", tag = "openai", request_body = CompletionRequest,
    responses((status = 200, body = Completion, description = "With `stream`, parts of it as server-sent events"))
)]
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    Body(request, _): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    app.check_model(request.common.model.as_deref())?;
    let (sampling, form) = (request.sampling()?, request.sampling.form(None)?);
    let fields = &request.completion;
    let missing = || ApiError::param("prompt", "prompt is missing").code("missing_field");
    let prompts = fields.prompt.clone().ok_or_else(missing)?.each("prompt")?;
    let n = sampling.fields.completions()?;
    let room = app.admit(prompts.len() * n)?;
    let (echo, logprobs) = (fields.echo.unwrap_or(false), fields.logprobs);
    let (worker, salt) = (app.clone(), request.common.salt());
    let (room, asks) = app
        .prepare(move || {
            let ask = |prompt: crate::prompt::OnePrompt| {
                let prompt = prompt.encode(&worker, "prompt")?;
                let mut ask = sampling.ask(&worker, prompt, "prompt", form.clone())?;
                ask.request.cache_salt.clone_from(&salt);
                ask.request.prompt_logprobs = logprobs.filter(|_| echo).map(|top| top as usize);
                Ok(ask)
            };
            let asks = prompts.into_iter().map(ask).collect::<Result<Vec<_>, ApiError>>()?;
            Ok((room, asks))
        })
        .await?;
    let id = app.new_name("cmpl-");
    let name = request.common.name().unwrap_or(&id);
    let generations = Generation::start_all(&app, asks, room, name, "prompt").await?;
    let answer = Answer {
        app: app.clone(),
        id,
        created: now(),
        echo,
        has_logprobs: logprobs.is_some(),
        prompts: vec![Vec::new(); generations.len()],
        choices: (0..generations.len() * n).map(|_| None).collect(),
        n,
        includes_usage: request.common.includes_usage(),
        counts_on_the_way: request.common.counts_on_the_way(),
        is_over: false,
        batch: Batch::new(generations),
    };
    if request.common.streams() { Ok(sse::respond(&app, answer)) } else { answer.whole().await }
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
    /// Logprobs of each choice; `None` before its first part.
    choices: Vec<Option<LogprobsOfText>>,
    n: usize,
    includes_usage: bool,
    counts_on_the_way: bool,
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
                self.tell(&mut choice, &text, Some(token));
                (!choice.text.is_empty() || choice.logprobs.is_some()).then_some(choice)
            }
            News::End { index, text, end } => {
                let mut choice = self.begin(prompt, index);
                self.tell(&mut choice, &text, None);
                choice.finish_reason = Some(end.name());
                choice.matched_stop = end.matched();
                Some(choice)
            }
        }
    }

    /// Adds text and a token to a part, and the logprobs of the tokens that the text shows.
    fn tell(&mut self, choice: &mut CompletionChoice, text: &str, token: Option<Token>) {
        let logprobs = self.choices[choice.index].get_or_insert_default();
        if self.has_logprobs {
            token.into_iter().for_each(|token| logprobs.push(&self.app, token));
            let more = logprobs.told(&self.app, text.len());
            choice.append(CompletionChoice { logprobs: more, ..CompletionChoice::default() });
        }
        choice.text.push_str(text);
    }

    /// A part of a choice; the first one begins with the prompt, where that is asked for.
    fn begin(&mut self, prompt: usize, index: usize) -> CompletionChoice {
        let mut choice = CompletionChoice { index: prompt * self.n + index, ..CompletionChoice::default() };
        if self.choices[choice.index].is_some() {
            return choice;
        }
        let mut logprobs = LogprobsOfText::default();
        if self.echo {
            let ids = &self.batch.generations[prompt].prompt;
            choice.text = self.app.model.tokenizer.decode(ids).unwrap_or_default();
            choice.logprobs =
                self.has_logprobs.then(|| logprobs.prompt(&self.app, ids, &self.prompts[prompt]));
        }
        self.choices[choice.index] = Some(logprobs);
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
        let mut choices: Vec<CompletionChoice> = (0..self.choices.len()).map(choice).collect();
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
                        let usage = self.counts_on_the_way.then(|| self.batch.usage());
                        return Some(sse::data(&self.answer(vec![part], usage)));
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
