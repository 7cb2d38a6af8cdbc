//! What becomes of a step's draws.

use tilewise::Sampled;

use super::{BatchPlan, Outcome, Scheduler, insert};
use crate::cache::PagePool;
use crate::{Event, FinishReason, RequestId};

impl Scheduler {
    /// Lets the completions of a request part from the first, whose first token was drawn: those that were in the batch
    /// share its pages, and the others wait.
    fn part(&mut self, index: usize, batch: &BatchPlan, pages: &mut PagePool) {
        let id = self.running[index].id;
        let siblings = std::mem::take(&mut self.running[index].siblings);
        let scheduled = |completion| batch.sequences.iter().any(|s| (s.request, s.index) == (id, completion));
        for completion in 1..=siblings {
            if scheduled(completion) {
                let fork = self.running[index].fork(completion, pages);
                insert(&mut self.running, fork);
            } else {
                self.wait(self.running[index].sibling(completion));
            }
        }
    }

    /// Takes over what a step computed: there is one outcome for each row of logits, in order. `follow` is told of each
    /// token and may say why its completion ends with it.
    ///
    /// A draft that was drawn is a token like any other, and so is the one drawn in place of the first that was not:
    /// they are those that steps of one token would have drawn, with the same random numbers. What was computed after
    /// that one is forgotten.
    pub fn commit(
        &mut self,
        batch: &BatchPlan,
        outcomes: &[Outcome],
        pages: &mut PagePool,
        follow: &mut dyn FnMut((RequestId, usize), u32) -> Option<FinishReason>,
    ) -> Vec<Event> {
        let (mut events, mut rest) = (Vec::new(), outcomes);
        self.saved();
        for (place, scheduled) in batch.sequences.iter().enumerate() {
            let outcomes;
            (outcomes, rest) = rest.split_at(scheduled.num_rows().min(rest.len()));
            let key = (scheduled.request, scheduled.index);
            let Some(index) = self.running.iter().position(|sequence| sequence.key() == key) else {
                continue;
            };
            self.restored(index);
            self.running[index].advance(scheduled.num_tokens - scheduled.num_drafts, pages);
            let publishes = self.config.prefix_cache && !matches!(outcomes, [Err(_), ..]);
            if publishes {
                self.publish(index, pages);
            }
            if !outcomes.is_empty() {
                self.part(index, batch, pages);
            }
            let finished = self.verify(index, batch.drafts(place), outcomes, follow, &mut events);
            if publishes && scheduled.num_drafts > 0 {
                self.publish(index, pages);
            }
            if let Some(reason) = finished {
                events.extend(self.finish(key, reason, pages));
            } else if scheduled.sampling.is_some() {
                self.running[index].truncate(self.config.page_size, pages);
            }
        }
        events
    }

    /// Appends what a sequence drew, as long as its drafts were right; says why it ends, if it does.
    fn verify(
        &mut self,
        index: usize,
        drafts: &[u32],
        outcomes: &[Outcome],
        follow: &mut dyn FnMut((RequestId, usize), u32) -> Option<FinishReason>,
        events: &mut Vec<Event>,
    ) -> Option<FinishReason> {
        let sequence = &mut self.running[index];
        for (row, outcome) in outcomes.iter().enumerate() {
            let &Sampled { id, logprob } = match outcome {
                Ok(sampled) => sampled,
                // The next step draws this row without drafts before it, and tells.
                Err(_) if row > 0 => return None,
                Err(why) => return Some(why.clone()),
            };
            let (request, index) = sequence.key();
            events.push(Event::Token { request, index, id, logprob, top_logprobs: Vec::new() });
            let followed = follow((request, index), id);
            if let Some(reason) = sequence.push(id).or(followed) {
                return Some(reason);
            }
            if drafts.get(row) != Some(&id) {
                return None;
            }
            sequence.computed += 1;
        }
        None
    }
}
