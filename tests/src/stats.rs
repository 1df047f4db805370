//! Gaps between the tokens of a stream, and the limit that a change of precision must keep.

use std::time::{Duration, Instant};

/// A gap below this is never an interruption, however fast the stream was.
pub const ALWAYS_ALLOWED: Duration = Duration::from_millis(250);

/// A gap may be this many times the median gap of its stream.
pub const ALLOWED_MEDIANS: u32 = 3;

/// Gaps between consecutive tokens. The time to the first token is no gap.
pub fn gaps(tokens: &[Instant]) -> Vec<Duration> {
    tokens.windows(2).map(|pair| pair[1].duration_since(pair[0])).collect()
}

/// The median, the lower one of two; `None` of nothing.
pub fn median(durations: &[Duration]) -> Option<Duration> {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// The longest gap of a stream over the limit `max(250 ms, 3 x its median)`: at most 1 where no switch was felt.
pub fn worst_over_limit(gaps: &[Duration]) -> f64 {
    let (Some(median), Some(worst)) = (median(gaps), gaps.iter().max()) else { return 0.0 };
    worst.as_secs_f64() / ALWAYS_ALLOWED.max(median * ALLOWED_MEDIANS).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(values: &[u64]) -> Vec<Duration> {
        values.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn a_median_is_the_middle_value() {
        assert_eq!(median(&ms(&[])), None);
        assert_eq!(median(&ms(&[7])), Some(Duration::from_millis(7)));
        assert_eq!(median(&ms(&[9, 1, 5, 3])), Some(Duration::from_millis(3)));
    }

    #[test]
    fn fast_streams_are_held_to_250_ms_and_slow_ones_to_three_medians() {
        assert!((worst_over_limit(&ms(&[10, 10, 125])) - 0.5).abs() < 1e-9);
        assert!((worst_over_limit(&ms(&[100, 100, 600])) - 2.0).abs() < 1e-9);
        assert!((worst_over_limit(&ms(&[])) - 0.0).abs() < 1e-9);
    }

    #[test]
    fn gaps_leave_the_first_token_out() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(gaps(&[at(500), at(510), at(530)]), ms(&[10, 20]));
        assert_eq!(gaps(&[at(500)]), ms(&[]));
    }
}
