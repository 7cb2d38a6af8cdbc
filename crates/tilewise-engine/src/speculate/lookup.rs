//! Drafts from the text itself: what followed when its end was there before ("prompt lookup", Saxena 2023).

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

/// Tokens of an end that must have been there before, at least.
const SHORTEST: usize = 2;
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

/// Where each pair of tokens is in a text that grows.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// The places after the pair, ascending.
    places: HashMap<[u32; SHORTEST], Vec<u32>>,
    /// Places up to this one are in the map.
    indexed: usize,
}

impl Lookup {
    /// Up to `most` tokens that followed the end of `tokens` where it was before, and the length of the part that was: for
    /// up to `branches` of these places, each followed by another token. The longest part comes first, the latest among
    /// equals; none if it is new. What goes beyond the text repeats what lies between: the text is then taken to go round.
    pub(super) fn propose(&mut self, tokens: &[u32], most: usize, branches: usize) -> Vec<Match> {
        let len = tokens.len();
        for place in self.indexed.max(SHORTEST)..len {
            let pair = [tokens[place - 2], tokens[place - 1]];
            self.places.entry(pair).or_default().push(place as u32);
        }
        self.indexed = self.indexed.max(len);
        let Some(&end) = tokens.last_chunk::<SHORTEST>() else { return Vec::new() };
        let latest = self.places.get(&end).into_iter().flat_map(|places| places.iter().rev().take(PLACES));
        let mut matches: Vec<(usize, usize)> = Vec::new();
        for &place in latest {
            matches.push((same_end(&tokens[..place as usize], tokens), place as usize));
            if branches == 1 && matches.last().is_some_and(|&(matched, _)| matched == LONGEST) {
                break;
            }
        }
        // The sort is stable: the latest of equal matches stays first.
        matches.sort_by_key(|&(matched, _)| Reverse(matched));
        let mut seen = HashSet::new();
        matches.retain(|&(_, place)| seen.insert(tokens[place]));
        matches.truncate(branches);
        let follow = |(matched, place): (usize, usize)| Match {
            matched,
            drafts: (0..most).map(|index| tokens[place + index % (len - place)]).collect(),
        };
        matches.into_iter().map(follow).collect()
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
    fn a_text_that_goes_round_is_continued_beyond_its_end() {
        let mut lookup = Lookup::default();
        assert_eq!(lookup.propose(&[9, 1, 2, 3, 1, 2, 3], 7, 1), [found(3, &[1, 2, 3, 1, 2, 3, 1])]);
        assert_eq!(lookup.propose(&[4], 3, 1), []);
    }
}
