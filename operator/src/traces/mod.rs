//! Traces: when requests arrive, and how long they are. Replayed against servers, and simulated.
//!
//! | module | what it holds |
//! |---|---|
//! | `csv` | rows of a CSV text, with quotes |
//! | `file` | reading a trace from CSV, and what is wrong with it |
//! | `synthetic` | a made-up day with a peak |

mod csv;
mod file;
mod synthetic;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

pub use synthetic::{SyntheticDay, synthetic_day};

/// Longest time from the first request to the last, in seconds: a year. More is a wrong unit or a wrong row.
pub const LONGEST: f64 = 366.0 * 86_400.0;

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Seconds since the trace's start.
    pub at: f64,
    /// Length of the prompt in tokens, at least 1.
    pub prompt_tokens: u32,
    /// Length of the answer in tokens, at least 1.
    pub output_tokens: u32,
}

/// Requests in the order of their arrival.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Sorted by time; the first of a file arrives at 0.
    pub arrivals: Vec<Arrival>,
}

impl Trace {
    /// Seconds from the start to the last arrival; 0 if there is none.
    pub fn duration(&self) -> f64 {
        self.arrivals.last().map_or(0.0, |last| last.at)
    }

    /// The same requests in `1 / factor` of the time. `factor` is greater than 0.
    #[must_use]
    pub fn speed_up(&self, factor: f64) -> Self {
        let faster = |arrival: &Arrival| Arrival { at: arrival.at / factor, ..*arrival };
        Self { arrivals: self.arrivals.iter().map(faster).collect() }
    }

    /// Keeps each request with the probability `fraction` (0 to 1). The same `seed` keeps the same ones, and a smaller
    /// fraction keeps a subset of them.
    #[must_use]
    pub fn thin(&self, fraction: f64, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self { arrivals: self.arrivals.iter().filter(|_| uniform(&mut rng) < fraction).copied().collect() }
    }

    /// Shortens every request that is longer than `max_context` tokens (prompt and answer together), and says how many
    /// were. The answer keeps its length as far as one token of prompt is left. `max_context` is at least 2.
    pub fn clip(&self, max_context: u32) -> (Self, usize) {
        let max_context = max_context.max(2);
        let mut clipped = 0;
        let clip = |arrival: &Arrival| {
            if arrival.prompt_tokens.saturating_add(arrival.output_tokens) <= max_context {
                return *arrival;
            }
            clipped += 1;
            let output_tokens = arrival.output_tokens.min(max_context - 1);
            let prompt_tokens = arrival.prompt_tokens.min(max_context - output_tokens);
            Arrival { prompt_tokens, output_tokens, ..*arrival }
        };
        let arrivals = self.arrivals.iter().map(clip).collect();
        (Self { arrivals }, clipped)
    }

    /// The requests from `from` up to, but not at, `to` seconds, counted from `from` on.
    #[must_use]
    pub fn window(&self, from: f64, to: f64) -> Self {
        let inside = self.arrivals.iter().filter(|arrival| (from..to).contains(&arrival.at));
        Self { arrivals: inside.map(|arrival| Arrival { at: arrival.at - from, ..*arrival }).collect() }
    }
}

/// A number from 0 up to, but not, 1.
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    // 53 random bits: as many as the mantissa has.
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(at: f64, prompt_tokens: u32, output_tokens: u32) -> Arrival {
        Arrival { at, prompt_tokens, output_tokens }
    }

    fn seconds(count: u32) -> Trace {
        Trace { arrivals: (0..count).map(|i| arrival(f64::from(i), i + 1, 1)).collect() }
    }

    #[test]
    fn speeding_up_changes_only_the_times() {
        let faster = Trace { arrivals: vec![arrival(0.0, 1, 1), arrival(0.25, 2, 1)] };
        assert_eq!(seconds(2).speed_up(4.0), faster);
    }

    #[test]
    fn thinning_is_deterministic_and_keeps_about_the_fraction() {
        let trace = seconds(10_000);
        let thin = trace.thin(0.25, 7);
        assert_eq!(thin, trace.thin(0.25, 7));
        assert_ne!(thin, trace.thin(0.25, 8));
        assert!((2_300..2_700).contains(&thin.arrivals.len()), "{}", thin.arrivals.len());
        assert_eq!((trace.thin(1.0, 7), trace.thin(0.0, 7).arrivals.len()), (trace.clone(), 0));
        let half = trace.thin(0.5, 7);
        assert!(thin.arrivals.iter().all(|kept| half.arrivals.contains(kept)));
    }

    #[test]
    fn what_is_longer_than_the_context_is_clipped_and_counted() {
        let trace = Trace { arrivals: vec![arrival(0.0, 90, 10), arrival(1.0, 95, 10), arrival(2.0, 5, 4000)] };
        let clipped = Trace { arrivals: vec![arrival(0.0, 90, 10), arrival(1.0, 90, 10), arrival(2.0, 1, 99)] };
        assert_eq!(trace.clip(100), (clipped, 2));
    }

    #[test]
    fn a_window_begins_at_its_own_start() {
        let window = Trace { arrivals: vec![arrival(0.5, 3, 1), arrival(1.5, 4, 1)] };
        assert_eq!(seconds(10).window(1.5, 4.0), window);
    }
}
