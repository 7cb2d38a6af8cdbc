//! Sequences that give way, and what is kept of them in the host's memory, so that it need not be computed again.
//!
//! The scheduler says which pages a step saves before it writes any, and which it restores; whoever runs the step holds the
//! contents. A sequence saves what it does not share with others: what they hold is in the prefix tree, and if the tree
//! has lost it when the sequence comes back, the sequence is computed from there, as it is where there was no room to save
//! anything. What a step was to save is kept once that step is committed, and what it restored is given up then.

use std::collections::HashSet;

use super::Scheduler;
use super::sequence::Sequence;
use crate::RequestId;
use crate::cache::{PageId, PagePool};

/// Pages of a sequence, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwappedPages {
    /// The request and which of its completions.
    pub of: (RequestId, usize),
    /// The place in the sequence of the first of them.
    pub first: usize,
    /// Where they are on the device.
    pub pages: Vec<PageId>,
}

/// What was swapped so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SwapStats {
    /// Pages that were saved when their sequence gave way.
    pub saved_pages: u64,
    /// Those that were restored, and not computed again.
    pub restored_pages: u64,
}

/// What is kept of a sequence outside the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Swapped {
    /// The place of the first page.
    first: usize,
    /// The tokens up to which pages are kept.
    computed: usize,
    /// Runs again: pages from this place on are restored by the next step.
    restores: Option<usize>,
}

impl Swapped {
    fn num_pages(&self, page_size: usize) -> usize {
        self.computed.div_ceil(page_size) - self.first
    }
}

impl Sequence {
    /// Goes on where it gave way, by what was kept behind the pages that it holds; false if that is nothing, or if a page
    /// between is gone.
    pub(super) fn resume(&mut self, page_size: usize) -> bool {
        let held = self.pages.len();
        let Some(swapped) = &mut self.swapped else { return false };
        if swapped.first > held || swapped.computed <= held * page_size {
            return false;
        }
        swapped.restores = Some(held);
        self.computed = swapped.computed;
        true
    }

    /// The pages that its next step restores.
    pub(super) fn restores(&self, page_size: usize) -> Option<SwappedPages> {
        let swapped = self.swapped.as_ref()?;
        let first = swapped.restores?;
        let pages = self.pages[first..swapped.computed.div_ceil(page_size)].to_vec();
        Some(SwappedPages { of: self.key(), first, pages })
    }
}

impl Scheduler {
    /// Takes the pages of the youngest running sequence, which will compute its tokens again unless they can be saved; but
    /// first those that were fetched for waiting ones.
    pub(super) fn preempt_youngest(&mut self, pages: &mut PagePool) {
        if self.give_up_youngest_fetched(None, pages) {
            return;
        }
        let Some(mut sequence) = self.running.pop() else { return };
        self.preemptions += 1;
        if !self.save(&mut sequence, pages) {
            sequence.chunks.ask_again();
        }
        sequence.preempt(pages);
        self.wait(sequence);
    }

    /// Has the next step save what a sequence alone holds of its computed pages; false if that is nothing, or if there is
    /// no room.
    fn save(&mut self, sequence: &mut Sequence, pages: &PagePool) -> bool {
        if sequence.swapped.take().is_some() || sequence.copy_of.is_some() {
            // A step failed that was to restore or to copy pages: they may hold anything.
            return false;
        }
        let page_size = self.config.page_size;
        let end = sequence.computed.div_ceil(page_size);
        // Without the tree nobody finds again what others hold.
        let is_found = |page: &&PageId| self.config.prefix_cache && pages.is_shared(**page);
        let first = sequence.pages[..end].iter().take_while(is_found).count();
        if first == end || self.num_swapped_pages() + end - first > self.config.swap_pages {
            return false;
        }
        let run = sequence.pages[first..end].to_vec();
        self.saves.push(SwappedPages { of: sequence.key(), first, pages: run });
        sequence.swapped = Some(Swapped { first, computed: sequence.computed, restores: None });
        true
    }

    /// Whether a sequence is being saved by the step that is scheduled.
    pub(super) fn is_saving(&self, sequence: &Sequence) -> bool {
        self.saves.iter().any(|save| save.of == sequence.key())
    }

    /// Forgets what a step was to save that was not committed: it may have failed before or after.
    pub(super) fn forget_unsaved(&mut self) {
        for save in self.saves.drain(..) {
            if let Some(sequence) = self.waiting.iter_mut().find(|sequence| sequence.key() == save.of) {
                sequence.swapped = None;
                sequence.chunks.ask_again();
            }
        }
    }

    /// Takes over that the pages of a committed step were saved.
    pub(super) fn saved(&mut self) {
        let pages = |save: SwappedPages| save.pages.len() as u64;
        self.swap.saved_pages += self.saves.drain(..).map(pages).sum::<u64>();
    }

    /// Takes over that the pages of a running sequence are on the device again.
    pub(super) fn restored(&mut self, index: usize) {
        let Some(swapped) = self.running[index].swapped.take() else { return };
        let from = swapped.restores.unwrap_or_default();
        self.swap.restored_pages += (swapped.computed.div_ceil(self.config.page_size) - from) as u64;
    }

    /// Those of whom pages are kept outside the device: what is kept of others is of no use any more.
    pub fn swapped(&self) -> HashSet<(RequestId, usize)> {
        let sequences = self.waiting.iter().chain(&self.running);
        sequences.filter(|sequence| sequence.swapped.is_some()).map(Sequence::key).collect()
    }

    /// Pages that are kept outside the device, at most [`super::SchedulerConfig::swap_pages`].
    pub fn num_swapped_pages(&self) -> usize {
        let swapped = self.waiting.iter().chain(&self.running).filter_map(|sequence| sequence.swapped);
        swapped.map(|swapped| swapped.num_pages(self.config.page_size)).sum()
    }

    /// What was swapped so far.
    pub fn swap_stats(&self) -> SwapStats {
        self.swap
    }
}
