//! Texts continued, in SGLang's own protocol.

mod answer;
mod request;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use tilewise_engine::Logprobs;

pub(crate) use answer::Generated;
use answer::{EndReason, LogprobStyle, MetaInfo};
pub(crate) use request::{GenerateRequest, TokenIds};

use crate::body::json;
use crate::error::ApiError;
use crate::fields::OneOrMany;
use crate::generation::{Batch, Generation, News};
use crate::prompt::OnePrompt;
use crate::request::Body;
use crate::sse::{self, Events};
use crate::state::App;

/// Continues a text or tokens.
#[utoipa::path(
    post, path = "/generate", tag = "sglang", request_body = GenerateRequest,
    responses((
        status = 200, body = OneOrMany<Generated>,
        description = "A list of them for several prompts or completions; with `stream`, server-sent events"
    ))
)]
pub(crate) async fn generate(
    State(app): State<Arc<App>>,
    Body(request, _): Body<GenerateRequest>,
) -> Result<Response, ApiError> {
    app.check_model(request.common.model.as_deref())?;
    let sampling = request.sampling()?;
    let (n, form) = (sampling.fields.completions()?, sampling.fields.form(None)?);
    let (prompt, field) = request.prompt()?;
    let prompts = prompt.each(field)?;
    let from = request.prompt_logprobs_from()?;
    let top = request.generate.top_logprobs_num.unwrap_or(0) as usize;
    let room = app.admit(prompts.len() * n)?;
    let (worker, salt) = (app.clone(), request.common.salt());
    let (room, asks) = app
        .prepare(move || {
            let ask = |prompt: OnePrompt| {
                let prompt = prompt.encode(&worker, field)?;
                let mut ask = sampling.ask(&worker, prompt, field, form.clone())?;
                ask.request.cache_salt.clone_from(&salt);
                ask.request.prompt_logprobs = from.map(|_| top);
                Ok(ask)
            };
            let asks = prompts.into_iter().map(ask).collect::<Result<Vec<_>, ApiError>>()?;
            Ok((room, asks))
        })
        .await?;
    let name = request.common.name().map_or_else(|| app.new_name(""), str::to_owned);
    let generations = Generation::start_all(&app, asks, room, &name, field).await?;
    let style = LogprobStyle { has_text: request.generate.return_text_in_logprobs.unwrap_or(false), top };
    let answer = Answer {
        texts: texts(&name, &generations, n),
        app: app.clone(),
        n,
        style: request.generate.return_logprob.unwrap_or(false).then_some(style),
        from,
        prompts: vec![Vec::new(); generations.len()],
        is_list: request.is_list(),
        is_over: false,
        batch: Batch::new(generations),
    };
    if request.common.streams() { Ok(sse::respond(&app, answer)) } else { answer.whole().await }
}

/// What there is of each completion before its first token.
fn texts(name: &str, generations: &[Generation], n: usize) -> Vec<Generated> {
    let count = generations.len() * n;
    let text = |index: usize| Generated {
        index: None,
        text: String::new(),
        output_ids: Vec::new(),
        meta_info: MetaInfo {
            id: if count == 1 { name.to_owned() } else { format!("{name}-{index}") },
            finish_reason: None,
            prompt_tokens: generations[index / n].prompt.len(),
            completion_tokens: 0,
            cached_tokens: 0,
            e2e_latency: 0.0,
            input_token_logprobs: None,
            output_token_logprobs: None,
            input_top_logprobs: None,
            output_top_logprobs: None,
        },
    };
    (0..count).map(text).collect()
}

/// An answer that is being made.
struct Answer {
    app: Arc<App>,
    n: usize,
    style: Option<LogprobStyle>,
    from: Option<usize>,
    /// Logprobs of each prompt's tokens but the first.
    prompts: Vec<Vec<Option<Logprobs>>>,
    texts: Vec<Generated>,
    is_list: bool,
    is_over: bool,
    batch: Batch,
}

impl Answer {
    /// Adds news to the text that they are of, and says which; nothing is to be told of some.
    fn take(&mut self, prompt: usize, news: News) -> Option<usize> {
        let generation = &self.batch.generations[prompt];
        let (at, text, token, end) = match news {
            News::Prompt { logprobs } => {
                self.prompts[prompt].extend(logprobs.into_iter().map(Result::ok));
                return None;
            }
            News::Token { index, text, token } => (prompt * self.n + index, text, Some(token), None),
            News::End { index, text, end } => (prompt * self.n + index, text, None, Some(end)),
        };
        let whole = &mut self.texts[at];
        whole.text.push_str(&text);
        let info = &mut whole.meta_info;
        info.e2e_latency = generation.elapsed().as_secs_f64();
        if let (Some(style), Some(from)) = (self.style, self.from)
            && info.completion_tokens == 0
        {
            style.set_prompt(&self.app, (&generation.prompt, from), &self.prompts[prompt], info);
        }
        if let Some(token) = &token {
            whole.output_ids.push(token.id);
            info.completion_tokens += 1;
            if let Some(style) = self.style {
                style.push(&self.app, token, info);
            }
        }
        if let Some(end) = &end {
            info.cached_tokens = generation.cached.total();
            info.finish_reason = Some(EndReason::of(end, info.completion_tokens));
        }
        (end.is_some() || !text.is_empty() || self.style.is_some()).then_some(at)
    }

    /// All of it at once.
    async fn whole(mut self) -> Result<Response, ApiError> {
        while let Some(news) = self.batch.next().await {
            let (prompt, news) = news?;
            self.take(prompt, news);
        }
        match &*self.texts {
            [one] if !self.is_list => Ok(json(one)),
            all => Ok(json(&all)),
        }
    }
}

impl Events for Answer {
    async fn next(&mut self) -> Option<String> {
        while !self.is_over {
            match self.batch.next().await {
                Some(Ok((prompt, news))) => {
                    if let Some(at) = self.take(prompt, news) {
                        let index = self.is_list.then_some(at);
                        return Some(sse::data(&self.texts[at].event(index)));
                    }
                }
                Some(Err(error)) => {
                    self.is_over = true;
                    return Some(sse::error(&error) + sse::DONE);
                }
                None => {
                    self.is_over = true;
                    return Some(sse::DONE.to_owned());
                }
            }
        }
        None
    }
}
