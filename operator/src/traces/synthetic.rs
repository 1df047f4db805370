//! A made-up day: a base load, and a peak.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::{Arrival, Trace, uniform};

/// What a synthetic day looks like.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticDay {
    /// Length in seconds.
    pub duration: f64,
    /// Requests a second outside the peak.
    pub base_rate: f64,
    /// Requests a second in the peak.
    pub peak_rate: f64,
    /// Second at which the peak begins.
    pub peak_from: f64,
    /// Second at which the peak ends.
    pub peak_to: f64,
    /// Mean length of a prompt, in tokens.
    pub mean_prompt: f64,
    /// Mean length of an answer, in tokens.
    pub mean_output: f64,
    /// The same seed gives the same day.
    pub seed: u64,
}

/// Poisson arrivals at the rate of their time, with lengths that are exponentially distributed (1 token at least, and 16
/// times the mean at most, so that one request in ten million is no outlier that rules a short run).
pub fn synthetic_day(day: &SyntheticDay) -> Trace {
    let mut rng = ChaCha8Rng::seed_from_u64(day.seed);
    let fastest = day.base_rate.max(day.peak_rate);
    let mut arrivals = Vec::new();
    if !(fastest > 0.0 && fastest.is_finite()) {
        return Trace { arrivals };
    }
    let mut at = 0.0;
    loop {
        // Candidates at the higher rate, of which the lower rate's share is kept: the process stays Poisson at the edges.
        at += exponential(&mut rng) / fastest;
        if at.is_nan() || at >= day.duration {
            return Trace { arrivals };
        }
        let peak = (day.peak_from..day.peak_to).contains(&at);
        let rate = if peak { day.peak_rate } else { day.base_rate };
        if uniform(&mut rng) * fastest < rate {
            let prompt_tokens = length(&mut rng, day.mean_prompt);
            arrivals.push(Arrival { at, prompt_tokens, output_tokens: length(&mut rng, day.mean_output) });
        }
    }
}

/// A sample with the mean 1.
fn exponential(rng: &mut ChaCha8Rng) -> f64 {
    -(1.0 - uniform(rng)).ln()
}

fn length(rng: &mut ChaCha8Rng, mean: f64) -> u32 {
    // A cast to an integer saturates.
    (exponential(rng).min(16.0) * mean).round().max(1.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: SyntheticDay = SyntheticDay {
        duration: 2_000.0,
        base_rate: 1.0,
        peak_rate: 10.0,
        peak_from: 500.0,
        peak_to: 1_000.0,
        mean_prompt: 200.0,
        mean_output: 50.0,
        seed: 1,
    };

    #[test]
    fn the_rates_and_lengths_are_what_was_asked_for() {
        let day = synthetic_day(&DAY);
        let count = |from, to| day.window(from, to).arrivals.len() as f64;
        let (peak, base) = (count(500.0, 1_000.0) / 500.0, (count(0.0, 500.0) + count(1_000.0, 2_000.0)) / 1_500.0);
        assert!((9.4..10.6).contains(&peak) && (0.9..1.1).contains(&base), "{peak} {base}");
        let mean = day.arrivals.iter().map(|a| f64::from(a.prompt_tokens)).sum::<f64>() / day.arrivals.len() as f64;
        assert!((190.0..210.0).contains(&mean), "{mean}");
        assert!(day.arrivals.is_sorted_by(|a, b| a.at <= b.at));
        assert!(day.arrivals.iter().all(|a| a.prompt_tokens > 0 && a.output_tokens > 0 && a.at < 2_000.0));
    }

    #[test]
    fn a_seed_decides_the_day() {
        assert_eq!(synthetic_day(&DAY), synthetic_day(&DAY));
        assert_ne!(synthetic_day(&DAY), synthetic_day(&SyntheticDay { seed: 2, ..DAY }));
    }

    #[test]
    fn no_rate_gives_no_arrivals() {
        let none = SyntheticDay { base_rate: 0.0, peak_rate: 0.0, ..DAY };
        assert_eq!(synthetic_day(&none), Trace::default());
    }
}
