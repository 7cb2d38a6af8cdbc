//! Drafts from a smaller model with the same tokens.
//!
//! It has pages of its own under the page numbers of the sequences, so that prefixes, copies and evictions are those of
//! the large model. Each page knows how many of its slots, from the front, the draft model has filled since the large
//! model wrote them: whatever is missing, for whatever reason, is computed before the next draft.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use tilewise::{AttentionParams, BatchLayout, DType, Device, Draw, KvCache, PageTable, Tensor};

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
    /// The first drafts of all sequences, the second, and so on, on the device.
    drawn: Vec<Tensor>,
    max_batch_tokens: usize,
}

/// A sequence of the batch that the draft model works on.
struct Part<'a> {
    place: usize,
    pages: &'a [u32],
    /// The position of the first of `tokens`, which the model computes next.
    start: usize,
    tokens: Vec<u32>,
    /// How many drafts are asked for.
    wanted: usize,
}

impl DraftModel {
    /// `kv` has pages as many and as large as the large model's; `max_batch_tokens` is what the model was made for.
    pub(crate) fn new(model: Box<dyn Model>, kv: KvCache, max_batch_tokens: usize) -> Self {
        let attention = model.attention(kv.config.dtype);
        let filled = vec![0; kv.config.num_pages];
        Self { model, kv, attention, filled, drawn: Vec::new(), max_batch_tokens }
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
    /// ran. Drafts that it cannot make stay as they are. A draft follows the one before it on the device: all are read once.
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
        // Then the drafts of those that go on are the first that were drawn.
        parts.sort_by_key(|part| Reverse(part.wanted));
        let Some(first) = parts.first() else { return Ok(0) };
        let levels = first.wanted;
        let drafting = |level| parts.iter().take_while(|part| part.wanted > level).count();
        let rows: Vec<usize> = (0..levels).map(drafting).collect();
        self.room(device, levels)?;
        self.run(device, batch, &mut parts, 0)?;
        for level in 1..levels {
            self.drawn[level - 1].set_rows(rows[level])?;
            self.run(device, batch, &mut parts[..rows[level]], level)?;
        }
        for (drawn, &rows) in self.drawn.iter_mut().zip(&rows) {
            drawn.set_rows(rows)?;
        }
        let drawn = device.read_ids(&self.drawn[..levels].iter().collect::<Vec<_>>())?;
        for (row, part) in parts.iter().take_while(|part| part.wanted > 0).enumerate() {
            let drafts: Vec<u32> = drawn[..part.wanted].iter().map(|drawn| drawn[row]).collect();
            scheduler.replace_drafts(batch, part.place, &drafts);
        }
        Ok(levels.max(1))
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
            parts.push(Part { place, pages, start, tokens: tokens[start..stop].to_vec(), wanted });
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

    /// Computes the tokens of parts, which are the drafts of the level before from the second on, and draws the drafts of a
    /// level for those that want one.
    fn run(
        &mut self,
        device: &dyn Device,
        batch: &BatchPlan,
        parts: &mut [Part<'_>],
        level: usize,
    ) -> Result<()> {
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
                draws.push(Draw { logprob: false, ..draw(params, scheduled.next_position + level as u64) });
            }
            self.fill(part.pages, end);
            // The next token is on the device.
            (part.start, part.tokens) = (end, vec![0]);
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
        self.compute(device, &batch, &draws, level)
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
        self.room(device, 1)?;
        self.compute(device, batch, &draws, 0)
    }

    /// Has room for the drafts of so many levels.
    fn room(&mut self, device: &dyn Device, levels: usize) -> Result<()> {
        while self.drawn.len() < levels {
            self.drawn.push(device.alloc(&[self.max_batch_tokens], DType::U32)?);
        }
        Ok(())
    }

    /// Computes a batch, after the first level from the drafts before, and draws the drafts of a level from its logits.
    fn compute(
        &mut self,
        device: &dyn Device,
        batch: &BatchPlan,
        draws: &[Draw],
        level: usize,
    ) -> Result<()> {
        let plan = |params| device.plan_attention(params, &batch.layout, None);
        let plans: Vec<_> = self.attention.iter().map(plan).collect::<tilewise::Result<_>>()?;
        let ids = level.checked_sub(1).map(|before| &self.drawn[before]);
        self.model.forward(&mut Forward { device, batch, ids, plans: &plans, kv: &mut self.kv })?;
        if !draws.is_empty() {
            let logits = self.model.logits(device, &batch.logits_rows)?;
            // A draft that cannot be drawn is no error: any token will do, and the large model draws its own.
            device.sample_ids(logits, draws, &mut self.drawn[level])?;
        }
        Ok(())
    }
}
