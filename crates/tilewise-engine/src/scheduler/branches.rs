//! Drafts, and branches: other guesses of what a sequence draws next, which the same step verifies.
//!
//! A branch is a further sequence of the ragged batch. It shares the full pages of its sequence, has a copy of the partial
//! one, and computes the last known token once more before its own drafts. So it needs no mask of its own, and its rows
//! have the bits of decoding alone. Branches begin at the first draft and differ in it: at most one of them is right, and if
//! the sequence's own drafts are not, its pages take the place of theirs.

use super::batch::BatchBuilder;
use super::sequence::Sequence;
use super::{BatchPlan, Scheduler};
use crate::RequestId;
use crate::cache::{PageId, PagePool, PrefixTree};

/// Guesses beside the drafts of a sequence.
#[derive(Debug, Clone, Default)]
pub(super) struct Branches {
    pub(super) drafts: Vec<Vec<u32>>,
    /// Of the first of them, those in the batch: the pages behind the full ones of the sequence.
    pub(super) pages: Vec<Vec<PageId>>,
}

impl Branches {
    /// Gives up all pages.
    pub(super) fn release(&mut self, pages: &mut PagePool) {
        pages.release(self.pages.drain(..).flatten());
    }
}

impl Sequence {
    /// Takes pages for drafts too, if there are; true if it has them.
    fn reserve_drafts(&mut self, count: usize, prefix: &mut PrefixTree, pages: &mut PagePool) -> bool {
        let needed = (self.tokens.len() + count).div_ceil(prefix.page_size());
        let lacking = needed.saturating_sub(self.pages.len());
        prefix.make_room(lacking, pages, |_| ()) && pages.allocate(lacking, &mut self.pages)
    }

    /// Takes pages for the next branch, cut to `count` drafts, if there are; true if it has them.
    fn reserve_branch(&mut self, count: usize, prefix: &mut PrefixTree, pages: &mut PagePool) -> bool {
        let full = self.computed / prefix.page_size();
        let lacking = (self.tokens.len() + count).div_ceil(prefix.page_size()) - full;
        let mut own = Vec::new();
        if !prefix.make_room(lacking, pages, |_| ()) || !pages.allocate(lacking, &mut own) {
            return false;
        }
        self.branches.drafts[self.branches.pages.len()].truncate(count);
        self.branches.pages.push(own);
        true
    }

    /// Goes on with the pages of a branch, once its last known token is computed.
    pub(super) fn take_branch(&mut self, branch: usize, page_size: usize, pages: &mut PagePool) {
        let mut own = self.branches.pages.swap_remove(branch);
        let first = (self.computed - 1) / page_size;
        // A page that is full with the last known token may be in the tree already.
        let kept = self.published.saturating_sub(first);
        pages.release(self.pages.drain(first + kept..));
        pages.release(own.drain(..kept));
        self.pages.extend(own);
    }
}

impl Scheduler {
    /// Says what a sequence that generates is thought to draw next, in place of what was said before: drafts, and branches,
    /// each of which begins with another token. The next step computes as many of these as there is room for behind the
    /// sequence's last token, and draws after each.
    pub fn set_drafts(&mut self, completion: (RequestId, usize), drafts: Vec<u32>, branches: Vec<Vec<u32>>) {
        if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.key() == completion) {
            sequence.drafts = drafts;
            sequence.branches.drafts = branches;
        }
    }

    /// Puts other drafts into a batch, as many as the sequence at `place` was scheduled with.
    ///
    /// # Panics
    /// For another number of drafts.
    pub fn replace_drafts(&self, batch: &mut BatchPlan, place: usize, drafts: &[u32]) {
        batch.set_drafts(place, drafts);
        let scheduled = &mut batch.sequences[place];
        let key = (scheduled.request, scheduled.index);
        if let Some(sequence) = self.running.iter().find(|sequence| sequence.key() == key) {
            scheduled.changes = sequence.changes(drafts);
        }
    }

    /// Adds one token of each sequence at these places, which have the pages for it, then drafts as far as there is room,
    /// and then branches.
    pub(super) fn push_decodes(
        &mut self,
        decoding: &[usize],
        batch: &mut BatchBuilder,
        pages: &mut PagePool,
    ) {
        let (mut tokens, mut rows) = (batch.room() - decoding.len(), self.config.max_drafts);
        let mut drafts = Vec::with_capacity(decoding.len());
        for &index in decoding {
            let sequence = &mut self.running[index];
            let mut count = sequence.drafts.len().min(sequence.most_drafts()).min(rows).min(tokens);
            if count > 0 && !sequence.reserve_drafts(count, &mut self.prefix, pages) {
                count = 0;
            }
            (tokens, rows) = (tokens - count, rows - count);
            drafts.push(count);
        }
        for &index in decoding {
            let sequence = &mut self.running[index];
            let most = sequence.most_drafts();
            for branch in 0..sequence.branches.drafts.len() {
                // Its first token is the last known one.
                let room = rows.min(tokens.saturating_sub(1));
                let count = sequence.branches.drafts[branch].len().min(most).min(room);
                if count == 0 || !sequence.reserve_branch(count, &mut self.prefix, pages) {
                    break;
                }
                (tokens, rows) = (tokens - 1 - count, rows - count);
            }
        }
        for (&index, drafts) in decoding.iter().zip(drafts) {
            batch.push(&self.running[index], 1, drafts);
            let branches = self.running[index].branches.pages.len();
            (0..branches).for_each(|branch| batch.push_branch(&self.running[index], branch));
        }
    }

    /// Gives up the pages of branches that a step had which was not committed.
    pub(super) fn release_branches(&mut self, pages: &mut PagePool) {
        self.running.iter_mut().for_each(|sequence| sequence.branches.release(pages));
    }
}
