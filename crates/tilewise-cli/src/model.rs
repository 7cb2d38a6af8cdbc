//! Opening devices and models.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tilewise::Device;
use tilewise_engine::cache::events::{KvEventPublisher, is_loopback};
use tilewise_engine::cache::tiers::{S3Bucket, TierConfig};
use tilewise_engine::model::{ModelSource, SamplingDefaults, hub};
use tilewise_engine::{DraftLength, Drafter, Engine, EngineConfig, KvBudget, Preemption, Speculation};

use crate::args::{DeviceArgs, EngineArgs, LoadFormat, ModelArgs, SpeculationArgs, TierArgs};
use crate::embedded::{DEMO, DRAFT};
use crate::env;
use crate::error::CliError;
use crate::progress::{DownloadBar, LoadingBar};

/// The device that the command line names.
pub(crate) fn open_device(args: &DeviceArgs) -> Result<Arc<dyn Device>, CliError> {
    let device = tilewise::open(&args.device, args.threads)?;
    let cores = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    if let Some(threads) = args.threads.filter(|&threads| threads > cores && device.caps().name == "cpu") {
        say!(
            "tilewise: note: --threads {threads} is more than there are cores, {cores}: threads that share a core are slower"
        );
    }
    if device.caps().software {
        let name = &device.caps().name;
        say!("tilewise: note: {name} is a processor that plays a GPU: --device cpu is faster");
    }
    Ok(device)
}

/// Checks that a file can be written before anything is measured for it; leaves it as it is.
///
/// # Errors
/// [`CliError::Failed`] that names it.
pub(crate) fn check_writable(path: &Path) -> Result<(), CliError> {
    let is_there = std::fs::metadata(path);
    // Opening a pipe or a device may wait, or end what is at its other side.
    if is_there.as_ref().is_ok_and(|file| !file.is_file() && !file.is_dir()) {
        return Ok(());
    }
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|error| unwritable(path, &error))?;
    if is_there.is_err() {
        // What fails later leaves no empty file behind.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// A file that cannot be written.
pub(crate) fn unwritable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::Failed(format!("{} cannot be written: {error}; name another file", path.display()))
}

/// The model that the command line names, fetched if need be, or the embedded one.
///
/// # Errors
/// As [`hub::locate`].
pub(crate) fn source(model: &ModelArgs) -> Result<ModelSource, CliError> {
    Ok(match folder(model)? {
        Some(folder) => ModelSource::Folder(folder),
        None => ModelSource::Embedded(DEMO),
    })
}

/// The model that the command line names with its weights or with random ones, or the embedded one.
///
/// # Errors
/// As [`source`]; [`CliError::Failed`] where there are no weights, [`CliError::Usage`] where random weights have no folder with a `config.json`.
pub(crate) fn source_of(format: LoadFormat, model: &ModelArgs) -> Result<ModelSource, CliError> {
    match format {
        LoadFormat::Auto => {
            let source = source(model)?;
            match source.weights() {
                Err(error @ tilewise_engine::Error::File { .. }) => {
                    Err(CliError::Failed(format!("{error}; --load-format dummy takes random weights")))
                }
                _ => Ok(source),
            }
        }
        LoadFormat::Dummy => match folder(model)? {
            Some(folder) => Ok(ModelSource::Dummy(folder)),
            None => Err(CliError::Usage(
                "--load-format dummy needs --model-path, a folder with a config.json".to_owned(),
            )),
        },
    }
}

/// The folder of the model that the command line names.
fn folder(model: &ModelArgs) -> Result<Option<PathBuf>, CliError> {
    let revision = model.revision.as_deref();
    let Some(path) = &model.path else {
        return match revision {
            Some(_) => Err(CliError::Usage("--revision needs --model org/name".to_owned())),
            None => Ok(None),
        };
    };
    let mut bar = DownloadBar::default();
    let located = hub::locate(path, revision, &env::hub(), &mut |download| bar.report(download));
    located.map(Some).map_err(|error| match error {
        // A mistyped path looks like a name.
        tilewise_engine::Error::Hub { .. } => CliError::Failed(format!(
            "there is no folder {} here; as a model of the hub: {error}",
            path.display()
        )),
        other => other.into(),
    })
}

/// Prints what a model's files say that is set aside.
pub(crate) fn print_notes(notes: &[String]) {
    for note in notes {
        say!("tilewise: note: {note}");
    }
}

/// Says which of the model's own sampling parameters count; `None` where none do.
pub(crate) fn sampling_in_words(model: &SamplingDefaults) -> Option<String> {
    let SamplingDefaults { temperature, top_p, top_k, min_p, repetition_penalty } = *model;
    let said = [
        temperature.map(|value| format!("temperature {value}")),
        top_p.map(|value| format!("top_p {value}")),
        top_k.map(|value| format!("top_k {value}")),
        min_p.map(|value| format!("min_p {value}")),
        repetition_penalty.map(|value| format!("repetition_penalty {value}")),
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    let said = (!said.is_empty()).then(|| said.join(", "))?;
    Some(format!("sampling by generation_config.json: {said}; --sampling-defaults none ignores it"))
}

/// Says so on stderr.
pub(crate) fn print_sampling(model: &SamplingDefaults) {
    if let Some(said) = sampling_in_words(model) {
        say!("tilewise: {said}");
    }
}

/// What the command line says of speculative decoding.
///
/// # Errors
/// As [`hub::locate`], of the model that makes drafts.
pub(crate) fn speculation(args: &SpeculationArgs) -> Result<Option<Speculation>, CliError> {
    let drafter = match args.speculate.to_str() {
        Some("off") => return Ok(None),
        Some("lookup") => Drafter::PromptLookup,
        Some("embedded") => Drafter::Model(ModelSource::Embedded(DRAFT)),
        _ => Drafter::Model(source(&ModelArgs { path: Some(args.speculate.clone()), revision: None })?),
    };
    let length = if args.fixed_drafts { DraftLength::Fixed } else { DraftLength::Adaptive };
    Ok(Some(Speculation { drafter, max_drafts: args.max_drafts, length, branches: args.draft_branches }))
}

/// How the command line wants an engine to serve.
///
/// # Errors
/// As [`tiers`] and [`speculation`].
pub(crate) fn engine_config(args: &EngineArgs) -> Result<EngineConfig, CliError> {
    Ok(EngineConfig {
        dtype: args.dtype.0,
        kv: args.kv_tokens.map_or(EngineConfig::default().kv, KvBudget::Tokens),
        max_running: args.max_running,
        max_batch_tokens: args.chunked_prefill_size.max(args.max_running),
        prefix_cache: !args.disable_radix_cache,
        kv_events: args.kv_events.is_some(),
        decode_slowdown: args.decode_slowdown.unwrap_or_default().0,
        preemption: args.swap_space.map_or(Preemption::Recompute, |bytes| Preemption::Swap {
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        }),
        speculation: speculation(&args.speculation)?,
        tiers: tiers(&args.tiers)?,
        ..EngineConfig::default()
    })
}

/// Where the command line wants the prefix cache's events to be published.
///
/// # Errors
/// As [`KvEventPublisher::new`]; [`CliError::Usage`] for a place that others reach, unless they are let in: events tell
/// which tokens are cached, and ask for no key.
pub(crate) fn kv_events(args: &EngineArgs, insecure: bool) -> Result<Option<KvEventPublisher>, CliError> {
    for (flag, endpoint) in [("--kv-events", &args.kv_events), ("--kv-events-replay", &args.kv_events_replay)]
    {
        let Some(endpoint) = endpoint else { continue };
        if !(insecure || is_loopback(endpoint)?) {
            return Err(CliError::Usage(format!(
                "{flag} {endpoint} can be reached by others, who would read the token ids of all prompts: take an address of \
                 this machine, or let tilewise serve --insecure tell them"
            )));
        }
    }
    let replay = args.kv_events_replay.as_deref();
    let listen = |endpoint: &String| KvEventPublisher::new(endpoint, replay, "kv-events");
    Ok(args.kv_events.as_ref().map(listen).transpose()?)
}

/// Loads a model with a progress bar.
pub(crate) fn load(
    device: &Arc<dyn Device>,
    source: &ModelSource,
    config: &EngineConfig,
) -> Result<Engine, CliError> {
    let bar = LoadingBar::new();
    let engine = Engine::new(device.clone(), source, config, &mut |progress| {
        bar.report(progress);
        ControlFlow::Continue(())
    })?;
    drop(bar);
    print_notes(engine.notes());
    Ok(engine)
}

/// The tiers that the command line names, fastest first.
///
/// # Errors
/// [`CliError::Failed`] for credentials that cannot be read, [`CliError::Usage`] for a file that holds none.
pub(crate) fn tiers(args: &TierArgs) -> Result<Vec<TierConfig>, CliError> {
    let mut tiers = Vec::new();
    tiers.extend(args.host_cache.map(|bytes| TierConfig::Host { bytes }));
    let disk = args.disk_cache.clone();
    tiers.extend(disk.map(|folder| TierConfig::Disk {
        folder,
        bytes: args.disk_cache_size,
        mode: args.disk_cache_mode,
    }));
    tiers.extend(args.resp_cache.clone().map(|address| TierConfig::Resp { address }));
    if let Some(place) = &args.object_cache {
        tiers.push(match place.strip_prefix("s3://") {
            Some(bucket) => TierConfig::S3(S3Bucket {
                bucket: bucket.to_owned(),
                region: args.s3_region.clone(),
                endpoint: args.s3_endpoint.clone(),
                credentials: args.s3_credentials.as_deref().map(read_credentials).transpose()?,
            }),
            None => TierConfig::ObjectFolder(place.into()),
        });
    }
    Ok(tiers)
}

fn read_credentials(file: &Path) -> Result<(String, String), CliError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| CliError::Failed(format!("{}: {error}", file.display())))?;
    let mut lines = text.lines().map(str::trim);
    match (lines.next(), lines.next()) {
        (Some(id), Some(secret)) => Ok((id.to_owned(), secret.to_owned())),
        _ => {
            Err(CliError::Usage(format!("{}: a key id and a secret must stand on two lines", file.display())))
        }
    }
}

/// Threads that a device is opened with.
pub(crate) fn threads(args: &DeviceArgs) -> usize {
    args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}
