//! Kernels compiled before the first request.

use std::sync::Arc;

use tilewise::{BatchLayout, PageTable};

use super::Engine;
use crate::grammar::AllowedTokens;
use crate::model::Forward;
use crate::scheduler::{BatchPlan, ScheduledSequence};
use crate::speculate::{MAX_STEP_DRAFTS, Speculator};
use crate::{RequestId, Result, SamplingParams};

impl Engine {
    /// Runs batches of many sizes whose results nobody gets, if the device compiles kernels when they are first launched:
    /// requests would wait for that. Does nothing once a page of the cache is in use: any page may be written.
    ///
    /// # Errors
    /// What the device returns.
    pub fn warm_up(&mut self) -> Result<()> {
        let is_fresh = self.pages.num_free() == self.pages.num_pages();
        if !self.device.compiles_kernels() || self.has_work() || !is_fresh {
            return Ok(());
        }
        let (page_size, num_pages) = (self.kv.config.page_size, self.pages.num_pages());
        let room = self.limits.max_batch_tokens.min(num_pages * page_size);
        let most = self.limits.max_logits_rows.min(self.limits.max_batch_tokens);
        for lengths in batches(most, room.min(self.model.config().max_positions)) {
            self.run_unseen(&lengths)?;
        }
        let Some(drafter) = self.speculator.as_mut().and_then(Speculator::model_mut) else { return Ok(()) };
        for lengths in batches(most.min(MAX_STEP_DRAFTS), room.min(drafter.room_after(0))) {
            drafter.run_unseen(&*self.device, &unseen(&lengths, page_size, num_pages))?;
        }
        Ok(())
    }

    /// Runs a batch of sequences that begin with so many tokens each, and draws from each.
    fn run_unseen(&mut self, lengths: &[usize]) -> Result<()> {
        let batch = unseen(lengths, self.kv.config.page_size, self.pages.num_pages());
        let plans = self.plan_attention(&batch)?;
        let device = &*self.device;
        self.model.forward(&mut Forward {
            device,
            batch: &batch,
            ids: None,
            plans: &plans,
            kv: &mut self.kv,
        })?;
        let logits = self.model.logits(device, &batch.logits_rows)?;
        self.sampler.sample(device, logits, &batch, &AllowedTokens::default())?;
        Ok(())
    }
}

/// Tokens of each sequence of batches that show how kernels are chosen: up to `most` sequences that generate, and prompts of
/// up to `longest` tokens.
fn batches(most: usize, longest: usize) -> Vec<Vec<usize>> {
    let decodes = std::iter::successors(Some(1), |rows| Some(rows * 2)).take_while(|&rows| rows <= most);
    let prompts = [longest.min(48), longest.min(256), longest].map(|tokens| vec![tokens]);
    decodes.map(|rows| vec![1; rows]).chain(prompts).collect()
}

/// A batch in pages that nobody holds yet; some sequences draw at random.
fn unseen(lengths: &[usize], page_size: usize, num_pages: usize) -> BatchPlan {
    let ends: Vec<u32> = lengths
        .iter()
        .scan(0, |end, &len| {
            *end += len as u32;
            Some(*end)
        })
        .collect();
    let mut page_table = PageTable { page_size, indptr: vec![0], pages: Vec::new() };
    for len in lengths {
        let first = page_table.pages.len();
        page_table
            .pages
            .extend((first..first + len.div_ceil(page_size)).map(|page| (page % num_pages) as u32));
        page_table.indptr.push(page_table.pages.len() as u32);
    }
    let kv_len = lengths.iter().map(|&len| len as u32).collect();
    let layout = BatchLayout::paged([&[0], &ends[..]].concat(), kv_len, page_table)
        .expect("each sequence has pages for its tokens, of a size that was checked");
    let sequence = |(index, &num_tokens): (usize, &usize)| ScheduledSequence {
        request: RequestId(u64::MAX),
        index,
        num_tokens,
        num_drafts: 0,
        is_branch: false,
        first_row: index,
        sampling: Some(SamplingParams { temperature: (index % 2) as f32, ..SamplingParams::default() }),
        changes: Vec::new(),
        scores: None,
        next_position: num_tokens as u64,
    };
    BatchPlan {
        token_ids: vec![0; lengths.iter().sum()],
        positions: layout.positions().collect(),
        logits_rows: ends.iter().map(|end| end - 1).collect(),
        layout: Arc::new(layout),
        sequences: lengths.iter().enumerate().map(sequence).collect(),
        saves: Vec::new(),
        restores: Vec::new(),
        copies: Vec::new(),
    }
}
