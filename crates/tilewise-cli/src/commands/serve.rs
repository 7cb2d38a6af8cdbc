//! `tilewise serve`: a model over HTTP.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use tilewise_engine::Engine;
use tilewise_engine::model::ModelSource;
use tilewise_engine::worker::Worker;
use tilewise_server::{Limits, Server, ServerConfig};

use crate::args::{LogFormat, SamplingDefaults, ServeArgs};
use crate::error::CliError;
use crate::model;
use crate::progress::LoadingBar;

pub(crate) fn run(args: &ServeArgs, key: Option<String>) -> Result<(), CliError> {
    log(args.log_format);
    let engine = &args.engine;
    let source = model::source_of(engine.load_format, &engine.model)?;
    let config = server_config(args, &source, key);
    check_host(&config)?;
    config.validate()?;
    let device = super::open_device(&engine.device, &engine.policy)?;
    let name = device.caps().name.clone();
    let (mut engine_config, publisher) = (model::engine_config(engine)?, model::kv_events(engine)?);
    if engine.decode_slowdown.is_none() {
        engine_config.decode_slowdown = Some(2.0);
    }
    let (loaded, counts) = (source.clone(), config.model_defaults);
    let load = move || {
        let bar = LoadingBar::new();
        let mut engine = Engine::new(device, &loaded, &engine_config, &mut |progress| bar.report(progress))?;
        model::print_notes(engine.notes());
        if let Some(said) = model::sampling_in_words(&engine.config().sampling_defaults).filter(|_| counts) {
            tracing::info!("{said}");
        }
        engine.warm_up()?;
        Ok(engine)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let served = config.served_model_name.clone();
        let server = Server::bind(config, &source, Worker::start(load, publisher)?).await?;
        let (address, loaded) = (server.address(), server.loaded());
        // Health says that the model is loading meanwhile.
        let (fail, failed) = tokio::sync::oneshot::channel::<()>();
        let announce = async {
            loaded.await?;
            let mut out = std::io::stdout().lock();
            writeln!(out, "{served} on {name} is served at http://{address}; its page is http://{address}/")?;
            out.flush()?;
            Ok::<(), CliError>(())
        };
        let announce = async {
            // The server goes on for as long as the sender is kept.
            match announce.await {
                Ok(()) => Ok(fail),
                Err(error) => {
                    drop(fail);
                    Err(error)
                }
            }
        };
        let (signalled, stopped) = (signals()?, async { failed.await.is_err().then_some(()) });
        let stop = async {
            tokio::select! {
                () = signalled => {}
                Some(()) = stopped => {}
            }
        };
        let (served, announced) = tokio::join!(server.serve(stop), announce);
        announced?;
        Ok(served?)
    })
}

/// Refuses to let others in by mistake.
fn check_host(config: &ServerConfig) -> Result<(), CliError> {
    let host = config.address.ip();
    if host.is_loopback() || config.api_key.is_some() || config.insecure {
        return Ok(());
    }
    Err(CliError::Usage(format!(
        "--host {host} can be reached by others: give --api-key KEY (or the variable TILEWISE_API_KEY) to ask for a key, or \
         --insecure to let them in without one"
    )))
}

/// Waits until the program is told to end.
#[cfg(unix)]
fn signals() -> Result<impl Future<Output = ()>, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Waits until the program is told to end.
#[cfg(not(unix))]
fn signals() -> Result<impl Future<Output = ()>, CliError> {
    Ok(async {
        // Where there is no such signal, the server is ended by force.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

fn server_config(args: &ServeArgs, source: &ModelSource, key: Option<String>) -> ServerConfig {
    let name = args.served_model_name.clone().unwrap_or_else(|| served_name(source));
    let mut config = ServerConfig::new(SocketAddr::new(args.host, args.port), name);
    config.api_key = args.api_key.clone().or(key);
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
    config
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

fn log(format: LogFormat) {
    let logs = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO);
    match format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
}
