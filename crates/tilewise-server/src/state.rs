//! What all endpoints share.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::StatusCode;
use tilewise_engine::GrammarCompiler;
use tilewise_engine::chat::ChatFormat;
use tilewise_engine::model::{ModelConfig, ModelSource, SamplingDefaults};
use tilewise_engine::tokenizer::Tokenizer;
use tilewise_engine::worker::{WorkerHandle, WorkerState};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::ServerConfig;
use crate::error::ApiError;
use crate::gate::Current;
use crate::metrics::Metrics;
use crate::preparing::Preparing;
use crate::routes::responses::KeptItems;
use crate::trace::Tracer;

/// What routers write where a client named no model.
pub(crate) const UNKNOWN_MODEL: &str = "unknown";

/// The model that is served.
pub(crate) struct ServedModel {
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) grammars: GrammarCompiler,
    /// What each token adds to a text.
    token_bytes: Vec<Vec<u8>>,
    /// Tokens that are no part of a text.
    special: HashSet<u32>,
    /// Bytes of the longest of them.
    pub(crate) longest_token: usize,
    /// How it writes calls and reasoning.
    pub(crate) format: ChatFormat,
    /// Its own sampling parameters, where they count.
    pub(crate) defaults: SamplingDefaults,
}

impl ServedModel {
    pub(crate) fn open(source: &ModelSource, config: &ServerConfig) -> Result<Self, crate::ServerError> {
        let tokenizer = source.tokenizer()?;
        tokenizer.notes().iter().for_each(|note| tracing::warn!("{note}"));
        if let Some(error) = tokenizer.template_error() {
            tracing::warn!("conversations are refused: {error}");
        }
        let token_bytes = tokenizer.token_bytes()?;
        let (calls, reasoning) = (config.tool_call_parser.as_deref(), config.reasoning_parser.as_deref());
        let format = ChatFormat::choose(tokenizer.chat_template().ok(), calls, reasoning)
            .map_err(|error| crate::ServerError::Config(error.to_string()))?;
        let longest_token = token_bytes.iter().map(Vec::len).max().unwrap_or(1).max(1);
        let grammars = GrammarCompiler::new(source);
        let model = source.config()?;
        let defaults =
            if config.model_defaults { model.sampling_defaults } else { SamplingDefaults::default() };
        let special = tokenizer.special_ids().into_iter().collect();
        Ok(Self { special, config: model, tokenizer, grammars, token_bytes, longest_token, format, defaults })
    }

    /// Whether a token is no part of a text.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// A token by itself, with what is no character replaced.
    pub(crate) fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.bytes_of(id)).into_owned()
    }

    pub(crate) fn bytes_of(&self, id: u32) -> &[u8] {
        self.token_bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }
}

/// What all endpoints share.
pub(crate) struct App {
    pub(crate) config: ServerConfig,
    pub(crate) model: ServedModel,
    pub(crate) worker: WorkerHandle,
    pub(crate) metrics: Metrics,
    pub(crate) tracer: Option<Tracer>,
    /// Lines of the log that were lost, if somebody counts them.
    pub(crate) lost_lines: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// Items of answers of `/v1/responses`.
    pub(crate) kept_items: KeptItems,
    /// When the model was made available, in seconds since 1970.
    pub(crate) created: u64,
    /// Bounds of what is done before the engine is asked.
    pub(crate) preparing: Preparing,
    /// Whose turn it is to compile a grammar.
    pub(crate) compiling: Arc<Semaphore>,
    /// Completions that wait or run.
    in_flight: watch::Sender<usize>,
    /// Those of each key with a name.
    shares: Mutex<HashMap<Arc<str>, usize>>,
    draining: AtomicBool,
    aborts: Mutex<HashMap<String, Vec<Abort>>>,
    names: RandomState,
    named: AtomicU64,
}

/// Ends a request; the number tells apart those of one name.
type Abort = (u64, oneshot::Sender<()>);

/// Room for a request's completions, which is given back when this is dropped.
pub(crate) struct Room {
    app: Arc<App>,
    completions: usize,
    _share: Option<Share>,
}

/// What a key with a name has of all places, until this is dropped.
struct Share {
    app: Arc<App>,
    tenant: Arc<str>,
    completions: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut shares = self.app.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get_mut(&self.tenant) {
            *share -= self.completions;
            if *share == 0 {
                shares.remove(&self.tenant);
            }
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.app.in_flight.send_modify(|in_flight| *in_flight -= self.completions);
    }
}

/// A request that can be aborted by name, until this is dropped.
pub(crate) struct Abortable {
    app: Arc<App>,
    name: String,
    id: u64,
    pub(crate) aborted: oneshot::Receiver<()>,
}

impl Drop for Abortable {
    fn drop(&mut self) {
        let mut aborts = self.app.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(named) = aborts.get_mut(&self.name) {
            named.retain(|(id, _)| *id != self.id);
            if named.is_empty() {
                aborts.remove(&self.name);
            }
        }
    }
}

impl App {
    pub(crate) fn new(
        config: ServerConfig,
        model: ServedModel,
        worker: WorkerHandle,
        tracer: Option<Tracer>,
    ) -> Self {
        Self {
            tracer,
            lost_lines: OnceLock::new(),
            preparing: Preparing::new(config.limits.body_bytes),
            compiling: Arc::new(Semaphore::new(1)),
            in_flight: watch::Sender::new(0),
            shares: Mutex::default(),
            draining: AtomicBool::new(false),
            aborts: Mutex::default(),
            names: RandomState::new(),
            named: AtomicU64::new(0),
            metrics: Metrics::default(),
            kept_items: KeptItems::default(),
            created: now(),
            config,
            model,
            worker,
        }
    }

    /// Takes room for so many completions.
    ///
    /// # Errors
    /// 429 if there is none, 503 if the engine takes no requests.
    pub(crate) fn admit(self: &Arc<Self>, completions: usize) -> Result<Room, ApiError> {
        self.check_ready()?;
        let most = self.config.limits.completions;
        if completions > most {
            let message = format!(
                "the request asks for {completions} completions, and the server takes {most} at once"
            );
            return Err(ApiError::param("n", message));
        }
        let busy = || ApiError::busy("the server has too much to do; try again");
        let tenant = Current::get().tenant.name;
        let share = tenant.map(|tenant| self.share(tenant, completions).ok_or_else(busy)).transpose()?;
        let fits = self.in_flight.send_if_modified(|in_flight| {
            let fits = *in_flight + completions <= most;
            *in_flight += if fits { completions } else { 0 };
            fits
        });
        match fits {
            true => Ok(Room { app: self.clone(), completions, _share: share }),
            false => Err(busy()),
        }
    }

    /// Takes places for a key with a name, of which none takes all where there are several.
    fn share(self: &Arc<Self>, tenant: Arc<str>, completions: usize) -> Option<Share> {
        let most = self.config.limits.completions;
        let own = if self.config.api_keys.len() > 1 { most.div_ceil(2) } else { most };
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let share = shares.entry(tenant.clone()).or_default();
        let fits = *share + completions <= own;
        *share += if fits { completions } else { 0 };
        drop(shares);
        fits.then(|| Share { app: self.clone(), tenant, completions })
    }

    /// Whether requests are taken.
    ///
    /// # Errors
    /// 503 while the model is loaded, after a failure, and while the server ends.
    pub(crate) fn check_ready(&self) -> Result<(), ApiError> {
        match self.worker.state() {
            _ if self.is_draining() => Err(ApiError::unavailable("the server is shutting down").closing()),
            WorkerState::Ready => Ok(()),
            WorkerState::Loading => Err(ApiError::unavailable("the model is loading")),
            _ => Err(ApiError::unavailable("the engine has failed")),
        }
    }

    /// Completions that wait or run.
    pub(crate) fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }

    /// Waits until nothing waits or runs.
    pub(crate) async fn idle(&self) {
        // The sender lives as long as this.
        let _ = self.in_flight.subscribe().wait_for(|in_flight| *in_flight == 0).await;
    }

    /// Takes no requests from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Lets a request be aborted under a name.
    pub(crate) fn abortable(self: &Arc<Self>, name: String) -> Abortable {
        let (abort, aborted) = oneshot::channel();
        let id = self.named.fetch_add(1, Ordering::Relaxed);
        let mut aborts = self.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        aborts.entry(name.clone()).or_default().push((id, abort));
        Abortable { app: self.clone(), name, id, aborted }
    }

    /// Aborts the requests of a name, or all; returns how many.
    pub(crate) fn abort(&self, name: Option<&str>) -> usize {
        let mut aborts = self.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        let aborted: Vec<_> = match name {
            Some(name) => aborts.remove(name).into_iter().flatten().collect(),
            None => aborts.drain().flat_map(|(_, named)| named).collect(),
        };
        aborted.into_iter().filter_map(|(_, abort)| abort.send(()).ok()).count()
    }

    /// A name that nobody can guess.
    pub(crate) fn new_name(&self, prefix: &str) -> String {
        let count = self.named.fetch_add(1, Ordering::Relaxed);
        let (high, low) = (self.names.hash_one((count, 0)), self.names.hash_one((count, 1)));
        format!("{prefix}{high:016x}{low:016x}")
    }

    /// A span's name.
    pub(crate) fn new_span(&self) -> String {
        format!("{:016x}", self.names.hash_one((self.named.fetch_add(1, Ordering::Relaxed), 3)))
    }

    /// A seed for a request that has none.
    pub(crate) fn new_seed(&self) -> u64 {
        self.names.hash_one((self.named.fetch_add(1, Ordering::Relaxed), 2))
    }

    /// Tokens that a prompt and what follows it may have.
    pub(crate) fn max_tokens(&self) -> usize {
        let context = self.model.config.max_positions;
        match self.worker.snapshot().stats.total_tokens {
            0 => context,
            // The last generated token is never fed back.
            cache => context.min(cache + 1),
        }
    }

    /// Refuses a model that is not served; a request that names none gets the one there is.
    ///
    /// # Errors
    /// 404.
    pub(crate) fn check_model(&self, model: Option<&str>) -> Result<(), ApiError> {
        match model {
            Some(model) if model != self.config.served_model_name && model != UNKNOWN_MODEL => {
                let message = format!(
                    "the model {model:?} does not exist here; {:?} does",
                    self.config.served_model_name
                );
                Err(ApiError::param("model", message).status(StatusCode::NOT_FOUND).code("model_not_found"))
            }
            _ => Ok(()),
        }
    }
}

/// Runs what takes longer than a task may between two awaits, such as reading a long text.
///
/// # Errors
/// Those of the work, and 500 if it panics.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the request could not be prepared")))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
