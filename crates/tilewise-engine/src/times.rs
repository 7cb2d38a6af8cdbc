//! What steps took, for those who decide what the next one does.

use std::collections::BTreeMap;
use std::time::Duration;

/// Times of steps by the rows that they had.
#[derive(Debug, Default)]
pub(crate) struct StepTimes {
    by_rows: BTreeMap<usize, Times>,
}

impl StepTimes {
    pub(crate) fn observe(&mut self, rows: usize, took: Duration) {
        self.by_rows.entry(rows).or_default().push(took.as_secs_f64());
    }

    pub(crate) fn has_seen(&self, rows: usize) -> bool {
        self.by_rows.contains_key(&rows)
    }

    /// The rows that were seen, ascending, and what they took.
    pub(crate) fn seen(&self) -> impl Iterator<Item = (usize, f64)> {
        self.by_rows.iter().map(|(&rows, times)| (rows, times.seconds()))
    }

    /// What a step of so many rows is thought to take: between those that were seen on a line, beyond them as long as the
    /// last, so that it is tried. `None` where none was seen.
    pub(crate) fn seconds(&self, rows: usize) -> Option<f64> {
        let below = self.by_rows.range(..=rows).next_back().map(|(&rows, times)| (rows, times.seconds()));
        let above = self.by_rows.range(rows..).next().map(|(&rows, times)| (rows, times.seconds()));
        match (below, above) {
            (Some((a, x)), Some((b, y))) if b > a => Some(x + (y - x) * (rows - a) as f64 / (b - a) as f64),
            (Some((_, x)), _) | (_, Some((_, x))) => Some(x),
            (None, None) => None,
        }
    }
}

/// The times that something took last.
#[derive(Debug, Default)]
pub(crate) struct Times {
    last: [f64; 4],
    count: usize,
}

impl Times {
    pub(crate) fn push(&mut self, seconds: f64) {
        self.last[self.count % self.last.len()] = seconds;
        self.count += 1;
    }

    /// The least of them: kernels that were compiled and pauses of the machine say nothing of the next time. Zero of none.
    pub(crate) fn seconds(&self) -> f64 {
        let known = self.last.iter().take(self.count).copied();
        known.reduce(f64::min).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_forgotten_and_a_change_is_not() {
        let mut times = Times::default();
        assert_eq!(times.seconds(), 0.0);
        for (seconds, want) in [(9.0, 9.0), (1.0, 1.0), (9.0, 1.0), (2.0, 1.0), (2.0, 1.0), (2.0, 2.0)] {
            times.push(seconds);
            assert_eq!(times.seconds(), want);
        }
    }

    #[test]
    fn steps_between_two_that_were_seen_are_on_a_line() {
        let mut steps = StepTimes::default();
        assert_eq!(steps.seconds(3), None);
        steps.observe(2, Duration::from_secs(1));
        steps.observe(6, Duration::from_secs(3));
        assert_eq!([1, 2, 3, 6, 9].map(|rows| steps.seconds(rows).unwrap()), [1.0, 1.0, 1.5, 3.0, 3.0]);
    }
}
