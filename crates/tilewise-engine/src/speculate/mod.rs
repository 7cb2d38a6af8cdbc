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
use lookup::{Lookup, Match};

use crate::cache::PageId;
use crate::config::DraftLength;
use crate::scheduler::{BatchPlan, Scheduler};
use crate::{Event, RequestId, Result, Speculation};

/// Drafts that one step verifies at most: each takes a row of logits.
pub(crate) const MAX_STEP_DRAFTS: usize = 64;

/// Drafts that a step of so many sequences verifies at most.
pub(crate) fn max_step_drafts(config: &Speculation, max_running: usize) -> usize {
    (max_running * config.max_drafts * config.branches).min(MAX_STEP_DRAFTS)
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
    /// Branches that were verified beside the drafts of a sequence.
    pub branches: u64,
    /// Those that were right where the drafts were not.
    pub taken: u64,
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
    /// The lengths of the matches that its drafts and branches of this step follow, 0 for a model's.
    matched: Vec<usize>,
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
            let matches = match &self.model {
                Some(model) => {
                    let most = most.min(model.room_after(sequence.tokens.len()));
                    vec![Match { matched: 0, drafts: vec![0; most] }]
                }
                None => text.lookup.propose(sequence.tokens, most, self.config.branches),
            };
            offers.push(Offer { completion, chains: text.acceptance.chains(matches) });
        }
        if self.config.length == DraftLength::Adaptive {
            let steps = std::mem::take(&mut self.rested) + 1;
            self.lengths.choose(&mut offers, self.model.is_some(), steps);
            let is_noticed = self.lengths.share(offers.len(), self.started.elapsed()) > NOTICED;
            let mut chains = offers.iter().flat_map(|offer| &offer.chains);
            if is_noticed && chains.all(|chain| chain.drafts.is_empty()) {
                self.rest = REST;
            }
        }
        for Offer { completion, mut chains } in offers {
            let mut place = 0;
            chains.retain(|chain| {
                place += 1;
                place == 1 || !chain.drafts.is_empty()
            });
            if let Some(text) = self.texts.get_mut(&completion) {
                text.matched = chains.iter().map(|chain| chain.matched).collect();
            }
            let mut drafts = chains.into_iter().map(|chain| chain.drafts);
            scheduler.set_drafts(completion, drafts.next().unwrap_or_default(), drafts.collect());
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
            self.lengths.observe_step(batch.token_ids.len(), took);
        }
        let mut drawn = HashMap::<Completion, Vec<u32>>::new();
        for event in events {
            match event {
                Event::Token { request, index, id, .. } => {
                    drawn.entry((*request, *index)).or_default().push(*id);
                }
                Event::Finished { request, index, .. } => {
                    self.texts.remove(&(*request, *index));
                }
                Event::PromptLogprobs { .. } => {}
            }
        }
        for (place, own) in batch.sequences.iter().enumerate() {
            let completion = (own.request, own.index);
            let drawn = drawn.get(&completion).map(Vec::as_slice).unwrap_or_default();
            let count = 1 + batch.sequences[place + 1..].iter().take_while(|other| other.is_branch).count();
            let chains = &batch.sequences[place..place + count];
            if own.is_branch || chains.iter().all(|chain| chain.num_drafts == 0) {
                continue;
            }
            let chosen = batch.chain(place, drawn.first().copied()).0 - place;
            let accepted = drawn.len().saturating_sub(1);
            self.stats.verified += 1;
            self.stats.drafted += chains.iter().map(|chain| chain.num_drafts as u64).sum::<u64>();
            self.stats.accepted += accepted as u64;
            self.stats.branches += count as u64 - 1;
            self.stats.taken += u64::from(chosen > 0);
            let Some(text) = self.texts.get_mut(&completion) else { continue };
            for (index, (chain, &matched)) in chains.iter().zip(&text.matched).enumerate() {
                // The first token of a branch is right whenever it is the one that is drawn.
                let right = if index == chosen { accepted } else { 0 };
                text.acceptance.learn(matched, index > 0, right, chain.num_drafts);
            }
        }
    }

    /// The model that makes the drafts, if one does.
    pub(crate) fn model_mut(&mut self) -> Option<&mut DraftModel> {
        self.model.as_mut()
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
    batch.sequences.iter().all(|sequence| {
        sequence.num_tokens > 0
            && sequence.num_rows() + usize::from(sequence.is_branch) == sequence.num_tokens
    })
}
