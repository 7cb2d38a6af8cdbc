//! How much of prompts a step computes beside sequences that generate.

use std::time::Duration;

use crate::scheduler::BatchPlan;
use crate::times::StepTimes;

/// Of the time that prompts may take, so much is aimed at: steps are not known better.
const AIM: f64 = 0.8;
/// Tokens of the first step, when no time is known, and of every step at least: prompts have to advance.
const FIRST: f64 = 32.0;
const LEAST: f64 = 8.0;

/// Keeps steps with prompts within a multiple of what steps without any take, by what they took so far.
///
/// It changes when tokens come, and never which: chunks of a prompt have the bits of the whole.
#[derive(Debug)]
pub(super) struct Pace {
    slowdown: f64,
    /// Steps without prompts.
    alone: StepTimes,
    /// Tokens of prompts that a step may have.
    tokens: f64,
    most: f64,
}

impl Pace {
    pub(super) fn new(slowdown: f64, max_batch_tokens: usize) -> Self {
        let most = max_batch_tokens as f64;
        Self { slowdown, alone: StepTimes::default(), tokens: FIRST.min(most), most }
    }

    /// Tokens of prompts that the next step computes at most if it has sequences that generate.
    pub(super) fn tokens(&self) -> usize {
        self.tokens as usize
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
        if (prompts as f64) < self.tokens / 2.0 {
            return;
        }
        let allowed = alone * (self.slowdown - 1.0) * AIM;
        let each = (took.as_secs_f64() - alone).max(0.0) / prompts as f64;
        let fit = if each > 0.0 { allowed / each } else { f64::INFINITY };
        self.tokens = fit.clamp(self.tokens / 2.0, self.tokens * 1.5).clamp(LEAST.min(self.most), self.most);
    }
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
            let took = steps(&mut pace, each, 60);
            let settled = &took[40..];
            assert!(settled.iter().all(|took| (0.016..0.020).contains(took)), "{each}: {settled:?}");
        }
    }

    #[test]
    fn prompts_advance_on_machines_that_are_too_slow_and_never_exceed_the_step() {
        let mut pace = Pace::new(1.1, 4096);
        steps(&mut pace, 1.0, 20);
        assert_eq!(pace.tokens(), LEAST as usize);
        let mut pace = Pace::new(2.0, 256);
        steps(&mut pace, 0.0, 20);
        assert_eq!(pace.tokens(), 256);
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
