//! `tilewise serve`: a model over HTTP.

mod log;
mod signals;

use std::io::Write;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tilewise_engine::Engine;
use tilewise_engine::model::ModelSource;
use tilewise_engine::worker::Worker;
use tilewise_server::{Limits, NamedKey, Server, ServerConfig};

use crate::args::{SamplingDefaults, ServeArgs};
use crate::error::CliError;
use crate::model;
use crate::progress::LoadingBar;

/// Keys that the surroundings of the program give.
pub(crate) struct Keys {
    pub(crate) api_key: Option<String>,
    pub(crate) admin_api_key: Option<String>,
}

pub(crate) fn run(args: &ServeArgs, keys: Keys) -> Result<(), CliError> {
    // What is said last is written before this is dropped.
    let log = log::start(args.log_format)?;
    // Connections and files of the cache need descriptors: as many as the system lets this process have.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let engine = &args.engine;
    let source = model::source_of(engine.load_format, &engine.model)?;
    let config = server_config(args, &source, keys)?;
    check_host(&config)?;
    config.validate()?;
    let device = super::open_device(&engine.device, &engine.policy)?;
    let name = device.caps().name.clone();
    let (mut engine_config, publisher) =
        (model::engine_config(engine)?, model::kv_events(engine, args.insecure)?);
    if engine.decode_slowdown.is_none() {
        engine_config.decode_slowdown = Some(2.0);
    }
    let (loaded, counts) = (source.clone(), config.model_defaults);
    // Whether the program was told to end.
    let told = Arc::new(AtomicBool::new(false));
    let is_told = told.clone();
    let load = move || {
        let bar = LoadingBar::new();
        let mut engine = Engine::new(device, &loaded, &engine_config, &mut |progress| {
            bar.report(progress);
            if is_told.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        engine.notes().iter().for_each(|note| tracing::warn!("{note}"));
        if let Some(said) = model::sampling_in_words(&engine.config().sampling_defaults).filter(|_| counts) {
            tracing::info!("{said}");
        }
        if is_told.load(Ordering::Relaxed) {
            return Err(tilewise_engine::Error::Cancelled);
        }
        engine.warm_up()?;
        Ok(engine)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let served = config.served_model_name.clone();
        let server = Server::bind(config, &source, Worker::start(load, publisher)?).await?;
        server.count_lost_lines(log.lost());
        let address = server.address();
        let line = format!("{served} on {name} is served at http://{address}; its page is http://{address}/");
        serve(server, &line, &told).await
    })
}

/// Serves until the program is told to end, which `told` is set by; says a line once the model is loaded. Health says that
/// it is loading meanwhile.
async fn serve(server: Server, line: &str, told: &AtomicBool) -> Result<(), CliError> {
    let (signalled, loaded) = (signals::first()?, server.loaded());
    let (fail, failed) = tokio::sync::oneshot::channel::<()>();
    let announce = async {
        match loaded.await {
            Ok(()) => {
                // Nobody may read it.
                let mut out = std::io::stdout().lock();
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
                // The server goes on for as long as the sender is kept.
                Ok(fail)
            }
            Err(error) => {
                drop(fail);
                Err(error)
            }
        }
    };
    let stop = async {
        tokio::select! {
            () = signalled => told.store(true, Ordering::Relaxed),
            Some(()) = async { failed.await.is_err().then_some(()) } => {}
        }
    };
    let (served, announced) = tokio::join!(server.serve(stop), announce);
    if told.load(Ordering::Relaxed) && announced.is_err() {
        // It was not loaded yet, and nobody is served.
        return Ok(());
    }
    announced?;
    Ok(served?)
}

/// Refuses to let others in by mistake.
fn check_host(config: &ServerConfig) -> Result<(), CliError> {
    let host = config.address.ip();
    let has_key = config.api_key.is_some() || config.admin_api_key.is_some() || !config.api_keys.is_empty();
    if host.is_loopback() || has_key || config.insecure {
        return Ok(());
    }
    Err(CliError::Usage(format!(
        "--host {host} can be reached by others: give --api-key KEY (or the variable TILEWISE_API_KEY) to ask for a key, or \
         --insecure to let them in without one"
    )))
}

fn server_config(args: &ServeArgs, source: &ModelSource, keys: Keys) -> Result<ServerConfig, CliError> {
    let name = args.served_model_name.clone().unwrap_or_else(|| served_name(source));
    let mut config = ServerConfig::new(SocketAddr::new(args.host, args.port), name);
    config.api_key = args.api_key.clone().or(keys.api_key);
    config.admin_api_key = args.admin_api_key.clone().or(keys.admin_api_key);
    if let Some(file) = &args.api_key_file {
        let failed = |why: &dyn std::fmt::Display| CliError::Usage(format!("{}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
        config.api_keys = NamedKey::read(&text).map_err(|error| failed(&error))?;
        if config.api_keys.is_empty() {
            return Err(failed(&"there is no key in it"));
        }
    }
    config.insecure = args.insecure;
    config.tool_call_parser.clone_from(&args.tool_call_parser);
    config.reasoning_parser.clone_from(&args.reasoning_parser);
    config.model_defaults = args.sampling_defaults == SamplingDefaults::Model;
    config.chat_template_kwargs =
        args.chat_template_kwargs.clone().map(|object| object.0).unwrap_or_default();
    config.strict_max_tokens = args.strict_max_tokens;
    config.allowed_origins.clone_from(&args.allow_origin);
    config.otlp_endpoint.clone_from(&args.otlp_endpoint);
    config.max_running = args.engine.max_running;
    config.limits = Limits {
        completions: args.max_requests,
        connections: args.max_connections,
        body_bytes: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        drain_time: Duration::from_secs(args.drain_timeout),
        keep_alive: Duration::from_secs(args.keep_alive),
        ..Limits::default()
    };
    Ok(config)
}

/// The model's name on the hub, or its folder's: a path is nobody else's business.
fn served_name(source: &ModelSource) -> String {
    if let Some(name) = source.repository() {
        return name;
    }
    let folder = match source {
        ModelSource::Folder(folder) | ModelSource::Dummy(folder) => folder.canonicalize().ok(),
        ModelSource::Embedded(_) => None,
    };
    let name = folder.and_then(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()));
    name.unwrap_or_else(|| "tilewise-demo".to_owned())
}
