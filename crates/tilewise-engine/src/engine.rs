//! One step: schedule, run, sample.

mod tiered;

use std::collections::HashMap;
use std::sync::Arc;

use tiered::Tiered;
use tilewise::{AttentionParams, AttentionPlan, DType, Device, KvCache, KvCacheConfig, Tensor};

use crate::cache::PagePool;
use crate::cache::prefix::PrefixStats;
use crate::cache::tiers::TierConfig;
use crate::grammar::Grammars;
use crate::model::layers::Limits;
use crate::model::{Forward, Loader, Model, ModelConfig, ModelSource, Progress, Weights};
use crate::sampler::{Drawn, Sampler};
use crate::scheduler::{BatchPlan, Scheduler, SchedulerConfig};
use crate::{EngineConfig, Event, FinishReason, GenerateRequest, KvBudget, RequestId, Result};

/// A model, its cache and its queue, on one device.
pub struct Engine {
    device: Arc<dyn Device>,
    model: Box<dyn Model>,
    attention: Vec<AttentionParams>,
    attention_kernel: Option<String>,
    kv: KvCache,
    pages: PagePool,
    scheduler: Scheduler,
    sampler: Sampler,
    grammars: Grammars,
    limits: Limits,
    /// The weights and their type, which name what tiers keep.
    source: ModelSource,
    dtype: DType,
    tiered: Option<Tiered>,
}

/// What an engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences that wait: one for each request until its completions part, then one for each of them.
    pub waiting: usize,
    /// Sequences that hold pages.
    pub running: usize,
    /// Tokens that fit the pages which no sequence holds; cached prefixes give way.
    pub free_tokens: usize,
    /// Tokens that all pages hold.
    pub total_tokens: usize,
    /// How often a sequence lost its pages to an older one, so far.
    pub preemptions: u64,
    /// What the prefix cache was asked for and had.
    pub prefix: PrefixStats,
}

impl Engine {
    /// Loads a model; `report` is told how far loading is.
    ///
    /// # Errors
    /// As [`ModelSource::config`], [`ModelSource::weights`] and [`Loader::linear`]; [`crate::Error::Value`]
    /// for a
    /// configuration that means nothing; [`crate::Error::Device`] if memory runs out or the device cannot run
    /// the
    /// model's attention. With tiers, as [`TierConfig::open`] and [`Engine::attach_tiers`].
    pub fn new(
        device: Arc<dyn Device>,
        source: &ModelSource,
        config: &EngineConfig,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        config.validate()?;
        let tiers = config.tiers.iter().map(TierConfig::open).collect::<Result<Vec<_>>>()?;
        let sizes = source.config()?;
        let weights = source.weights()?;
        let dtype = config.dtype.or(weights.dtype()).or(sizes.dtype).unwrap_or(DType::F32);
        let limits = Limits {
            max_batch_tokens: config.max_batch_tokens,
            max_logits_rows: config.max_running.min(config.max_batch_tokens),
        };
        let model = load(&*device, &sizes, &weights, dtype, limits, report)?;
        drop(weights);
        let weight_bytes = sizes.num_parameters() * dtype.size();
        let kv = device.alloc_kv(&size_kv(&*device, &sizes, config, dtype, weight_bytes)?)?;
        let mut engine = Self {
            attention: model.attention(kv.config.dtype),
            attention_kernel: config.attention_kernel.clone(),
            pages: PagePool::new(kv.config.num_pages),
            scheduler: Scheduler::new(SchedulerConfig {
                max_batch_tokens: config.max_batch_tokens,
                max_running: limits.max_logits_rows,
                page_size: config.page_size,
                max_context: sizes.max_positions,
                priority: config.priority,
                prefix_cache: config.prefix_cache,
            }),
            sampler: Sampler::default(),
            grammars: Grammars::new(source.clone()),
            limits,
            source: source.clone(),
            dtype,
            tiered: None,
            device,
            model,
            kv,
        };
        if !tiers.is_empty() {
            engine.attach_tiers(tiers)?;
        }
        Ok(engine)
    }

    /// Queues a request and names it.
    ///
    /// # Errors
    /// [`crate::Error::Value`] for a parameter that means nothing, [`crate::Error::TooLong`] if it could
    /// never run, [`crate::Error::Grammar`] for a grammar that cannot be compiled, and [`crate::Error::Unsupported`] or
    /// [`crate::Error::File`] if the model's tokenizer cannot serve one. With tiers, [`crate::Error::Value`] for a salt that
    /// their keys cannot carry.
    pub fn submit(&mut self, mut request: GenerateRequest) -> Result<RequestId> {
        let config = self.model.config();
        request.validate(config.vocab_size)?;
        if let Some(tiered) = &self.tiered {
            tiered.check_salt(request.cache_salt.as_deref())?;
        }
        if !request.ignore_eos {
            request.stop_ids.extend_from_slice(&config.eos_ids);
        }
        let grammar = request.grammar.as_ref();
        let matcher = grammar.map(|grammar| self.grammars.compile(grammar, config)).transpose()?;
        let n = request.n;
        let name = self.scheduler.submit(request, &self.pages)?;
        if let Some(matcher) = matcher {
            self.grammars.insert(name, n, &matcher);
        }
        Ok(name)
    }

    /// Forgets a request and frees its pages; false if it is over or unknown.
    pub fn abort(&mut self, request: RequestId) -> bool {
        self.grammars.abort(request);
        if let Some(tiered) = &mut self.tiered {
            tiered.abort(request);
        }
        self.scheduler.abort(request, &mut self.pages)
    }

    /// Computes one batch and returns what happened; nothing, if nothing waits, or only for tiers.
    ///
    /// # Errors
    /// What the device returns; no request has advanced then.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        self.step_with(|_, _, _| Ok(()))
    }

    /// [`Engine::step`], showing the batch and its logits, `[logits_rows, vocab_size]`, before they are
    /// sampled. This brings the logits to the host, which an ordinary step does not.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_observed(&mut self, observe: impl FnOnce(&BatchPlan, &[f32])) -> Result<Vec<Event>> {
        self.step_with(|device, batch, logits| {
            let logits = if batch.logits_rows.is_empty() { Vec::new() } else { device.download(logits)? };
            observe(batch, &logits);
            Ok(())
        })
    }

    /// One step; `look` sees the batch and its logits on the device.
    fn step_with(
        &mut self,
        look: impl FnOnce(&dyn Device, &BatchPlan, &Tensor) -> Result<()>,
    ) -> Result<Vec<Event>> {
        let Some(batch) = self.schedule() else { return Ok(Vec::new()) };
        let plans = self.plan_attention(&batch)?;
        let device = &*self.device;
        let copies: Vec<(u32, u32)> = batch.copies.iter().map(|(from, to)| (from.0, to.0)).collect();
        device.copy_pages(&mut self.kv, &copies)?;
        let logits =
            self.model.forward(&mut Forward { device, batch: &batch, plans: &plans, kv: &mut self.kv })?;
        look(device, &batch, logits)?;
        // The device works on the logits meanwhile, where it has a queue.
        let (allowed, failed) = self.grammars.allowed(&batch, logits.row_len());
        let drawn = self.sampler.sample(device, logits, &batch, &allowed)?;
        let events = self.commit(&batch, drawn, failed);
        self.demote();
        Ok(events)
    }

    /// The next batch, with what tiers had for it by now.
    fn schedule(&mut self) -> Option<BatchPlan> {
        self.promote(false);
        let batch = self.scheduler.schedule(&mut self.pages);
        if batch.is_none() && self.promote(true) {
            return self.scheduler.schedule(&mut self.pages);
        }
        batch
    }

    /// Takes over what a batch drew; `failed` drew nothing that counts.
    fn commit(
        &mut self,
        batch: &BatchPlan,
        drawn: Drawn,
        failed: Vec<((RequestId, usize), FinishReason)>,
    ) -> Vec<Event> {
        let mut events = self.scheduler.commit(batch, &drawn.sampled, &mut self.pages);
        let mut finish = |completion, reason| self.scheduler.finish(completion, reason, &mut self.pages);
        for (completion, why) in failed {
            let of_it = |request: &RequestId, index: &usize| (*request, *index) == completion;
            events.retain(
                |event| !matches!(event, Event::Token { request, index, .. } if of_it(request, index)),
            );
            let ended = events.iter_mut().find_map(|event| match event {
                Event::Finished { request, index, reason, .. } => of_it(request, index).then_some(reason),
                Event::Token { .. } => None,
            });
            match ended {
                Some(reason) => *reason = why,
                None => events.extend(finish(completion, why)),
            }
        }
        let sampled = batch.sequences.iter().filter(|sequence| sequence.sampling.is_some());
        let mut tops: HashMap<_, _> = sampled.map(|s| (s.request, s.index)).zip(drawn.top_logprobs).collect();
        let mut tokens = Vec::new();
        for event in &mut events {
            match event {
                Event::Token { request, index, id, top_logprobs, .. } => {
                    *top_logprobs = tops.remove(&(*request, *index)).unwrap_or_default();
                    tokens.push(((*request, *index), *id));
                }
                Event::Finished { request, index, .. } => self.grammars.remove((*request, *index)),
            }
        }
        for (completion, id) in tokens {
            let Some(reason) = self.grammars.push(completion, id) else { continue };
            self.grammars.remove(completion);
            events.extend(self.scheduler.finish(completion, reason, &mut self.pages));
        }
        events
    }

    /// Whether any request waits or runs.
    pub fn has_work(&self) -> bool {
        self.scheduler.num_waiting() + self.scheduler.num_running() > 0
    }

    /// Limits the tokens of later steps, at most to what the engine was made with.
    pub fn set_max_batch_tokens(&mut self, max_batch_tokens: usize) {
        self.scheduler.set_max_batch_tokens(max_batch_tokens.min(self.limits.max_batch_tokens));
    }

    /// Forgets all cached prefixes that no sequence holds.
    pub fn clear_prefix_cache(&mut self) {
        self.scheduler.clear_prefix_cache(&mut self.pages);
    }

    /// The model's sizes.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// The cache's shape.
    pub fn kv_config(&self) -> &KvCacheConfig {
        &self.kv.config
    }

    /// What the engine is doing.
    pub fn stats(&self) -> EngineStats {
        let page_size = self.kv.config.page_size;
        EngineStats {
            waiting: self.scheduler.num_waiting(),
            running: self.scheduler.num_running(),
            free_tokens: (self.pages.num_free() + self.pages.num_idle()) * page_size,
            total_tokens: self.pages.num_pages() * page_size,
            preemptions: self.scheduler.num_preemptions(),
            prefix: self.scheduler.prefix_stats(),
        }
    }

    /// One plan per kind of attention layer.
    fn plan_attention(&self, batch: &BatchPlan) -> Result<Vec<AttentionPlan>> {
        let plan =
            |params| self.device.plan_attention(params, &batch.layout, self.attention_kernel.as_deref());
        Ok(self.attention.iter().map(plan).collect::<tilewise::Result<_>>()?)
    }
}

fn load(
    device: &dyn Device,
    sizes: &ModelConfig,
    weights: &Weights,
    dtype: DType,
    limits: Limits,
    report: &mut dyn FnMut(Progress),
) -> Result<Box<dyn Model>> {
    let total = match weights.total_bytes() {
        0 => sizes.num_parameters() * DType::Bf16.size(),
        total => total,
    };
    let mut loader = Loader::new(weights, device, dtype, total, report);
    (sizes.family.load)(sizes, &mut loader, device, limits)
}

/// As many pages as the budget allows, and at least one.
fn size_kv(
    device: &dyn Device,
    sizes: &ModelConfig,
    config: &EngineConfig,
    dtype: DType,
    weight_bytes: usize,
) -> Result<KvCacheConfig> {
    let mut kv = KvCacheConfig {
        num_layers: sizes.num_layers,
        num_pages: 1,
        page_size: config.page_size,
        num_kv_heads: sizes.num_kv_heads,
        head_dim: sizes.head_dim,
        value_dim: sizes.head_dim,
        dtype: config.kv_dtype.unwrap_or(dtype),
    };
    kv.validate()?;
    let page_bytes = kv.page_bytes();
    kv.num_pages = match config.kv {
        KvBudget::Tokens(tokens) => tokens.div_ceil(config.page_size),
        KvBudget::Bytes(bytes) => bytes / page_bytes,
        KvBudget::Fraction(share) => {
            let left = device.caps().memory.saturating_sub(weight_bytes) as f64;
            let contexts = config.max_running.saturating_mul(sizes.max_positions.div_ceil(config.page_size));
            ((left * share) as usize / page_bytes).min(contexts)
        }
    };
    kv.num_pages = kv.num_pages.clamp(1, u32::MAX as usize);
    Ok(kv)
}
