//! How many drafts a step verifies: as many as make the most tokens per second by what was seen so far.

use std::time::Duration;

use super::Completion;
use super::lookup::Match;
use crate::times::{StepTimes, Times};

/// One step in so many is used to look again at what is not done otherwise: drafts where they do not pay, none where they
/// do.
const LOOK_AGAIN: u64 = 64;
/// Drafts have to promise so much more than none: times are not known better.
const WORTH: f64 = 1.05;
/// Drafts that such a step has at most: a batch of sixteen is not slowed down by them much.
const LOOK_AGAIN_DRAFTS: usize = 4;

/// What one sequence could have verified: its drafts, then branches.
#[derive(Debug)]
pub(super) struct Offer {
    pub completion: Completion,
    pub chains: Vec<Chain>,
}

/// Drafts one after the other.
#[derive(Debug)]
pub(super) struct Chain {
    /// The length of the match that they follow.
    pub matched: usize,
    /// How likely the first is right.
    pub first: f64,
    /// How likely each other is right if those before it are.
    pub chance: f64,
    pub drafts: Vec<u32>,
}

/// How often the drafts of a sequence were right, by the length of the match that they followed.
#[derive(Debug, Default)]
pub(super) struct Acceptance {
    /// Right ones, and all that were looked at; older ones count less.
    seen: [(f64, f64); 6],
    /// The same of the first drafts of branches.
    branches: [(f64, f64); 6],
}

impl Acceptance {
    /// Where nothing was seen yet, as if two drafts had shown it.
    const AT_FIRST: [f64; 6] = [0.7, 0.2, 0.4, 0.6, 0.75, 0.9];
    /// The first draft of a branch: other drafts were thought likelier.
    const BRANCH_AT_FIRST: f64 = 0.2;

    /// The chance of a draft after a match of this length, 0 for those of a model.
    pub(super) fn chance(&self, matched: usize) -> f64 {
        let kind = Self::kind(matched);
        let (right, all) = self.seen[kind];
        (right + 2.0 * Self::AT_FIRST[kind]) / (all + 2.0)
    }

    /// The chance that a branch is right after a match of this length.
    fn branch(&self, matched: usize) -> f64 {
        let (right, all) = self.branches[Self::kind(matched)];
        (right + 2.0 * Self::BRANCH_AT_FIRST) / (all + 2.0)
    }

    /// The chances of drafts, and of branches after the first.
    pub(super) fn chains(&self, matches: Vec<Match>) -> Vec<Chain> {
        let chain = |(index, Match { matched, drafts }): (usize, Match)| {
            let chance = self.chance(matched);
            let first = if index == 0 { chance } else { self.branch(matched) };
            Chain { matched, first, chance, drafts }
        };
        matches.into_iter().enumerate().map(chain).collect()
    }

    /// Takes over that the first `accepted` of `drafted` were right, and the next one, if there is one, was not.
    pub(super) fn learn(&mut self, matched: usize, is_branch: bool, accepted: usize, drafted: usize) {
        let (mut accepted, mut drafted) = (accepted.min(drafted), drafted);
        if is_branch && drafted > 0 {
            learn(&mut self.branches[Self::kind(matched)], accepted.min(1), 1);
            if accepted == 0 {
                return;
            }
            (accepted, drafted) = (accepted - 1, drafted - 1);
        }
        learn(&mut self.seen[Self::kind(matched)], accepted, drafted.min(accepted + 1));
    }

    fn kind(matched: usize) -> usize {
        match matched {
            0 => 0,
            1 => 1,
            2 => 2,
            3..=4 => 3,
            5..=8 => 4,
            _ => 5,
        }
    }
}

fn learn((right, all): &mut (f64, f64), accepted: usize, seen: usize) {
    *right = *right * 0.9 + accepted as f64;
    *all = *all * 0.9 + seen as f64;
}

/// Drafts that are verified together or not at all.
#[derive(Debug)]
struct Share {
    /// Tokens that are thought to be right.
    tokens: f64,
    /// What the step computes for them.
    rows: usize,
    drafts: usize,
    /// How long the chain is with them.
    length: usize,
    /// Which chain of which offer.
    index: usize,
    chain: usize,
}

impl Share {
    fn tokens_per_row(&self) -> f64 {
        self.tokens / self.rows as f64
    }
}

impl Chain {
    /// Its drafts in shares whose tokens per row fall. A branch computes a token besides, so that some of its first drafts
    /// go together.
    fn shares(&self, index: usize, chain: usize) -> Vec<Share> {
        let chances = std::iter::successors(Some(self.first), |chance| Some(chance * self.chance));
        let (mut shares, mut rows) = (Vec::<Share>::new(), usize::from(chain > 0));
        for (length, tokens) in (1..=self.drafts.len()).zip(chances) {
            rows += 1;
            match shares.last_mut() {
                Some(last) if tokens / rows as f64 > last.tokens_per_row() => {
                    (last.tokens, last.rows) = (last.tokens + tokens, last.rows + rows);
                    (last.drafts, last.length) = (last.drafts + 1, length);
                }
                _ => shares.push(Share { tokens, rows, drafts: 1, length, index, chain }),
            }
            rows = 0;
        }
        shares
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

    /// Cuts the drafts and branches of each offer to what makes the most tokens per second together. `drafted` says that a
    /// model makes them, one after the other, `steps` that this is the first choice in so many.
    pub(super) fn choose(&mut self, offers: &mut [Offer], drafted: bool, steps: usize) {
        let sequences = offers.len();
        let mut shares: Vec<Share> = Vec::new();
        for (index, offer) in offers.iter().enumerate() {
            let chains = offer.chains.iter().enumerate();
            shares.extend(chains.flat_map(|(chain, drafts)| drafts.shares(index, chain)));
        }
        // Of one chain they stand in order: their tokens per row fall, and equal ones stay as they are.
        shares.sort_by(|a, b| b.tokens_per_row().total_cmp(&a.tokens_per_row()));
        let seconds = |rows: usize, levels: usize| {
            self.steps.seconds(sequences + rows).unwrap_or(1.0)
                + if drafted { self.drafting.seconds() * levels as f64 } else { 0.0 }
        };
        let (mut tokens, mut rows, mut drafts, mut levels) = (sequences as f64, 0, 0, 0);
        let (mut best, mut most) = (0, WORTH * tokens / seconds(0, 0));
        for (count, share) in (1..).zip(&shares) {
            (tokens, rows, drafts) = (tokens + share.tokens, rows + share.rows, drafts + share.drafts);
            levels = levels.max(share.length);
            let rate = tokens / seconds(rows, levels);
            if drafts <= super::MAX_STEP_DRAFTS && rate > most {
                (best, most) = (count, rate);
            }
        }
        let before = self.steps_seen;
        self.steps_seen += steps as u64;
        let looks_again = before / LOOK_AGAIN != self.steps_seen / LOOK_AGAIN;
        // What drafts are worth shows beside a step without any.
        let skips = !self.steps.has_seen(sequences) || looks_again && best > 0;
        let chosen = if skips { &[] } else { &shares[..best] };
        let mut lengths: Vec<Vec<usize>> = offers.iter().map(|offer| vec![0; offer.chains.len()]).collect();
        if looks_again && !skips && sequences > 0 {
            let index = (self.steps_seen / LOOK_AGAIN) as usize % sequences;
            lengths[index].iter_mut().take(1).for_each(|length| *length = LOOK_AGAIN_DRAFTS);
        }
        chosen.iter().for_each(|share| lengths[share.index][share.chain] = share.length);
        for (chain, length) in offers.iter_mut().flat_map(|offer| &mut offer.chains).zip(lengths.concat()) {
            chain.drafts.truncate(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestId;

    fn found(matched: usize) -> Match {
        Match { matched, drafts: vec![0; 4] }
    }

    fn offers(chances: &[f64], drafts: usize) -> Vec<Offer> {
        let offer = |(index, &chance): (usize, &f64)| Offer {
            completion: (RequestId(index as u64), 0),
            chains: vec![Chain { matched: 0, first: chance, chance, drafts: vec![0; drafts] }],
        };
        chances.iter().enumerate().map(offer).collect()
    }

    fn chosen(lengths: &mut Lengths, chances: &[f64]) -> Vec<usize> {
        let mut offers = offers(chances, 8);
        lengths.choose(&mut offers, false, 1);
        offers.iter().map(|offer| offer.chains[0].drafts.len()).collect()
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
            offers.iter().map(|offer| offer.chains[0].drafts.len()).sum::<usize>()
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
    fn branches_are_verified_where_rows_cost_little_and_after_likelier_drafts() {
        let lengths_of = |lengths: &mut Lengths, first: f64| -> [usize; 2] {
            let chain = |first| Chain { matched: 0, first, chance: 0.8, drafts: vec![0; 8] };
            let mut offers =
                [Offer { completion: (RequestId(0), 0), chains: vec![chain(0.8), chain(first)] }];
            lengths.choose(&mut offers, false, 1);
            [0, 1].map(|chain| offers[0].chains[chain].drafts.len())
        };
        assert_eq!(lengths_of(&mut lengths(|_| 0.01), 0.1), [8, 8]);
        assert_eq!(lengths_of(&mut lengths(|rows| 0.01 * rows as f64), 0.1), [0, 0]);
        let [own, branch] = lengths_of(&mut lengths(|rows| 0.01 * (1.0 + 0.08 * rows as f64)), 0.15);
        assert!(own >= 3 && branch == 0, "{own} {branch}");
        let [own, branch] = lengths_of(&mut lengths(|rows| 0.01 * (1.0 + 0.02 * rows as f64)), 0.15);
        assert!(own > branch && branch >= 2, "{own} {branch}");
    }

    #[test]
    fn the_first_drafts_of_a_branch_go_together() {
        let chain = Chain { matched: 0, first: 0.2, chance: 0.9, drafts: vec![0; 4] };
        let lengths = |place| chain.shares(0, place).iter().map(|share| share.length).collect::<Vec<_>>();
        assert_eq!(lengths(0), [1, 2, 3, 4]);
        // Two rows for 0.2 tokens, three for 0.38, four for 0.542, five for 0.688.
        assert_eq!(lengths(1), [4]);
        let chain = Chain { chance: 0.3, ..chain };
        let shares = chain.shares(0, 1);
        assert_eq!((shares[0].length, shares[0].rows, shares.len()), (1, 2, 4));
    }

    #[test]
    fn chances_follow_what_was_accepted() {
        let mut acceptance = Acceptance::default();
        for _ in 0..50 {
            acceptance.learn(3, false, 0, 4);
            acceptance.learn(20, false, 4, 4);
        }
        assert!(acceptance.chance(4) < 0.15 && acceptance.chance(9) > 0.95, "{acceptance:?}");
        assert_eq!(acceptance.chance(0), 0.7, "of another kind");
        for _ in 0..50 {
            acceptance.learn(2, true, 0, 4);
            acceptance.learn(6, true, 4, 4);
        }
        let chain = |matched| acceptance.chains(vec![found(0), found(matched)]).remove(1);
        assert!(chain(2).first < 0.1 && chain(2).chance == 0.4, "{acceptance:?}");
        assert!(chain(6).first > 0.8 && chain(6).chance > 0.9, "{acceptance:?}");
        assert_eq!(chain(3).first, 0.2, "of another kind");
    }
}
