//! One step: schedule, run, sample.

mod load;
mod pace;
mod swap;
mod tiered;
mod warm;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use load::{Loaded, load_models};
use pace::Pace;
use swap::HostPages;
use tiered::Tiered;
use tilewise::{AttentionParams, AttentionPlan, DType, Device, KvCache, KvCacheConfig, NotFinite, Tensor};

use crate::cache::PagePool;
use crate::cache::events::KvEvent;
use crate::cache::prefix::PrefixStats;
use crate::cache::tiers::TierConfig;
use crate::grammar::Grammars;
use crate::model::layers::Limits;
use crate::model::{Forward, Model, ModelConfig, ModelSource, Report};
use crate::sampler::{Drawn, Sampler};
use crate::scheduler::{BatchPlan, Outcome, Scheduler, SchedulerConfig, SwapStats};
use crate::speculate::{SpeculationStats, Speculator, max_step_drafts};
use crate::{EngineConfig, Event, FinishReason, GenerateRequest, RequestId, Result};

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
    speculator: Option<Speculator>,
    limits: Limits,
    /// The weights and their type, which name what tiers keep.
    source: ModelSource,
    dtype: DType,
    pace: Option<Pace>,
    /// Pages of sequences that gave way.
    host_pages: HostPages,
    tiered: Option<Tiered>,
}

/// What an engine is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    /// What was saved of them and restored.
    pub swap: SwapStats,
    /// Bytes of them that are kept in the host's memory now.
    pub swapped_bytes: usize,
    /// What the prefix cache was asked for and had.
    pub prefix: PrefixStats,
    /// What was guessed and was right.
    pub speculation: SpeculationStats,
}

impl Engine {
    /// Loads a model; `report` is told how far loading is, and may break it off.
    ///
    /// # Errors
    /// As [`ModelSource::config`], [`ModelSource::weights`] and [`Loader::linear`]; [`crate::Error::Value`]
    /// for a
    /// configuration that means nothing; [`crate::Error::Device`] if memory runs out or the device cannot run
    /// the
    /// model's attention; [`crate::Error::Cancelled`] when it is broken off. With tiers, as [`TierConfig::open`] and [`Engine::attach_tiers`].
    pub fn new(
        device: Arc<dyn Device>,
        source: &ModelSource,
        config: &EngineConfig,
        report: &mut Report<'_>,
    ) -> Result<Self> {
        config.validate()?;
        let tiers = config.tiers.iter().map(TierConfig::open).collect::<Result<Vec<_>>>()?;
        let max_running = config.max_running.min(config.max_batch_tokens);
        let speculation = config.speculation.as_ref();
        let max_drafts = speculation.map_or(0, |speculation| max_step_drafts(speculation, max_running));
        let limits = Limits {
            max_batch_tokens: config.max_batch_tokens,
            // Completions that begin have rows and no tokens: the tokens of a batch do not limit its rows.
            max_logits_rows: max_running + max_drafts,
        };
        let Loaded { model, dtype, kv, drafter } = load_models(&*device, source, config, limits, report)?;
        let mut scheduler = Scheduler::new(SchedulerConfig {
            max_batch_tokens: config.max_batch_tokens,
            max_running,
            page_size: config.page_size,
            max_context: model.config().max_positions,
            max_drafts,
            priority: config.priority,
            prefix_cache: config.prefix_cache,
            swap_pages: swap::max_pages(config.preemption, device.page_layout(&kv.config).bytes),
        });
        if config.kv_events {
            scheduler.tell_kv_events();
        }
        let mut engine = Self {
            attention: model.attention(kv.config.dtype),
            attention_kernel: config.attention_kernel.clone(),
            pages: PagePool::new(kv.config.num_pages),
            scheduler,
            sampler: Sampler::default(),
            grammars: Grammars::default(),
            speculator: speculation.map(|speculation| Speculator::new(speculation.clone(), drafter)),
            limits,
            source: source.clone(),
            dtype,
            pace: config.decode_slowdown.map(|slowdown| Pace::new(slowdown, config.max_batch_tokens)),
            host_pages: HostPages::default(),
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

    /// What the model's files say that is set aside, each in a sentence for whoever loads it.
    pub fn notes(&self) -> &[String] {
        &self.model.config().notes
    }

    /// Queues a request and names it.
    ///
    /// # Errors
    /// [`crate::Error::Value`] for a parameter that means nothing, [`crate::Error::TooLong`] if it could
    /// never run.
    pub fn submit(&mut self, mut request: GenerateRequest) -> Result<RequestId> {
        let config = self.model.config();
        request.validate(config.vocab_size)?;
        if !request.ignore_eos {
            request.stop_ids.extend_from_slice(&config.eos_ids);
        }
        let (n, grammar) = (request.n, request.grammar.take());
        let name = self.scheduler.submit(request, &self.pages)?;
        if let Some(grammar) = grammar {
            self.grammars.insert(name, n, &grammar);
        }
        Ok(name)
    }

    /// Forgets a request and frees its pages; false if it is over or unknown.
    pub fn abort(&mut self, request: RequestId) -> bool {
        self.grammars.abort(request);
        if let Some(speculator) = &mut self.speculator {
            speculator.abort(request);
        }
        if let Some(tiered) = &mut self.tiered {
            tiered.abort(request);
        }
        let is_known = self.scheduler.abort(request, &mut self.pages);
        self.host_pages.keep(&self.scheduler);
        is_known
    }

    /// Ends a completion that has a token, such as one whose text reached a stop string, with [`FinishReason::Ended`]; the
    /// others of its request go on. `None` if it is over or unknown.
    pub fn finish(&mut self, request: RequestId, index: usize) -> Option<Event> {
        let completion = (request, index);
        let event = self.scheduler.finish(completion, FinishReason::Ended, &mut self.pages)?;
        self.host_pages.keep(&self.scheduler);
        self.grammars.remove(completion);
        if let Some(speculator) = &mut self.speculator {
            speculator.finish(completion);
        }
        if let Some(tiered) = &mut self.tiered {
            tiered.finish(completion);
        }
        Some(event)
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
        let start = Instant::now();
        let Some(mut batch) = self.schedule() else { return Ok(Vec::new()) };
        let plans = self.plan_attention(&batch)?;
        self.swap(&batch)?;
        let device = &*self.device;
        let copies: Vec<(u32, u32)> = batch.copies.iter().map(|(from, to)| (from.0, to.0)).collect();
        device.copy_pages(&mut self.kv, &copies)?;
        if let Some(speculator) = &mut self.speculator {
            speculator.fill(device, &self.scheduler, &mut batch)?;
        }
        self.model.forward(&mut Forward {
            device,
            batch: &batch,
            ids: None,
            plans: &plans,
            kv: &mut self.kv,
        })?;
        let mut events = score_prompts(device, &mut *self.model, &batch, self.limits.max_logits_rows)?;
        let logits = self.model.logits(device, &batch.logits_rows)?;
        look(device, &batch, logits)?;
        // The device works on the logits meanwhile, where it has a queue.
        let (allowed, failed) = self.grammars.allowed(&batch, logits.row_len());
        let drawn = self.sampler.sample(device, logits, &batch, &allowed)?;
        let failure = |why: NotFinite| FinishReason::Failed(why.to_string());
        let mut outcomes: Vec<Outcome> =
            drawn.sampled.iter().map(|&outcome| outcome.map_err(failure)).collect();
        failed.into_iter().for_each(|(row, why)| outcomes[row] = Err(why));
        events.extend(self.commit(&batch, drawn, &outcomes));
        self.host_pages.keep(&self.scheduler);
        if let Some(speculator) = &mut self.speculator {
            speculator.learn(&batch, &events);
        }
        if let Some(pace) = &mut self.pace {
            pace.learn(&batch, start.elapsed());
        }
        self.demote();
        Ok(events)
    }

    /// The next batch, with the drafts of its sequences and with what tiers had for it by now.
    fn schedule(&mut self) -> Option<BatchPlan> {
        self.promote(false);
        if let Some(speculator) = &mut self.speculator {
            speculator.propose(&mut self.scheduler);
        }
        if let Some(pace) = &self.pace {
            self.scheduler.set_prefill_beside_decodes(pace.tokens());
        }
        let batch = self.scheduler.schedule(&mut self.pages);
        if batch.is_none() && self.promote(true) {
            return self.scheduler.schedule(&mut self.pages);
        }
        batch
    }

    /// Takes over what a batch drew.
    fn commit(&mut self, batch: &BatchPlan, mut drawn: Drawn, outcomes: &[Outcome]) -> Vec<Event> {
        let grammars = &mut self.grammars;
        let mut events = self
            .scheduler
            .commit(batch, outcomes, &mut self.pages, &mut |completion, id| grammars.push(completion, id));
        let mut rows: HashMap<_, _> = HashMap::new();
        for (place, sequence) in batch.sequences.iter().enumerate().filter(|(_, s)| s.sampling.is_some()) {
            if !sequence.is_branch {
                let first = drawn.sampled[sequence.first_row].ok().map(|sampled| sampled.id);
                rows.insert((sequence.request, sequence.index), batch.chain(place, first).1);
            }
        }
        for event in &mut events {
            match event {
                Event::Token { request, index, top_logprobs, .. } => {
                    if let Some(row) = rows.get_mut(&(*request, *index)).and_then(Iterator::next) {
                        *top_logprobs = std::mem::take(&mut drawn.top_logprobs[row]);
                    }
                }
                Event::Finished { request, index, .. } => grammars.remove((*request, *index)),
                Event::PromptLogprobs { .. } => {}
            }
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

    /// What entered and left the prefix cache since this was last asked, if the engine was made to tell.
    pub fn take_kv_events(&mut self) -> Vec<KvEvent> {
        self.scheduler.take_kv_events()
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
            swap: self.scheduler.swap_stats(),
            swapped_bytes: self.host_pages.num_bytes(),
            prefix: self.scheduler.prefix_stats(),
            speculation: self.speculator.as_ref().map(Speculator::stats).unwrap_or_default(),
        }
    }

    /// One plan per kind of attention layer.
    fn plan_attention(&self, batch: &BatchPlan) -> Result<Vec<AttentionPlan>> {
        let plan =
            |params| self.device.plan_attention(params, &batch.layout, self.attention_kernel.as_deref());
        Ok(self.attention.iter().map(plan).collect::<tilewise::Result<_>>()?)
    }
}

/// The logprobs of prompts that a batch is asked for, of as many rows at once as there is memory for.
fn score_prompts(
    device: &dyn Device,
    model: &mut dyn Model,
    batch: &BatchPlan,
    max_logits_rows: usize,
) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    for (place, sequence) in batch.sequences.iter().enumerate() {
        let Some(scores) = &sequence.scores else { continue };
        let first = batch.layout.qo_indptr()[place] as usize + scores.first;
        let rows: Vec<u32> = (first as u32..).take(scores.asked.len()).collect();
        let mut logprobs = Vec::with_capacity(rows.len());
        for (rows, asked) in rows.chunks(max_logits_rows).zip(scores.asked.chunks(max_logits_rows)) {
            logprobs.extend(device.logprobs(model.logits(device, rows)?, asked)?);
        }
        events.push(Event::PromptLogprobs { request: sequence.request, position: scores.position, logprobs });
    }
    Ok(events)
}
