//! A request under way: from the engine's tokens to text.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use serde::Serialize;
use tilewise_engine::tokenizer::{Piece, TextStream};
use tilewise_engine::worker::{Update, Updates};
use tilewise_engine::{CachedTokens, Event, FinishReason, Logprobs, NotFinite};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::gate::Current;
use crate::grammars;
use crate::sampling::Ask;
use crate::state::{Abortable, App, Room};
use crate::trace::{Span, SpanKind, TraceContext};

/// Something new of a request.
#[derive(Debug)]
pub(crate) enum News {
    /// Logprobs of the next part of the prompt, from its second token on.
    Prompt { logprobs: Vec<Result<Logprobs, NotFinite>> },
    /// A token, and the text that is certain with it; often none.
    Token { index: usize, text: String, token: Token },
    /// A completion is over; with the text that was held back.
    End { index: usize, text: String, end: End },
}

/// A generated token.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) logprob: Option<f32>,
    pub(crate) top_logprobs: Vec<(u32, f32)>,
    /// Whether it ends the text and is no part of it.
    pub(crate) is_end: bool,
}

/// Why a completion is over.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    /// At a stop string.
    String(String),
    /// At this token.
    Token(u32),
    /// Its grammar is complete.
    Grammar,
    /// Nothing that could follow counts.
    Enough,
    /// It has as many tokens as it may have.
    Length,
    /// Somebody asked for it to be aborted.
    Aborted,
}

impl End {
    /// `stop`, `length` or `abort`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::String(_) | Self::Token(_) | Self::Grammar | Self::Enough => "stop",
            Self::Length => "length",
            Self::Aborted => "abort",
        }
    }

    /// The string or the token that it ended at.
    pub(crate) fn matched(&self) -> Option<Matched> {
        match self {
            Self::String(string) => Some(Matched::String(string.clone())),
            Self::Token(id) => Some(Matched::Token(*id)),
            Self::Grammar | Self::Enough | Self::Length | Self::Aborted => None,
        }
    }
}

/// What ended a text.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Matched {
    /// A stop string.
    String(String),
    /// A token.
    Token(u32),
}

/// The text of a completion.
struct Completion {
    text: TextStream,
    /// Why it was ended here: what comes until the engine has ended it is not told.
    stopped: Option<End>,
    last: Option<Instant>,
}

/// A request under way. It is given up, and its pages with it, when this is dropped.
pub(crate) struct Generation {
    app: Arc<App>,
    updates: Updates,
    completions: Vec<Option<Completion>>,
    stop_ids: HashSet<u32>,
    /// The field of the grammar.
    form: Option<&'static str>,
    news: VecDeque<News>,
    abortable: Option<Abortable>,
    pub(crate) prompt: Vec<u32>,
    pub(crate) completion_tokens: usize,
    /// Tokens of the prompt that were not computed; known at the end.
    pub(crate) cached: CachedTokens,
    /// When it was admitted.
    started: Instant,
    /// The HTTP request that it answers, for the log.
    request: Current,
    first_token: Option<Duration>,
    outcome: &'static str,
    _room: Arc<Room>,
}

impl Generation {
    /// Compiles a request's grammar, queues it and waits until the engine has accepted it. `name` is what it can be aborted
    /// by, and `prompt_field` where its prompt came from.
    ///
    /// # Errors
    /// 400 if it can never run, 503 if the engine has failed.
    pub(crate) async fn start(
        app: &Arc<App>,
        ask: Ask,
        room: Room,
        name: &str,
        prompt_field: &str,
    ) -> Result<Self, ApiError> {
        let mut generations = Self::start_all(app, vec![ask], room, name, prompt_field).await?;
        Ok(generations.remove(0))
    }

    /// As [`Generation::start`], for several requests with one grammar, of which none waits for another.
    ///
    /// # Errors
    /// Those of the first that has any.
    pub(crate) async fn start_all(
        app: &Arc<App>,
        asks: Vec<Ask>,
        room: Room,
        name: &str,
        prompt_field: &str,
    ) -> Result<Vec<Self>, ApiError> {
        let (started, room) = (Instant::now(), Arc::new(room));
        let tenant = Current::get().tenant;
        let mut asks: Vec<(Ask, Abortable)> =
            asks.into_iter().map(|ask| (ask, app.abortable(tenant.own(name)))).collect();
        for (ask, _) in &mut asks {
            ask.request.cache_salt = tenant.salt(ask.request.cache_salt.take());
        }
        if let Some(form) = asks.iter().find_map(|(ask, _)| ask.form.clone()) {
            let compiled = grammars::compile(app, &room, form).await?;
            asks.iter_mut().for_each(|(ask, _)| ask.request.grammar = Some(compiled.clone()));
        }
        let submit = |(ask, abortable)| Self::submit(app, ask, abortable, started, &room);
        let mut generations: Vec<Self> = asks.into_iter().map(submit).collect();
        for generation in &mut generations {
            generation.accepted(prompt_field).await?;
        }
        Ok(generations)
    }

    fn submit(app: &Arc<App>, ask: Ask, abortable: Abortable, started: Instant, room: &Arc<Room>) -> Self {
        let Ask { request, stop, form } = ask;
        let (prompt, n) = (request.prompt.clone(), request.n);
        let mut stop_ids: HashSet<u32> = request.stop_ids.iter().copied().collect();
        if !request.ignore_eos {
            stop_ids.extend(&app.model.config.eos_ids);
        }
        let completion =
            || Some(Completion { text: TextStream::new(stop.clone()), stopped: None, last: None });
        Self {
            updates: app.worker.submit(request),
            completions: (0..n).map(|_| completion()).collect(),
            stop_ids,
            form: form.map(|form| form.field),
            news: VecDeque::new(),
            abortable: Some(abortable),
            prompt,
            completion_tokens: 0,
            cached: CachedTokens::default(),
            started,
            request: Current::get(),
            first_token: None,
            outcome: "cancelled",
            app: app.clone(),
            _room: room.clone(),
        }
    }

    async fn accepted(&mut self, prompt_field: &str) -> Result<(), ApiError> {
        let error = match self.updates.next().await {
            Some(Update::Accepted) => return Ok(()),
            Some(Update::Refused(error)) => ApiError::refused(&error, prompt_field),
            _ => ApiError::unavailable("the engine has failed"),
        };
        self.outcome = "refused";
        Err(error)
    }

    /// Since the request was admitted.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What is new; `None` when all completions are over.
    ///
    /// # Errors
    /// When the engine or a completion has failed, or when nobody has read what was new for too long.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<News, ApiError>>> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Poll::Ready(Some(Ok(news)));
            }
            if self.completions.iter().all(Option::is_none) {
                return Poll::Ready(None);
            }
            if let Some(abortable) = &mut self.abortable
                && std::pin::Pin::new(&mut abortable.aborted).poll(cx).is_ready()
            {
                self.abort();
                continue;
            }
            let Some(update) = std::task::ready!(self.updates.poll_next(cx)) else {
                return Poll::Ready(Some(Err(self.lost())));
            };
            if let Err(error) = self.take(update) {
                self.completions.clear();
                self.outcome = "failed";
                self.updates.abort();
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    /// Ends a completion that has said enough.
    pub(crate) fn finish(&mut self, index: usize) {
        if let Some(Some(completion)) = self.completions.get_mut(index)
            && completion.stopped.is_none()
        {
            completion.stopped = Some(End::Enough);
            self.updates.finish(index);
        }
    }

    /// Ends all completions.
    fn abort(&mut self) {
        self.updates.abort();
        self.outcome = "aborted";
        self.abortable = None;
        for index in 0..self.completions.len() {
            if self.completions[index].take().is_some() {
                self.news.push_back(News::End { index, text: String::new(), end: End::Aborted });
            }
        }
    }

    /// The engine ends a request in silence only if its events were not read.
    fn lost(&mut self) -> ApiError {
        self.completions.clear();
        self.outcome = "lost";
        match self.app.check_ready() {
            Err(error) if !self.app.is_draining() => error,
            _ => ApiError::new(hyper::StatusCode::REQUEST_TIMEOUT, "the client reads too slowly")
                .code("slow_client"),
        }
    }

    fn take(&mut self, update: Update) -> Result<(), ApiError> {
        match update {
            Update::Event(Event::Token { index, id, logprob, top_logprobs, .. }) => {
                let is_end = self.stop_ids.contains(&id);
                self.token(index, Token { id, logprob, top_logprobs, is_end })
            }
            Update::Event(Event::Finished { index, reason, cached_from, .. }) => {
                if cached_from.total() > self.cached.total() {
                    self.cached = cached_from;
                }
                self.end(index, reason)
            }
            Update::Event(Event::PromptLogprobs { logprobs, .. }) => {
                self.news.push_back(News::Prompt { logprobs });
                Ok(())
            }
            Update::Event(_) | Update::Accepted => Ok(()),
            Update::Refused(_) | Update::Failed(_) => Err(ApiError::unavailable("the engine has failed")),
        }
    }

    fn token(&mut self, index: usize, token: Token) -> Result<(), ApiError> {
        let Some(Some(completion)) = self.completions.get_mut(index) else { return Ok(()) };
        if completion.stopped.is_some() {
            return Ok(());
        }
        self.completion_tokens += 1;
        self.first_token.get_or_insert_with(|| self.started.elapsed());
        self.app.metrics.token(self.started, completion.last.replace(Instant::now()));
        let piece = match token.is_end {
            true => Piece { text: String::new(), stop: None },
            false => completion
                .text
                .push(&self.app.model.tokenizer, token.id)
                .map_err(|error| unreadable(&error))?,
        };
        if let Some(stop) = piece.stop {
            completion.stopped = Some(End::String(stop));
            self.updates.finish(index);
        }
        self.news.push_back(News::Token { index, text: piece.text, token });
        Ok(())
    }

    fn end(&mut self, index: usize, reason: FinishReason) -> Result<(), ApiError> {
        let Some(completion) = self.completions.get_mut(index).and_then(Option::take) else { return Ok(()) };
        let end = match reason {
            FinishReason::Stop(id) => End::Token(id),
            FinishReason::Grammar => End::Grammar,
            FinishReason::Length | FinishReason::Ended => End::Length,
            FinishReason::Ungrammatical(why) => {
                let message = format!("the grammar cannot be followed: {why}");
                return Err(ApiError::ungrammatical(self.form.unwrap_or_default(), message));
            }
            FinishReason::Failed(why) => {
                return Err(ApiError::internal(format!("generation ended early: {why}")));
            }
            _ => return Err(ApiError::internal("generation ended early")),
        };
        let (text, end) = match completion.stopped {
            Some(end) => (String::new(), end),
            None => {
                let rest = completion.text.finish(&self.app.model.tokenizer);
                let rest = rest.map_err(|error| unreadable(&error))?;
                // A character that was cut off is none.
                let text = rest.text.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned();
                (text, rest.stop.map_or(end, End::String))
            }
        };
        self.news.push_back(News::End { index, text, end });
        if self.completions.iter().all(Option::is_none) {
            self.outcome = "done";
            self.app.metrics.request_done(self.started, self.prompt.len(), self.cached);
        }
        Ok(())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let duration = self.elapsed();
        let Self { outcome, completion_tokens, .. } = *self;
        let (request, prompt_tokens) = (&self.request.name, self.prompt.len());
        let cached_tokens = self.cached.total();
        self.request.usage.add(prompt_tokens, completion_tokens, cached_tokens, outcome == "failed");
        let milliseconds = duration.as_secs_f64() * 1e3;
        // A second panic would end the process.
        if !std::thread::panicking() {
            tracing::info!(
                request,
                outcome,
                prompt_tokens,
                completion_tokens,
                cached_tokens,
                milliseconds,
                "generated"
            );
        }
        let (Some(tracer), Some(parent)) = (&self.app.tracer, self.request.trace.take()) else { return };
        let mut attributes = vec![
            ("gen_ai.request.model", self.app.config.served_model_name.as_str().into()),
            ("gen_ai.usage.input_tokens", prompt_tokens.into()),
            ("gen_ai.usage.output_tokens", completion_tokens.into()),
            ("tilewise.cached_tokens", cached_tokens.into()),
            ("tilewise.outcome", outcome.into()),
        ];
        attributes.extend(
            self.first_token.map(|time| ("gen_ai.server.time_to_first_token", time.as_secs_f64().into())),
        );
        tracer.send(&Span {
            context: TraceContext { trace: parent.trace, span: self.app.new_span() },
            parent: Some(parent.span),
            name: "generate".to_owned(),
            kind: SpanKind::Internal,
            duration,
            attributes,
            is_error: outcome == "failed",
        });
    }
}

fn unreadable(error: &tilewise_engine::Error) -> ApiError {
    tracing::error!(%error, "a token has no text");
    ApiError::internal("a token has no text")
}

/// The generations of a request with several prompts.
pub(crate) struct Batch {
    pub(crate) generations: Vec<Generation>,
    /// Who is asked first, in turns.
    turn: usize,
    over: Vec<bool>,
}

impl Batch {
    pub(crate) fn new(generations: Vec<Generation>) -> Self {
        Self { over: vec![false; generations.len()], generations, turn: 0 }
    }

    /// What is new, and of which prompt; `None` when all are over.
    ///
    /// # Errors
    /// As [`Generation::poll_next`].
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, News), ApiError>> {
        std::future::poll_fn(|cx| {
            let count = self.generations.len();
            for offset in 0..count {
                let prompt = (self.turn + offset) % count;
                if self.over[prompt] {
                    continue;
                }
                match self.generations[prompt].poll_next(cx) {
                    Poll::Ready(Some(news)) => {
                        self.turn = prompt + 1;
                        return Poll::Ready(Some(news.map(|news| (prompt, news))));
                    }
                    Poll::Ready(None) => self.over[prompt] = true,
                    Poll::Pending => {}
                }
            }
            if self.over.iter().all(|over| *over) { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    /// What all took so far.
    pub(crate) fn usage(&self) -> crate::fields::Usage {
        let sum = |of: fn(&Generation) -> usize| self.generations.iter().map(of).sum();
        crate::fields::Usage::new(
            sum(|generation| generation.prompt.len()),
            sum(|generation| generation.completion_tokens),
            sum(|generation| generation.cached.total()),
        )
    }
}
