//! Models and their caches, on the device.

use tilewise::{DType, Device, KvCache, KvCacheConfig};

use crate::model::layers::Limits;
use crate::model::{Loader, Model, ModelConfig, ModelSource, Report, Weights};
use crate::speculate::DraftModel;
use crate::{Drafter, EngineConfig, Error, KvBudget, Result};

/// What an engine computes with.
pub(super) struct Loaded {
    pub(super) model: Box<dyn Model>,
    /// Of the weights.
    pub(super) dtype: DType,
    pub(super) kv: KvCache,
    /// The model that makes drafts, if one does.
    pub(super) drafter: Option<DraftModel>,
}

/// Loads a model, and the one that makes its drafts, and gives both their pages.
///
/// # Errors
/// As [`super::Engine::new`].
pub(super) fn load_models(
    device: &dyn Device,
    source: &ModelSource,
    config: &EngineConfig,
    limits: Limits,
    report: &mut Report<'_>,
) -> Result<Loaded> {
    let (sizes, weights) = source.open()?;
    let dtype = weight_dtype(config, &weights, &sizes);
    let model = load(device, &sizes, &weights, dtype, limits, report)?;
    drop(weights);
    let drafter = match config.speculation.as_ref().map(|speculation| &speculation.drafter) {
        Some(Drafter::Model(source)) => Some(load_drafter(device, source, &sizes, config, limits, report)?),
        Some(Drafter::PromptLookup) | None => None,
    };
    let mut models = vec![(&sizes, dtype)];
    models.extend(drafter.as_ref().map(|(model, dtype)| (model.config(), *dtype)));
    let shapes = size_kv(device, config, &models)?;
    let mut caches =
        shapes.iter().map(|shape| device.alloc_kv(shape)).collect::<tilewise::Result<Vec<_>>>()?;
    let kv = caches.remove(0);
    let drafter = drafter.zip(caches.pop());
    let drafter = drafter.map(|((model, _), kv)| DraftModel::new(model, kv, config.max_batch_tokens));
    Ok(Loaded { model, dtype, kv, drafter })
}

fn load(
    device: &dyn Device,
    sizes: &ModelConfig,
    weights: &Weights,
    dtype: DType,
    limits: Limits,
    report: &mut Report<'_>,
) -> Result<Box<dyn Model>> {
    let total = match weights.total_bytes() {
        0 => sizes.num_parameters() * DType::Bf16.size(),
        total => total,
    };
    let mut loader = Loader::new(weights, device, dtype, total, report);
    (sizes.family.load)(sizes, &mut loader, device, limits)
}

/// The model that makes drafts, and the type of its weights.
fn load_drafter(
    device: &dyn Device,
    source: &ModelSource,
    target: &ModelConfig,
    config: &EngineConfig,
    limits: Limits,
    report: &mut Report<'_>,
) -> Result<(Box<dyn Model>, DType)> {
    let (sizes, weights) = source.open()?;
    if sizes.vocab_size != target.vocab_size {
        let why = format!("it has {} tokens, the model {}", sizes.vocab_size, target.vocab_size);
        return Err(Error::unsupported("a draft model of another vocabulary", why));
    }
    let dtype = weight_dtype(config, &weights, &sizes);
    Ok((load(device, &sizes, &weights, dtype, limits, report)?, dtype))
}

fn weight_dtype(config: &EngineConfig, weights: &Weights, sizes: &ModelConfig) -> DType {
    config.dtype.or(weights.dtype()).or(sizes.dtype).unwrap_or(DType::F32)
}

/// The shapes of the caches of a model and of the one that makes its drafts, under the same page numbers: as many pages as
/// the budget allows, and at least one.
fn size_kv(
    device: &dyn Device,
    config: &EngineConfig,
    models: &[(&ModelConfig, DType)],
) -> Result<Vec<KvCacheConfig>> {
    let shape = |&(sizes, dtype): &(&ModelConfig, DType)| KvCacheConfig {
        num_layers: sizes.num_layers,
        num_pages: 1,
        page_size: config.page_size,
        num_kv_heads: sizes.num_kv_heads,
        head_dim: sizes.head_dim,
        value_dim: sizes.head_dim,
        dtype: config.kv_dtype.unwrap_or(dtype),
    };
    let mut shapes: Vec<KvCacheConfig> = models.iter().map(shape).collect();
    shapes.iter().try_for_each(KvCacheConfig::validate)?;
    let page_bytes: usize = shapes.iter().map(KvCacheConfig::page_bytes).sum();
    let num_pages = match config.kv {
        KvBudget::Tokens(tokens) => tokens.div_ceil(config.page_size),
        KvBudget::Bytes(bytes) => bytes / page_bytes,
        KvBudget::Fraction(share) => {
            let weights = models.iter().map(|(sizes, dtype)| sizes.num_parameters() * dtype.size()).sum();
            let left = device.caps().memory.saturating_sub(weights) as f64;
            let context = models.first().map_or(0, |(sizes, _)| sizes.max_positions);
            let contexts = config.max_running.saturating_mul(context.div_ceil(config.page_size));
            ((left * share) as usize / page_bytes).min(contexts)
        }
    };
    let num_pages = num_pages.clamp(1, u32::MAX as usize);
    shapes.iter_mut().for_each(|shape| shape.num_pages = num_pages);
    Ok(shapes)
}
