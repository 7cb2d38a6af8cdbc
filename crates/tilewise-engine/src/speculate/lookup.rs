//! Drafts from the text itself: what followed when its end was there before ("prompt lookup", Saxena 2023).

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

/// Longer matches are all alike.
const LONGEST: usize = 32;
/// Earlier places that are compared, the latest first.
const PLACES: usize = 16;

/// What followed a place where the end of a text was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Match {
    /// Tokens of the end that were there, of those that are compared.
    pub matched: usize,
    pub drafts: Vec<u32>,
}

/// Places after a token alone that are counted, the latest ones: it is often followed by others.
const PLACES_OF_ONE: usize = 64;

/// Where each pair of tokens is in a text that grows, and each token.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// The places after the pair, ascending.
    pairs: HashMap<[u32; 2], Vec<u32>>,
    singles: HashMap<u32, Vec<u32>>,
    /// Places up to this one are in the maps.
    indexed: usize,
}

impl Lookup {
    /// Up to `most` tokens that followed the end of `tokens` where it was before, and the length of the part that was: for
    /// up to `branches` of these places, each followed by another token. The longest part comes first, the latest among
    /// equals; but what followed the last token alone goes by how often it did. None if that is new. What goes beyond the
    /// text repeats what lies between: the text is then taken to go round.
    pub(super) fn propose(&mut self, tokens: &[u32], most: usize, branches: usize) -> Vec<Match> {
        let len = tokens.len();
        for place in self.indexed.max(1)..len {
            self.singles.entry(tokens[place - 1]).or_default().push(place as u32);
            if place > 1 {
                let pair = [tokens[place - 2], tokens[place - 1]];
                self.pairs.entry(pair).or_default().push(place as u32);
            }
        }
        self.indexed = self.indexed.max(len);
        let places = tokens.last_chunk().and_then(|end| self.pairs.get(end)).into_iter().flatten();
        let mut matches: Vec<(usize, usize)> = Vec::new();
        for place in places.rev().take(PLACES).map(|&place| place as usize) {
            matches.push((same_end(&tokens[..place], tokens), place));
            // No other place can come before it.
            if branches == 1 && matches.last().is_some_and(|&(matched, _)| matched == LONGEST) {
                break;
            }
        }
        // The sort is stable: the latest of equal matches stays first.
        matches.sort_by_key(|&(matched, _)| Reverse(matched));
        if branches > 1 || matches.is_empty() {
            matches.extend(self.after_last(tokens).into_iter().map(|place| (1, place)));
        }
        let mut seen = HashSet::new();
        matches.retain(|&(_, place)| seen.insert(tokens[place]));
        matches.truncate(branches);
        let follow = |(matched, place): (usize, usize)| Match {
            matched,
            drafts: (0..most).map(|index| tokens[place + index % (len - place)]).collect(),
        };
        matches.into_iter().map(follow).collect()
    }

    /// The latest place of each token that followed the last one, the most frequent first, and the latest among equals.
    fn after_last(&self, tokens: &[u32]) -> Vec<usize> {
        let places = tokens.last().and_then(|last| self.singles.get(last)).into_iter().flatten();
        let mut counts = HashMap::<u32, (usize, usize)>::new();
        for place in places.rev().take(PLACES_OF_ONE).map(|&place| place as usize) {
            counts.entry(tokens[place]).or_insert((0, place)).0 += 1;
        }
        let mut counts: Vec<(usize, usize)> = counts.into_values().collect();
        counts.sort_by_key(|&count| Reverse(count));
        counts.into_iter().map(|(_, place)| place).collect()
    }
}

/// How many tokens two texts have in common at their ends.
fn same_end(a: &[u32], b: &[u32]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take(LONGEST).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(matched: usize, drafts: &[u32]) -> Match {
        Match { matched, drafts: drafts.to_vec() }
    }

    #[test]
    fn the_longest_earlier_match_is_continued_and_the_latest_of_equals() {
        let mut lookup = Lookup::default();
        assert_eq!(lookup.propose(&[5, 1, 2, 7], 3, 1), [], "2, 7 is new");
        // 1, 2 was followed by 7 and then, after 6, by 8.
        assert_eq!(lookup.propose(&[5, 1, 2, 7, 6, 1, 2, 8, 9, 1, 2], 2, 1), [found(2, &[8, 9])]);
        let end = [5, 1, 2, 7, 6, 1, 2, 8, 9, 1, 2, 5, 1, 2];
        assert_eq!(lookup.propose(&end, 2, 1), [found(3, &[7, 6])]);
        assert_eq!(lookup.propose(&end, 1, 9), [found(3, &[7]), found(2, &[5]), found(2, &[8])]);
    }

    #[test]
    fn branches_begin_with_different_tokens() {
        let mut lookup = Lookup::default();
        let text = [1, 2, 7, 3, 1, 2, 8, 4, 1, 2, 7, 5, 1, 2];
        assert_eq!(lookup.propose(&text, 2, 4), [found(2, &[7, 5]), found(2, &[8, 4])]);
    }

    #[test]
    fn where_the_last_two_tokens_are_new_what_followed_the_last_most_often_goes_first() {
        let mut lookup = Lookup::default();
        let text = [9, 3, 7, 8, 3, 7, 6, 3, 5, 4, 3, 2, 1, 3];
        assert_eq!(lookup.propose(&text, 2, 9), [found(1, &[7, 6]), found(1, &[2, 1]), found(1, &[5, 4])]);
        assert_eq!(lookup.propose(&text, 2, 1), [found(1, &[7, 6])]);
    }

    #[test]
    fn a_text_that_goes_round_is_continued_beyond_its_end() {
        let mut lookup = Lookup::default();
        assert_eq!(lookup.propose(&[9, 1, 2, 3, 1, 2, 3], 7, 1), [found(3, &[1, 2, 3, 1, 2, 3, 1])]);
        assert_eq!(lookup.propose(&[4], 3, 1), []);
    }
}
