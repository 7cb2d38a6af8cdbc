//! Speculative decoding: tokens are guessed, and one step verifies several (Leviathan et al. 2023).
//!
//! A step draws from the model's own logits after every draft, with the random number of that place. What it draws is
//! what steps of one token draw, bit for bit, whether a draft was right or not; drafts only decide how many tokens of a
//! step count. So nothing here can change a text: neither what is guessed, nor how much, nor the times that say how much.

mod draft_model;
mod length;
mod lookup;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tilewise::Device;

pub(crate) use draft_model::DraftModel;
use length::{Acceptance, Lengths, Offer};
use lookup::Lookup;

use crate::cache::PageId;
use crate::config::DraftLength;
use crate::scheduler::{BatchPlan, Scheduler};
use crate::{Event, RequestId, Result, Speculation};

/// Drafts that one step verifies at most: each takes a row of logits.
const MAX_STEP_DRAFTS: usize = 64;

/// Drafts that a step of so many sequences verifies at most.
pub(crate) fn max_step_drafts(config: &Speculation, max_running: usize) -> usize {
    (max_running * config.max_drafts).min(MAX_STEP_DRAFTS)
}

/// Steps in which nothing is proposed after a step in which nothing paid and proposing took more than `NOTICED` of it: a
/// GPU's step of sixteen sequences is as short as ten times that.
const REST: usize = 15;
const NOTICED: f64 = 0.01;

/// What became of drafts so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpeculationStats {
    /// Sequences that had drafts in a step, counted in each step.
    pub verified: u64,
    /// Tokens that were guessed.
    pub drafted: u64,
    /// Those that were right.
    pub accepted: u64,
}

type Completion = (RequestId, usize);

/// Guesses what sequences draw next.
pub(crate) struct Speculator {
    config: Speculation,
    /// `None` where drafts come from the text itself.
    model: Option<DraftModel>,
    texts: HashMap<Completion, Text>,
    lengths: Lengths,
    /// Steps in which nothing is proposed yet, and those since the last in which something was.
    rest: usize,
    rested: usize,
    started: Instant,
    /// Of this step, what the draft model took.
    drafting: Duration,
    stats: SpeculationStats,
}

/// What is known of a completion.
#[derive(Debug, Default)]
struct Text {
    lookup: Lookup,
    acceptance: Acceptance,
    /// The length of the match that its drafts of this step follow, 0 for a model's.
    matched: usize,
}

impl Speculator {
    pub(crate) fn new(config: Speculation, model: Option<DraftModel>) -> Self {
        Self {
            config,
            model,
            texts: HashMap::new(),
            lengths: Lengths::default(),
            rest: 0,
            rested: 0,
            started: Instant::now(),
            drafting: Duration::ZERO,
            stats: SpeculationStats::default(),
        }
    }

    pub(crate) fn stats(&self) -> SpeculationStats {
        self.stats
    }

    /// Gives every sequence that generates its drafts, before a step is scheduled.
    pub(crate) fn propose(&mut self, scheduler: &mut Scheduler) {
        self.started = Instant::now();
        self.drafting = Duration::ZERO;
        if self.rest > 0 {
            // Sequences were given no drafts in the step before.
            self.rest -= 1;
            self.rested += 1;
            return;
        }
        let mut offers = Vec::new();
        for sequence in scheduler.decoding() {
            let completion = (sequence.request, sequence.index);
            let text = self.texts.entry(completion).or_default();
            let most = self.config.max_drafts.min(sequence.most_drafts);
            let drafts = match &self.model {
                Some(model) => {
                    text.matched = 0;
                    vec![0; most.min(model.room_after(sequence.tokens.len()))]
                }
                None => {
                    let (matched, drafts) = text.lookup.propose(sequence.tokens, most);
                    text.matched = matched;
                    drafts
                }
            };
            offers.push(Offer { completion, chance: text.acceptance.chance(text.matched), drafts });
        }
        if self.config.length == DraftLength::Adaptive {
            let steps = std::mem::take(&mut self.rested) + 1;
            self.lengths.choose(&mut offers, self.model.is_some(), steps);
            let is_noticed = self.lengths.share(offers.len(), self.started.elapsed()) > NOTICED;
            if is_noticed && offers.iter().all(|offer| offer.drafts.is_empty()) {
                self.rest = REST;
            }
        }
        for Offer { completion, drafts, .. } in offers {
            scheduler.set_drafts(completion, drafts);
        }
    }

    /// Has the draft model, if there is one, fill in the drafts of a batch.
    ///
    /// # Errors
    /// What the device's operations return.
    pub(crate) fn fill(
        &mut self,
        device: &dyn Device,
        scheduler: &Scheduler,
        batch: &mut BatchPlan,
    ) -> Result<()> {
        let Some(model) = &mut self.model else { return Ok(()) };
        let start = Instant::now();
        let levels = model.draft(device, scheduler, batch)?;
        self.drafting = start.elapsed();
        if levels > 0 && is_decode(batch) {
            self.lengths.observe_drafting(levels, self.drafting);
        }
        Ok(())
    }

    /// Learns from what became of a batch.
    pub(crate) fn learn(&mut self, batch: &BatchPlan, events: &[Event]) {
        if is_decode(batch) {
            let took = self.started.elapsed().saturating_sub(self.drafting);
            self.lengths.observe_step(batch.logits_rows.len(), took);
        }
        let mut drawn = HashMap::<Completion, usize>::new();
        for event in events {
            match event {
                Event::Token { request, index, .. } => *drawn.entry((*request, *index)).or_default() += 1,
                Event::Finished { request, index, .. } => {
                    self.texts.remove(&(*request, *index));
                }
                Event::PromptLogprobs { .. } => {}
            }
        }
        for sequence in batch.sequences.iter().filter(|sequence| sequence.num_drafts > 0) {
            let completion = (sequence.request, sequence.index);
            let accepted = drawn.get(&completion).map_or(0, |&tokens| tokens - 1);
            self.stats.verified += 1;
            self.stats.drafted += sequence.num_drafts as u64;
            self.stats.accepted += accepted as u64;
            if let Some(text) = self.texts.get_mut(&completion) {
                text.acceptance.learn(text.matched, accepted, sequence.num_drafts);
            }
        }
    }

    /// Notes that pages hold what the draft model has not computed.
    pub(crate) fn overwritten(&mut self, pages: &[PageId]) {
        if let Some(model) = &mut self.model {
            model.overwritten(pages);
        }
    }

    /// Forgets a request.
    pub(crate) fn abort(&mut self, request: RequestId) {
        self.texts.retain(|completion, _| completion.0 != request);
    }

    /// Forgets a completion.
    pub(crate) fn finish(&mut self, completion: (RequestId, usize)) {
        self.texts.remove(&completion);
    }
}

/// Whether every sequence of a batch generates, so that its time says what rows cost.
fn is_decode(batch: &BatchPlan) -> bool {
    batch
        .sequences
        .iter()
        .all(|sequence| sequence.num_tokens > 0 && sequence.num_rows() == sequence.num_tokens)
}
