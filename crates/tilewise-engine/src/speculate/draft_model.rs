//! Drafts from a smaller model with the same tokens.
//!
//! It has pages of its own under the page numbers of the sequences, so that prefixes, copies and evictions are those of
//! the large model. Each page knows how many of its slots, from the front, the draft model has filled since the large
//! model wrote them: whatever is missing, for whatever reason, is computed before the next draft.

use std::collections::HashSet;
use std::sync::Arc;

use tilewise::{AttentionParams, BatchLayout, Device, Draw, KvCache, PageTable};

use crate::Result;
use crate::cache::PageId;
use crate::model::{Forward, Model};
use crate::sampler::draw;
use crate::scheduler::{BatchPlan, ScheduledSequence, Scheduler};

/// A model that guesses what a larger one draws.
pub(crate) struct DraftModel {
    model: Box<dyn Model>,
    kv: KvCache,
    attention: Vec<AttentionParams>,
    /// Of each page.
    filled: Vec<u32>,
    max_batch_tokens: usize,
}

/// A sequence of the batch that the draft model works on.
struct Part<'a> {
    place: usize,
    pages: &'a [u32],
    /// The position of the first of `tokens`, which the model computes next.
    start: usize,
    tokens: Vec<u32>,
    drafts: Vec<u32>,
    /// How many of them are asked for.
    wanted: usize,
}

impl DraftModel {
    /// `kv` has pages as many and as large as the large model's; `max_batch_tokens` is what the model was made for.
    pub(crate) fn new(model: Box<dyn Model>, kv: KvCache, max_batch_tokens: usize) -> Self {
        let attention = model.attention(kv.config.dtype);
        let filled = vec![0; kv.config.num_pages];
        Self { model, kv, attention, filled, max_batch_tokens }
    }

    /// How many tokens may follow a text of `tokens` in the model's context.
    pub(crate) fn room_after(&self, tokens: usize) -> usize {
        self.model.config().max_positions.saturating_sub(tokens)
    }

    /// Notes that pages hold what the model has not computed.
    pub(crate) fn overwritten(&mut self, pages: &[PageId]) {
        pages.iter().for_each(|page| self.filled[page.0 as usize] = 0);
    }

    /// Fills in the drafts of a batch, one after the other, and takes over its prompts. Returns how many times the model
    /// ran. Drafts that it cannot make stay as they are.
    ///
    /// A draft is drawn as its token will be, with the same random number: then equal distributions draw equal tokens.
    ///
    /// # Errors
    /// What the device's operations return.
    pub(crate) fn draft(
        &mut self,
        device: &dyn Device,
        scheduler: &Scheduler,
        batch: &mut BatchPlan,
    ) -> Result<usize> {
        let copies: Vec<(u32, u32)> = batch.copies.iter().map(|(from, to)| (from.0, to.0)).collect();
        device.copy_pages(&mut self.kv, &copies)?;
        copies.iter().for_each(|&(from, to)| self.filled[to as usize] = self.filled[from as usize]);
        let layout = batch.layout.clone();
        let mut parts = self.parts(scheduler, batch, &layout);
        let (mut runs, mut complete) = (0, Vec::new());
        while !parts.is_empty() {
            let mut drawn = self.run(device, batch, &parts)?.into_iter();
            runs += 1;
            for part in &mut parts {
                part.start += part.tokens.len();
                self.fill(part.pages, part.start);
                part.tokens = if part.wanted > 0 { drawn.by_ref().take(1).collect() } else { Vec::new() };
                part.drafts.extend_from_slice(&part.tokens);
            }
            let is_over = |part: &mut Part<'_>| part.drafts.len() == part.wanted;
            complete.extend(parts.extract_if(.., is_over).filter(|part| part.wanted > 0));
        }
        for part in complete {
            scheduler.replace_drafts(batch, part.place, &part.drafts);
        }
        Ok(runs)
    }

    /// Notes what the large model is about to write, and collects what there is to do: prompts, and what sequences with
    /// drafts lack.
    fn parts<'a>(
        &mut self,
        scheduler: &Scheduler,
        batch: &BatchPlan,
        layout: &'a BatchLayout,
    ) -> Vec<Part<'a>> {
        let page_size = self.kv.config.page_size;
        let (mut parts, mut room, mut written) = (Vec::new(), self.max_batch_tokens, HashSet::<u32>::new());
        for (place, scheduled) in batch.sequences.iter().enumerate().filter(|(_, s)| s.num_tokens > 0) {
            let pages = layout.pages(place);
            let first = layout.num_keys(place) - scheduled.num_tokens;
            let mut start = first;
            for (index, page) in pages.iter().enumerate() {
                let filled = &mut self.filled[*page as usize];
                *filled = (*filled).min(first.saturating_sub(index * page_size) as u32);
                if (*filled as usize) < page_size {
                    start = start.min(index * page_size + *filled as usize);
                }
            }
            let end = first + scheduled.num_tokens - scheduled.num_drafts;
            let generates = scheduled.num_rows() == scheduled.num_tokens;
            let fits = end + scheduled.num_drafts <= self.model.config().max_positions;
            let Some(tokens) = scheduler.tokens((scheduled.request, scheduled.index)) else { continue };
            if room == 0 || !fits || generates && scheduled.num_drafts == 0 {
                continue;
            }
            let stop = end.min(start + room);
            // A page that several share is filled for one of them: the others follow in later steps.
            let own = &pages[start / page_size..stop.div_ceil(page_size)];
            if own.iter().any(|page| written.contains(page)) {
                continue;
            }
            written.extend(own);
            room -= stop - start;
            let wanted = if stop == end { scheduled.num_drafts } else { 0 };
            parts.push(Part {
                place,
                pages,
                start,
                tokens: tokens[start..stop].to_vec(),
                drafts: Vec::new(),
                wanted,
            });
        }
        parts
    }

    /// Notes that all slots before `end` are filled.
    fn fill(&mut self, pages: &[u32], end: usize) {
        let page_size = self.kv.config.page_size;
        for (index, &page) in pages[..end.div_ceil(page_size)].iter().enumerate() {
            self.filled[page as usize] = (end - index * page_size).min(page_size) as u32;
        }
    }

    /// Computes the tokens of all parts, and draws the next draft of those that want one.
    fn run(&mut self, device: &dyn Device, batch: &BatchPlan, parts: &[Part<'_>]) -> Result<Vec<u32>> {
        let mut qo_indptr = vec![0];
        let mut table = PageTable { page_size: self.kv.config.page_size, indptr: vec![0], pages: Vec::new() };
        let (mut token_ids, mut positions, mut kv_len) = (Vec::new(), Vec::new(), Vec::new());
        let (mut logits_rows, mut draws) = (Vec::new(), Vec::new());
        for part in parts {
            let end = part.start + part.tokens.len();
            token_ids.extend_from_slice(&part.tokens);
            positions.extend(part.start as u32..end as u32);
            qo_indptr.push(token_ids.len() as u32);
            kv_len.push(end as u32);
            table.pages.extend_from_slice(&part.pages[..end.div_ceil(table.page_size)]);
            table.indptr.push(table.pages.len() as u32);
            let scheduled = &batch.sequences[part.place];
            if let Some(params) = scheduled.sampling.as_ref().filter(|_| part.wanted > 0) {
                logits_rows.push(token_ids.len() as u32 - 1);
                draws.push(Draw {
                    logprob: false,
                    ..draw(params, scheduled.next_position + part.drafts.len() as u64)
                });
            }
        }
        let layout = Arc::new(BatchLayout::paged(qo_indptr, kv_len, table)?);
        let batch = BatchPlan {
            token_ids,
            positions,
            layout,
            logits_rows,
            saves: Vec::new(),
            restores: Vec::new(),
            copies: Vec::new(),
            sequences: Vec::new(),
        };
        self.compute(device, &batch, &draws)
    }

    /// Runs a batch whose drafts nobody gets, so that its kernels are compiled.
    ///
    /// # Errors
    /// What the device's operations return.
    pub(crate) fn run_unseen(&mut self, device: &dyn Device, batch: &BatchPlan) -> Result<()> {
        let draw = |scheduled: &ScheduledSequence| {
            let params = scheduled.sampling.as_ref()?;
            Some(Draw { logprob: false, ..draw(params, scheduled.next_position) })
        };
        let draws: Vec<Draw> = batch.sequences.iter().filter_map(draw).collect();
        self.compute(device, batch, &draws)?;
        Ok(())
    }

    /// Computes a batch and draws from its rows of logits.
    fn compute(&mut self, device: &dyn Device, batch: &BatchPlan, draws: &[Draw]) -> Result<Vec<u32>> {
        let plan = |params| device.plan_attention(params, &batch.layout, None);
        let plans: Vec<_> = self.attention.iter().map(plan).collect::<tilewise::Result<_>>()?;
        let mut forward = Forward { device, batch, plans: &plans, kv: &mut self.kv };
        self.model.forward(&mut forward)?;
        if draws.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.model.logits(device, &batch.logits_rows)?;
        // A draft that cannot be drawn is no error: any token will do, and the large model draws its own.
        let drawn = device.sample(logits, draws)?.into_iter();
        Ok(drawn.map(|drawn| drawn.map_or(0, |sampled| sampled.id)).collect())
    }
}
