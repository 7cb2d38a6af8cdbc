//! How many drafts a step verifies: as many as make the most tokens per second by what was seen so far.

use std::time::Duration;

use super::Completion;
use crate::times::{StepTimes, Times};

/// One step in so many is used to look again at what is not done otherwise: drafts where they do not pay, none where they
/// do.
const LOOK_AGAIN: u64 = 64;
/// Drafts have to promise so much more than none: times are not known better.
const WORTH: f64 = 1.05;
/// Drafts that such a step has at most: a batch of sixteen is not slowed down by them much.
const LOOK_AGAIN_DRAFTS: usize = 4;

/// The drafts that one sequence could have verified.
#[derive(Debug)]
pub(super) struct Offer {
    pub completion: Completion,
    /// How likely each is right if those before it are.
    pub chance: f64,
    pub drafts: Vec<u32>,
}

/// How often the drafts of a sequence were right, by the length of the match that they followed.
#[derive(Debug, Default)]
pub(super) struct Acceptance {
    /// Right ones, and all that were looked at; older ones count less.
    seen: [(f64, f64); 5],
}

impl Acceptance {
    /// Where nothing was seen yet, as if two drafts had shown it.
    const AT_FIRST: [f64; 5] = [0.7, 0.4, 0.6, 0.75, 0.9];

    /// The chance of a draft after a match of this length, 0 for those of a model.
    pub(super) fn chance(&self, matched: usize) -> f64 {
        let kind = Self::kind(matched);
        let (right, all) = self.seen[kind];
        (right + 2.0 * Self::AT_FIRST[kind]) / (all + 2.0)
    }

    /// Takes over that the first `accepted` of `drafted` were right, and the next one, if there is one, was not.
    pub(super) fn learn(&mut self, matched: usize, accepted: usize, drafted: usize) {
        let (right, all) = &mut self.seen[Self::kind(matched)];
        *right = *right * 0.9 + accepted as f64;
        *all = *all * 0.9 + drafted.min(accepted + 1) as f64;
    }

    fn kind(matched: usize) -> usize {
        match matched {
            0 => 0,
            1..=2 => 1,
            3..=4 => 2,
            5..=8 => 3,
            _ => 4,
        }
    }
}

/// What steps took, and how many drafts follow from it.
#[derive(Debug, Default)]
pub(super) struct Lengths {
    /// Times of steps by their rows: tokens and drafts.
    steps: StepTimes,
    /// Times that a draft model takes for one draft of every sequence.
    drafting: Times,
    steps_seen: u64,
}

impl Lengths {
    pub(super) fn observe_step(&mut self, rows: usize, took: Duration) {
        self.steps.observe(rows, took);
    }

    pub(super) fn observe_drafting(&mut self, levels: usize, took: Duration) {
        self.drafting.push(took.as_secs_f64() / levels as f64);
    }

    /// The share that `took` is of a step of so many rows; 0 while none was seen.
    pub(super) fn share(&self, rows: usize, took: Duration) -> f64 {
        self.steps.seconds(rows).map_or(0.0, |seconds| took.as_secs_f64() / seconds)
    }

    /// Cuts the drafts of each offer to what makes the most tokens per second together. `drafted` says that a model makes
    /// them, one after the other, `steps` that this is the first choice in so many.
    pub(super) fn choose(&mut self, offers: &mut [Offer], drafted: bool, steps: usize) {
        let sequences = offers.len();
        let mut places: Vec<(f64, usize, usize)> = Vec::new();
        for (index, offer) in offers.iter().enumerate() {
            let chances = std::iter::successors(Some(offer.chance), |chance| Some(chance * offer.chance));
            places
                .extend(chances.zip(1..=offer.drafts.len()).map(|(chance, length)| (chance, length, index)));
        }
        // Of one sequence they stand in order: chances fall, and equal ones stay as they are.
        places.sort_by(|a, b| b.0.total_cmp(&a.0));
        let seconds = |drafts: usize, levels: usize| {
            self.steps.seconds(sequences + drafts).unwrap_or(1.0)
                + if drafted { self.drafting.seconds() * levels as f64 } else { 0.0 }
        };
        let (mut tokens, mut levels) = (sequences as f64, 0);
        let (mut best, mut most) = (0, WORTH * tokens / seconds(0, 0));
        for (count, &(chance, length, _)) in (1..).zip(&places).take(super::MAX_STEP_DRAFTS) {
            tokens += chance;
            levels = levels.max(length);
            let rate = tokens / seconds(count, levels);
            if rate > most {
                (best, most) = (count, rate);
            }
        }
        let before = self.steps_seen;
        self.steps_seen += steps as u64;
        let looks_again = before / LOOK_AGAIN != self.steps_seen / LOOK_AGAIN;
        // What drafts are worth shows beside a step without any.
        if !self.steps.has_seen(sequences) || looks_again && best > 0 {
            offers.iter_mut().for_each(|offer| offer.drafts.clear());
            return;
        }
        let mut lengths = vec![0; sequences];
        if looks_again && sequences > 0 {
            let index = (self.steps_seen / LOOK_AGAIN) as usize % sequences;
            lengths[index] = LOOK_AGAIN_DRAFTS;
        }
        places[..best].iter().for_each(|&(_, _, index)| lengths[index] += 1);
        offers.iter_mut().zip(lengths).for_each(|(offer, length)| offer.drafts.truncate(length));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestId;

    fn offers(chances: &[f64], drafts: usize) -> Vec<Offer> {
        let offer = |(index, &chance): (usize, &f64)| Offer {
            completion: (RequestId(index as u64), 0),
            chance,
            drafts: vec![0; drafts],
        };
        chances.iter().enumerate().map(offer).collect()
    }

    fn chosen(lengths: &mut Lengths, chances: &[f64]) -> Vec<usize> {
        let mut offers = offers(chances, 8);
        lengths.choose(&mut offers, false, 1);
        offers.iter().map(|offer| offer.drafts.len()).collect()
    }

    fn lengths(seconds: impl Fn(usize) -> f64) -> Lengths {
        let mut lengths = Lengths::default();
        for rows in [1, 2, 4, 8, 16, 32, 64, 80] {
            lengths.observe_step(rows, Duration::from_secs_f64(seconds(rows)));
        }
        lengths
    }

    #[test]
    fn rows_that_cost_nothing_are_all_used_and_rows_that_cost_a_step_are_not() {
        assert_eq!(chosen(&mut lengths(|_| 0.01), &[0.5, 0.9]), [8, 8]);
        assert_eq!(chosen(&mut lengths(|rows| 0.01 * rows as f64), &[0.5, 0.9]), [0, 0]);
    }

    #[test]
    fn likelier_drafts_go_first_and_lengths_follow_the_chance() {
        // A row costs a tenth of what a step costs anyway.
        let mut lengths = lengths(|rows| 0.01 * (1.0 + 0.1 * rows as f64));
        let [low, high] = chosen(&mut lengths, &[0.3, 0.9])[..] else { panic!() };
        assert!(low <= 2 && high >= 4, "{low} {high}");
    }

    #[test]
    fn what_does_not_pay_is_tried_again_now_and_then() {
        let mut lengths = lengths(|rows| 0.01 * rows as f64);
        let tried: usize =
            (0..10 * LOOK_AGAIN).map(|_| chosen(&mut lengths, &[0.5; 16]).iter().sum::<usize>()).sum();
        assert_eq!(tried, 10 * LOOK_AGAIN_DRAFTS);
    }

    #[test]
    fn steps_without_a_choice_count_as_well() {
        let mut lengths = lengths(|rows| 0.01 * rows as f64);
        let mut tries = |steps: usize| {
            let mut offers = offers(&[0.5; 16], 8);
            lengths.choose(&mut offers, false, steps);
            offers.iter().map(|offer| offer.drafts.len()).sum::<usize>()
        };
        let tried: usize = (0..10 * LOOK_AGAIN).step_by(16).map(|_| tries(16)).sum();
        assert_eq!(tried, 10 * LOOK_AGAIN_DRAFTS);
        assert!((lengths.share(1, Duration::from_millis(1)) - 0.1).abs() < 1e-9);
    }

    #[test]
    fn drafts_begin_when_a_step_without_any_is_known_and_stop_now_and_then() {
        let mut fresh = Lengths::default();
        assert_eq!(chosen(&mut fresh, &[0.9, 0.9]), [0, 0]);
        fresh.observe_step(2, Duration::from_millis(10));
        assert_eq!(chosen(&mut fresh, &[0.9, 0.9]), [8, 8], "more rows are tried");
        fresh.observe_step(18, Duration::from_millis(100));
        assert!(
            chosen(&mut fresh, &[0.9, 0.9]).iter().sum::<usize>() < 8,
            "but not again where they cost too much"
        );
        let mut free = lengths(|_| 0.01);
        let without = (0..4 * LOOK_AGAIN).filter(|_| chosen(&mut free, &[0.9, 0.9]) == [0, 0]).count();
        assert_eq!(without, 4);
    }

    #[test]
    fn chances_follow_what_was_accepted() {
        let mut acceptance = Acceptance::default();
        for _ in 0..50 {
            acceptance.learn(3, 0, 4);
            acceptance.learn(20, 4, 4);
        }
        assert!(acceptance.chance(4) < 0.15 && acceptance.chance(9) > 0.95, "{acceptance:?}");
        assert_eq!(acceptance.chance(0), 0.7, "of another kind");
    }
}
