//! Opening devices and models.

use std::path::Path;
use std::sync::Arc;

use tilewise::Device;
use tilewise_engine::model::ModelSource;
use tilewise_engine::{DraftLength, Drafter, Engine, EngineConfig, Speculation};

use crate::args::{DeviceArgs, LoadFormat, SpeculationArgs};
use crate::embedded::{DEMO, DRAFT};
use crate::error::CliError;
use crate::progress::LoadingBar;

/// The device that the command line names.
pub(crate) fn open_device(args: &DeviceArgs) -> Result<Arc<dyn Device>, CliError> {
    Ok(tilewise::open(&args.device, args.threads)?)
}

/// The folder given, or the embedded model.
pub(crate) fn source(folder: Option<&Path>) -> ModelSource {
    match folder {
        Some(folder) => ModelSource::Folder(folder.to_owned()),
        None => ModelSource::Embedded(DEMO),
    }
}

/// The folder given with its weights or with random ones, or the embedded model.
///
/// # Errors
/// [`CliError::Usage`] where random weights have no folder with a `config.json`.
pub(crate) fn source_of(format: LoadFormat, folder: Option<&Path>) -> Result<ModelSource, CliError> {
    match (format, folder) {
        (LoadFormat::Auto, folder) => Ok(source(folder)),
        (LoadFormat::Dummy, Some(folder)) => Ok(ModelSource::Dummy(folder.to_owned())),
        (LoadFormat::Dummy, None) => Err(CliError::Usage(
            "--load-format dummy needs --model-path, a folder with a config.json".to_owned(),
        )),
    }
}

/// What the command line says of speculative decoding.
pub(crate) fn speculation(args: &SpeculationArgs) -> Option<Speculation> {
    let drafter = match args.speculate.to_str() {
        Some("off") => return None,
        Some("lookup") => Drafter::PromptLookup,
        Some("embedded") => Drafter::Model(ModelSource::Embedded(DRAFT)),
        _ => Drafter::Model(ModelSource::Folder(args.speculate.clone())),
    };
    let length = if args.fixed_drafts { DraftLength::Fixed } else { DraftLength::Adaptive };
    Some(Speculation { drafter, max_drafts: args.max_drafts, length })
}

/// Loads a model with a progress bar.
pub(crate) fn load(
    device: &Arc<dyn Device>,
    source: &ModelSource,
    config: &EngineConfig,
) -> Result<Engine, CliError> {
    let bar = LoadingBar::new();
    Ok(Engine::new(device.clone(), source, config, &mut |progress| bar.report(progress))?)
}

/// Threads that a device is opened with.
pub(crate) fn threads(args: &DeviceArgs) -> usize {
    args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}
