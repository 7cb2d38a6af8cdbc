//! What one step computes: plain data.

use std::ops::Range;
use std::sync::Arc;

use tilewise::{BatchLayout, LogitChange, LogprobsOf, PageTable};

use super::SwappedPages;
use super::sequence::Sequence;
use crate::cache::PageId;
use crate::{RequestId, SamplingParams};

/// A sequence's part of a batch.
#[derive(Debug, Clone)]
pub struct ScheduledSequence {
    /// Whose it is.
    pub request: RequestId,
    /// Which of the request's completions.
    pub index: usize,
    /// Its new tokens in this batch; none of a completion that begins with this step, drawn from the same logits as the
    /// first one.
    pub num_tokens: usize,
    /// How many of them, the last ones, are drafts: tokens that are drawn again to see whether they are right.
    pub num_drafts: usize,
    /// Whether they are other guesses of the sequence before, and the token before them is its last known one again.
    pub is_branch: bool,
    /// The first of its rows of logits, if it has any.
    pub first_row: usize,
    /// How to draw the token after them; `None` for a chunk that does not reach the end of the known tokens.
    pub sampling: Option<SamplingParams>,
    /// What penalties and bias change of its rows of logits, ascending; the first of them is row 0.
    pub changes: Vec<LogitChange>,
    /// What is asked of its prompt's logprobs.
    pub scores: Option<PromptScores>,
    /// The position of the first token to draw, which selects the place in the random stream.
    pub next_position: u64,
}

/// Logprobs of a prompt that a step tells.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptScores {
    /// The first of the sequence's tokens in the batch whose row of logits is asked, with those after it.
    pub first: usize,
    /// The place in the prompt of the token after that one.
    pub position: usize,
    /// The tokens that follow, and how many others.
    pub asked: Vec<LogprobsOf>,
}

impl ScheduledSequence {
    /// Its rows of logits: one after the last known token, but for a branch, and one after each draft.
    pub fn num_rows(&self) -> usize {
        self.sampling.as_ref().map_or(0, |_| usize::from(!self.is_branch) + self.num_drafts)
    }
}

/// The ragged batch of one step.
#[derive(Debug, Clone)]
pub struct BatchPlan {
    /// All new tokens, sequence after sequence.
    pub token_ids: Vec<u32>,
    /// The position of each in its sequence.
    pub positions: Vec<u32>,
    /// How many are whose, and where the keys are.
    pub layout: Arc<BatchLayout>,
    /// The tokens whose logits are needed, ascending: for each sequence that samples its last known token and its drafts.
    /// Completions that part have the same.
    pub logits_rows: Vec<u32>,
    /// Pages that are saved outside the device before anything else: their sequences gave way.
    pub saves: Vec<SwappedPages>,
    /// Pages that are restored from there after that, which earlier steps saved.
    pub restores: Vec<SwappedPages>,
    /// Pages that are copied before the batch runs, as source and destination: the partial pages of completions that
    /// parted, and of branches. Destinations are distinct, and none is a source.
    pub copies: Vec<(PageId, PageId)>,
    /// In the order of the layout; branches come after their sequence.
    pub sequences: Vec<ScheduledSequence>,
}

impl BatchPlan {
    /// The only tokens whose hidden state matters after the last layer's attention; `None` where those of prompts that are
    /// scored do too.
    pub fn asked_rows(&self) -> Option<&[u32]> {
        self.sequences.iter().all(|sequence| sequence.scores.is_none()).then_some(&*self.logits_rows)
    }

    /// The tokens that the sequence at `place` is thought to draw.
    pub fn drafts(&self, place: usize) -> &[u32] {
        &self.token_ids[self.draft_range(place)]
    }

    /// Puts other drafts into the place of those that the sequence at `place` was scheduled with, as many.
    pub(crate) fn set_drafts(&mut self, place: usize, drafts: &[u32]) {
        let range = self.draft_range(place);
        self.token_ids[range].copy_from_slice(drafts);
    }

    /// Whose drafts count for the sequence at `place` that draws `first` after its last known token: its own, or those of
    /// the branch that begins with it. With the rows of logits that are drawn from then, one after the other.
    pub fn chain(&self, place: usize, first: Option<u32>) -> (usize, impl Iterator<Item = usize> + use<>) {
        let mut branches =
            (place + 1..).take_while(|&place| self.sequences.get(place).is_some_and(|s| s.is_branch));
        let branch =
            branches.find(|&branch| first.is_some() && self.drafts(branch).first().copied() == first);
        let own = self.sequences[place].first_row;
        let next = branch.map_or(own + 1, |branch| self.sequences[branch].first_row);
        (branch.unwrap_or(place), std::iter::once(own).chain(next..))
    }

    fn draft_range(&self, place: usize) -> Range<usize> {
        let end = self.layout.qo_indptr()[place + 1] as usize;
        end - self.sequences[place].num_drafts..end
    }
}

/// Collects a batch within a token budget.
pub(super) struct BatchBuilder {
    room: usize,
    token_ids: Vec<u32>,
    positions: Vec<u32>,
    logits_rows: Vec<u32>,
    sequences: Vec<ScheduledSequence>,
    qo_indptr: Vec<u32>,
    kv_len: Vec<u32>,
    page_table: PageTable,
    restores: Vec<SwappedPages>,
    copies: Vec<(PageId, PageId)>,
    forks: usize,
}

impl BatchBuilder {
    pub(super) fn new(max_batch_tokens: usize, page_size: usize) -> Self {
        Self {
            room: max_batch_tokens,
            token_ids: Vec::new(),
            positions: Vec::new(),
            logits_rows: Vec::new(),
            sequences: Vec::new(),
            qo_indptr: vec![0],
            kv_len: Vec::new(),
            page_table: PageTable { page_size, indptr: vec![0], pages: Vec::new() },
            restores: Vec::new(),
            copies: Vec::new(),
            forks: 0,
        }
    }

    /// Tokens that still fit.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// Takes no more than so many tokens from here on.
    pub(super) fn limit(&mut self, tokens: usize) {
        self.room = self.room.min(tokens);
    }

    /// Completions that begin with this step.
    pub(super) fn num_forks(&self) -> usize {
        self.forks
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Adds the next `num_tokens` pending tokens of a sequence, and then `num_drafts` of its drafts; it holds pages for
    /// all of them.
    pub(super) fn push(&mut self, sequence: &Sequence, num_tokens: usize, num_drafts: usize) {
        let (known, end) = (sequence.computed + num_tokens, sequence.computed + num_tokens + num_drafts);
        let drafts = &sequence.drafts[..num_drafts];
        self.room -= num_tokens + num_drafts;
        self.token_ids.extend_from_slice(&sequence.tokens[sequence.computed..known]);
        self.token_ids.extend_from_slice(drafts);
        self.positions.extend(sequence.computed as u32..end as u32);
        let samples = known == sequence.tokens.len();
        let (tokens, first_row) = (self.token_ids.len() as u32, self.logits_rows.len());
        if samples {
            self.logits_rows.extend(tokens - 1 - num_drafts as u32..tokens);
        }
        self.sequences.push(ScheduledSequence {
            request: sequence.id,
            index: sequence.index,
            num_tokens: num_tokens + num_drafts,
            num_drafts,
            is_branch: false,
            first_row,
            sampling: samples.then(|| sequence.sampling.clone()),
            changes: if samples { sequence.changes(drafts) } else { Vec::new() },
            scores: sequence.scores(num_tokens),
            next_position: known as u64,
        });
        self.qo_indptr.push(tokens);
        self.kv_len.push(end as u32);
        self.restores.extend(sequence.restores(self.page_table.page_size));
        if let Some(source) = sequence.copy_of {
            let partial = sequence.computed / self.page_table.page_size;
            self.copies.push((source, sequence.pages[partial]));
        }
        let used = end.div_ceil(self.page_table.page_size);
        self.page_table.pages.extend(sequence.pages[..used].iter().map(|page| page.0));
        self.page_table.indptr.push(self.page_table.pages.len() as u32);
    }

    /// Adds a branch of the sequence that was added last or whose other branches were; it has its pages.
    pub(super) fn push_branch(&mut self, sequence: &Sequence, branch: usize) {
        let (drafts, own) = (&sequence.branches.drafts[branch], &sequence.branches.pages[branch]);
        let (page_size, first_row) = (self.page_table.page_size, self.logits_rows.len());
        let end = sequence.tokens.len() + drafts.len();
        self.room -= 1 + drafts.len();
        self.token_ids.extend(sequence.tokens.last());
        self.token_ids.extend_from_slice(drafts);
        self.positions.extend(sequence.computed as u32..end as u32);
        let tokens = self.token_ids.len() as u32;
        self.logits_rows.extend(tokens - drafts.len() as u32..tokens);
        self.sequences.push(ScheduledSequence {
            request: sequence.id,
            index: sequence.index,
            num_tokens: 1 + drafts.len(),
            num_drafts: drafts.len(),
            is_branch: true,
            first_row,
            sampling: Some(sequence.sampling.clone()),
            changes: sequence.changes_of_branch(drafts),
            scores: None,
            next_position: sequence.tokens.len() as u64 + 1,
        });
        self.qo_indptr.push(tokens);
        self.kv_len.push(end as u32);
        if let Some(page) = sequence.partial_page(page_size) {
            self.copies.push((sequence.copy_of.unwrap_or(page), own[0]));
        }
        let full = &sequence.pages[..sequence.computed / page_size];
        self.page_table.pages.extend(full.iter().chain(own).map(|page| page.0));
        self.page_table.indptr.push(self.page_table.pages.len() as u32);
    }

    /// Adds completion `index` of the request whose first one was added last, with all its pending tokens.
    pub(super) fn push_fork(&mut self, first: &Sequence, index: usize) {
        self.forks += 1;
        self.logits_rows.push(self.token_ids.len() as u32 - 1);
        self.sequences.push(ScheduledSequence {
            request: first.id,
            index,
            num_tokens: 0,
            num_drafts: 0,
            is_branch: false,
            first_row: self.logits_rows.len() - 1,
            sampling: Some(first.sampling_of(index)),
            changes: first.changes(&[]),
            scores: None,
            next_position: first.tokens.len() as u64,
        });
        self.qo_indptr.push(self.token_ids.len() as u32);
        self.kv_len.push(0);
        self.page_table.indptr.push(self.page_table.pages.len() as u32);
    }

    /// The batch, if there is anything in it, which saves these pages first.
    pub(super) fn finish(self, saves: &[SwappedPages]) -> Option<BatchPlan> {
        if self.sequences.is_empty() {
            return None;
        }
        let layout = BatchLayout::paged(self.qo_indptr, self.kv_len, self.page_table)
            .expect("sequences hold pages for all tokens that they schedule, of a size that was checked");
        Some(BatchPlan {
            token_ids: self.token_ids,
            positions: self.positions,
            layout: Arc::new(layout),
            logits_rows: self.logits_rows,
            sequences: self.sequences,
            saves: saves.to_vec(),
            restores: self.restores,
            copies: self.copies,
        })
    }
}
