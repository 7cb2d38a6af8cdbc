//! Drafts from the text itself: what followed when its end was there before ("prompt lookup", Saxena 2023).

use std::collections::HashMap;

/// Tokens of an end that must have been there before, at least.
const SHORTEST: usize = 2;
/// Longer matches are all alike.
const LONGEST: usize = 32;
/// Earlier places that are compared, the latest first.
const PLACES: usize = 16;

/// Where each pair of tokens is in a text that grows.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// The places after the pair, ascending.
    places: HashMap<[u32; SHORTEST], Vec<u32>>,
    /// Places up to this one are in the map.
    indexed: usize,
}

impl Lookup {
    /// Up to `most` tokens that followed the end of `tokens` where the longest part of it was before, the latest among
    /// equals, and the length of that part; none if it is new. What goes beyond the text repeats what lies between: the
    /// text is then taken to go round.
    pub(super) fn propose(&mut self, tokens: &[u32], most: usize) -> (usize, Vec<u32>) {
        let len = tokens.len();
        for place in self.indexed.max(SHORTEST)..len {
            let pair = [tokens[place - 2], tokens[place - 1]];
            self.places.entry(pair).or_default().push(place as u32);
        }
        self.indexed = self.indexed.max(len);
        let Some(&end) = tokens.last_chunk::<SHORTEST>() else { return (0, Vec::new()) };
        let latest = self.places.get(&end).into_iter().flat_map(|places| places.iter().rev().take(PLACES));
        let mut best = None;
        for &place in latest {
            let matched = same_end(&tokens[..place as usize], tokens);
            if best.is_none_or(|(most, _)| matched > most) {
                best = Some((matched, place as usize));
            }
            if matched == LONGEST {
                break;
            }
        }
        let Some((matched, place)) = best else { return (0, Vec::new()) };
        let round = len - place;
        (matched, (0..most).map(|index| tokens[place + index % round]).collect())
    }
}

/// How many tokens two texts have in common at their ends.
fn same_end(a: &[u32], b: &[u32]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take(LONGEST).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_earlier_match_is_continued_and_the_latest_of_equals() {
        let mut lookup = Lookup::default();
        assert_eq!(lookup.propose(&[5, 1, 2, 7], 3), (0, vec![]), "2, 7 is new");
        // 1, 2 was followed by 7 and then, after 6, by 8.
        assert_eq!(lookup.propose(&[5, 1, 2, 7, 6, 1, 2, 8, 9, 1, 2], 2), (2, vec![8, 9]));
        assert_eq!(lookup.propose(&[5, 1, 2, 7, 6, 1, 2, 8, 9, 1, 2, 5, 1, 2], 2), (3, vec![7, 6]));
    }

    #[test]
    fn a_text_that_goes_round_is_continued_beyond_its_end() {
        let mut lookup = Lookup::default();
        assert_eq!(lookup.propose(&[9, 1, 2, 3, 1, 2, 3], 7), (3, vec![1, 2, 3, 1, 2, 3, 1]));
        assert_eq!(lookup.propose(&[4], 3), (0, vec![]));
    }
}
