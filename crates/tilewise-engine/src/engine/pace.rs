//! How much of prompts a step computes beside sequences that generate.

use std::time::Duration;

use crate::scheduler::BatchPlan;
use crate::times::StepTimes;

/// Of the time that prompts may take, so much is aimed at: steps are not known better.
const AIM: f64 = 0.8;
/// Tokens of the first step, when no time is known, and of every step at least: prompts have to advance.
const FIRST: usize = 32;
const LEAST: usize = 8;
/// One step in so many tries what took too long before: a prompt's first chunks take less than its last.
const LOOK_AGAIN: u64 = 256;

/// Keeps steps with prompts within a multiple of what steps without any take, by what they took so far.
///
/// It changes when tokens come, and never which: chunks of a prompt have the bits of the whole. Chunks have one of few
/// lengths, of which each is known by itself: what a token takes jumps where a device takes another kernel.
#[derive(Debug)]
pub(super) struct Pace {
    slowdown: f64,
    /// Steps without prompts, by their rows.
    alone: StepTimes,
    /// What prompts added to steps, by their tokens.
    added: StepTimes,
    /// Tokens of prompts that a step may have.
    tokens: usize,
    most: usize,
    steps: u64,
}

impl Pace {
    pub(super) fn new(slowdown: f64, max_batch_tokens: usize) -> Self {
        let (alone, added) = (StepTimes::default(), StepTimes::default());
        Self { slowdown, alone, added, tokens: FIRST.min(max_batch_tokens), most: max_batch_tokens, steps: 0 }
    }

    /// Tokens of prompts that the next step computes at most if it has sequences that generate.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Takes over what a batch took.
    pub(super) fn learn(&mut self, batch: &BatchPlan, took: Duration) {
        let generates = |s: &&crate::scheduler::ScheduledSequence| {
            s.sampling.is_some() && s.num_tokens == 1 + s.num_drafts
        };
        let rows: usize = batch.sequences.iter().filter(generates).map(|s| s.num_tokens).sum();
        self.observe(rows, batch.token_ids.len() - rows, took);
    }

    fn observe(&mut self, rows: usize, prompts: usize, took: Duration) {
        if prompts == 0 {
            self.alone.observe(rows, took);
            return;
        }
        let Some(alone) = self.alone.seconds(rows).filter(|_| rows > 0) else { return };
        // The rest of a prompt says little of what a whole chunk takes.
        if prompts == self.tokens {
            self.added.observe(prompts, took.saturating_sub(Duration::from_secs_f64(alone)));
            self.steps += 1;
            self.tokens = self.choose(alone * (self.slowdown - 1.0) * AIM).min(self.most);
        }
    }

    /// The longest chunk that adds no more than `allowed` seconds, as far as is known.
    fn choose(&self, allowed: f64) -> usize {
        let fit = self.added.seen().filter(|&(_, seconds)| seconds <= allowed).last();
        let too_long = self.added.seen().find(|&(_, seconds)| seconds > allowed).map(|(tokens, _)| tokens);
        let Some((tokens, seconds)) = fit else {
            return too_long.map_or(FIRST, |tokens| LEAST.max(shorter(tokens)));
        };
        let next = longer(tokens);
        let is_new = too_long.is_none_or(|tokens| next < tokens);
        let promises = seconds * next as f64 / tokens as f64 <= allowed;
        if is_new && promises || self.steps.is_multiple_of(LOOK_AGAIN) { next } else { tokens }
    }
}

/// The lengths of chunks are powers of two, and halfway between them.
fn longer(tokens: usize) -> usize {
    if tokens.is_power_of_two() { tokens + tokens / 2 } else { tokens / 3 * 4 }
}

fn shorter(tokens: usize) -> usize {
    if tokens.is_power_of_two() { tokens / 4 * 3 } else { tokens / 3 * 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of a machine on which a token of a prompt takes `each` seconds, and a step of `rows` rows 10 ms.
    fn steps(pace: &mut Pace, each: f64, count: usize) -> Vec<f64> {
        pace.observe(4, 0, Duration::from_millis(10));
        let step = |_| {
            let took = 0.010 + 0.001 + each * pace.tokens() as f64;
            pace.observe(4, pace.tokens(), Duration::from_secs_f64(took));
            took
        };
        (0..count).map(step).collect()
    }

    #[test]
    fn steps_with_prompts_stay_within_the_multiple_and_use_it() {
        for each in [1e-6, 1e-5, 1e-4, 5e-4] {
            let mut pace = Pace::new(2.0, 1 << 20);
            let took = steps(&mut pace, each, 80);
            let settled = &took[40..];
            assert!(settled.iter().all(|took| (0.014..0.0185).contains(took)), "{each}: {settled:?}");
        }
    }

    #[test]
    fn where_a_token_takes_a_jump_steps_stay_below_it() {
        let mut pace = Pace::new(2.0, 1 << 20);
        pace.observe(4, 0, Duration::from_millis(10));
        let mut above = 0;
        for _ in 0..1000 {
            let took = 10 + if pace.tokens() > 64 { 15 } else { 2 };
            above += usize::from(took > 20);
            pace.observe(4, pace.tokens(), Duration::from_millis(took));
        }
        assert!(above <= 1 + 1000 / LOOK_AGAIN as usize, "{above} steps of a thousand take too long");
        assert!((48..=96).contains(&pace.tokens()));
    }

    #[test]
    fn prompts_advance_on_machines_that_are_too_slow_and_never_exceed_the_step() {
        let mut pace = Pace::new(1.1, 4096);
        steps(&mut pace, 1.0, 20);
        assert_eq!(pace.tokens(), LEAST);
        let mut pace = Pace::new(2.0, 250);
        steps(&mut pace, 0.0, 20);
        assert_eq!(pace.tokens(), 250);
        assert_eq!(Pace::new(2.0, 4).tokens(), 4);
    }

    #[test]
    fn the_end_of_a_prompt_and_steps_without_sequences_that_generate_say_nothing() {
        let mut pace = Pace::new(2.0, 4096);
        steps(&mut pace, 1e-4, 20);
        let before = pace.tokens();
        pace.observe(4, 1, Duration::from_millis(12));
        pace.observe(0, 4000, Duration::from_secs(4));
        assert_eq!(pace.tokens(), before);
    }
}
