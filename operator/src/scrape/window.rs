//! What a histogram counted over a window of time.

use std::collections::VecDeque;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

/// Most snapshots that are kept: a long window has fewer than one a look, and its start is off by a 64th of it at most.
const SNAPSHOTS: i32 = 64;

/// Cumulated counts by upper bound, in rising order.
pub(super) type Buckets = Vec<(f64, f64)>;

/// When a look was, and what it saw.
type Snapshot = (Timestamp, Arc<[(f64, f64)]>);

/// Snapshots of one histogram, the oldest first. Their number is bounded.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// Those in a row that are equal share one: while nothing comes, all do.
    snapshots: VecDeque<Snapshot>,
}

impl Window {
    /// The quantile `q` of what was counted within `span` before `now`, where the histogram is at `buckets`; `None` if
    /// nothing was. At least one interval between two looks is covered, and at the first look none is.
    pub(super) fn quantile(&mut self, q: f64, now: Timestamp, buckets: Buckets, span: SignedDuration) -> Option<f64> {
        let age = |at: Timestamp| now.duration_since(at);
        if self.snapshots.back().is_some_and(|(at, _)| age(*at).is_negative()) {
            // The clock was set back: nobody knows how old these are.
            self.snapshots.clear();
        }
        // A window that is never longer than its span: one slow request alone is over the target for less than the span.
        while self.snapshots.len() > 1 && self.snapshots.front().is_some_and(|(at, _)| age(*at) > span) {
            self.snapshots.pop_front();
        }
        let found = self.snapshots.front().and_then(|(_, before)| quantile(q, &buckets, before));
        if self.snapshots.back().is_none_or(|(at, _)| age(*at) >= span / SNAPSHOTS) {
            // Reached only where an edit made the span longer.
            if self.snapshots.len() > SNAPSHOTS as usize {
                self.snapshots.pop_front();
            }
            let same = self.snapshots.back().map(|(_, last)| last).filter(|last| ***last == *buckets).cloned();
            self.snapshots.push_back((now, same.unwrap_or_else(|| buckets.into())));
        }
        found
    }

    /// The histogram counts from zero since `at`.
    pub(super) fn start_anew(&mut self, at: Timestamp) {
        self.snapshots.clear();
        self.snapshots.push_back((at, Arc::default()));
    }
}

/// A quantile of what a histogram counted between two looks, linear within its bucket; `None` if it counted nothing.
fn quantile(q: f64, now: &[(f64, f64)], before: &[(f64, f64)]) -> Option<f64> {
    let earlier =
        |bound: f64| before.iter().find(|(other, _)| other.total_cmp(&bound).is_eq()).map_or(0.0, |(_, count)| *count);
    let rises: Vec<(f64, f64)> = now.iter().map(|(bound, count)| (*bound, count - earlier(*bound))).collect();
    let total = rises.last().map(|(_, count)| *count).filter(|total| *total > 0.0)?;
    let rank = q * total;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in rises {
        if count >= rank {
            // Beyond the last finite bound nothing more is known.
            return Some(if bound.is_infinite() {
                low
            } else {
                low + (bound - low) * (rank - below) / (count - below).max(1e-9)
            });
        }
        (low, below) = (bound, count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(at: i64) -> Timestamp {
        Timestamp::from_second(at).unwrap()
    }

    /// All of `count` took between 4 and 8 seconds.
    fn slow(count: f64) -> Buckets {
        vec![(4.0, 0.0), (8.0, count), (f64::INFINITY, count)]
    }

    #[test]
    fn what_was_counted_stays_for_less_than_the_span() {
        let mut window = Window::default();
        let span = SignedDuration::from_secs(3);
        let found: Vec<bool> = (0..7)
            .map(|at| window.quantile(0.5, second(at), slow(f64::from(u8::from(at >= 2))), span).is_some())
            .collect();
        assert_eq!(found, [false, false, true, true, true, false, false]);
    }

    #[test]
    fn looks_further_apart_than_the_span_cover_their_interval() {
        let mut window = Window::default();
        let found = [0, 60, 120].map(|at| window.quantile(0.5, second(at), slow(at as f64), SignedDuration::ZERO));
        assert_eq!(found, [None, Some(6.0), Some(6.0)]);
    }

    #[test]
    fn an_hour_of_looks_each_second_keeps_few_snapshots_and_the_whole_span() {
        let mut window = Window::default();
        for at in 0..10_000 {
            window.quantile(0.5, second(at), slow(1.0), SignedDuration::from_hours(1));
            assert!(window.snapshots.len() <= 65, "{}", window.snapshots.len());
        }
        let oldest = window.snapshots[0].0;
        assert!((3_500..=3_600).contains(&(9_999 - oldest.as_second())), "{oldest}");
    }

    #[test]
    fn a_span_that_is_made_longer_stays_bounded() {
        let mut window = Window::default();
        for at in 0..1_000 {
            window.quantile(0.5, second(at), slow(1.0), SignedDuration::from_secs(60 * (1 + at / 100)));
            assert!(window.snapshots.len() <= 65, "{}", window.snapshots.len());
        }
    }

    #[test]
    fn a_clock_that_is_set_back_starts_the_window_anew() {
        let mut window = Window::default();
        let span = SignedDuration::from_secs(3);
        let found = [100, 101, 50, 51].map(|at| window.quantile(0.5, second(at), slow(at as f64), span));
        assert_eq!(found, [None, Some(6.0), None, Some(6.0)]);
    }
}
