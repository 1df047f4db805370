//! The requests of a peak: quiet, a burst, quiet again.

use std::path::Path;

use modelprofile_operator::traces::{SyntheticDay, Trace, synthetic_day};

/// Seconds of the trace that are left out: the Azure trace begins with a few requests a second fewer than it goes on with.
const SKIPPED: f64 = 600.0;
const SEED: u64 = 4;

/// Lengths of the parts, in seconds of the replay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Quiet before the burst.
    pub lead: f64,
    /// The burst.
    pub burst: f64,
    /// Quiet after it.
    pub tail: f64,
}

impl Shape {
    /// Second at which the last request of the burst may arrive.
    pub fn burst_end(&self) -> f64 {
        self.lead + self.burst
    }
}

/// Where the requests come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// For a person.
    pub name: String,
    /// All of it, as it was recorded.
    pub trace: Trace,
}

impl Source {
    /// A recorded trace; without one, made-up requests with the rate and the mean lengths of the Azure conversation trace
    /// of 2023 (Azure Public Dataset).
    ///
    /// # Errors
    /// The file cannot be read, or is no trace.
    pub fn open(file: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(file) = file {
            return Ok(Self { name: file.display().to_string(), trace: Trace::read(file)? });
        }
        let trace = synthetic_day(&SyntheticDay {
            duration: 3600.0,
            base_rate: 5.5,
            peak_rate: 5.5,
            peak_from: 0.0,
            peak_to: 0.0,
            mean_prompt: 1155.0,
            mean_output: 211.0,
            seed: SEED,
        });
        Ok(Self { name: "made-up requests as long as those of the Azure conversation trace".to_owned(), trace })
    }

    /// Mean tokens of a request, prompt and answer together, after clipping to the context.
    pub fn mean_tokens(&self, context: u32) -> f64 {
        let (trace, _) = self.trace.clip(context);
        let tokens = trace.arrivals.iter().map(|arrival| f64::from(arrival.prompt_tokens + arrival.output_tokens));
        tokens.sum::<f64>() / trace.arrivals.len().max(1) as f64
    }

    /// The first requests of those that peaks are made of, all at once.
    pub fn at_once(&self, count: usize) -> Trace {
        let mut trace = self.trace.window(SKIPPED, f64::INFINITY);
        trace.arrivals.truncate(count);
        for arrival in &mut trace.arrivals {
            arrival.at = 0.0;
        }
        trace
    }

    /// The requests of a peak whose rates are given in requests a second, on average.
    pub fn peak(&self, shape: &Shape, burst_rate: f64, quiet_rate: f64) -> Trace {
        let parts = [
            (0.0, shape.lead, quiet_rate),
            (shape.lead, shape.burst, burst_rate),
            (shape.burst_end(), shape.tail, quiet_rate),
        ];
        let mut arrivals = Vec::new();
        for (start, length, rate) in parts {
            let part = self.at_rate(SKIPPED + start, length, rate);
            arrivals.extend(part.arrivals.into_iter().map(|mut arrival| {
                arrival.at += start;
                arrival
            }));
        }
        Trace { arrivals }
    }

    /// `length` seconds from second `from` on, thinned to `rate`, or speeded up to it where the trace is slower.
    fn at_rate(&self, from: f64, length: f64, rate: f64) -> Trace {
        let recorded = self.trace.window(from, from + length).arrivals.len() as f64 / length;
        let factor = rate / recorded.max(1e-9);
        if factor <= 1.0 {
            self.trace.window(from, from + length).thin(factor, SEED)
        } else {
            self.trace.window(from, from + length * factor).speed_up(factor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { lead: 100.0, burst: 200.0, tail: 100.0 };

    fn rates(trace: &Trace) -> [f64; 3] {
        let rate = |from: f64, to: f64| trace.window(from, to).arrivals.len() as f64 / (to - from);
        [rate(0.0, 100.0), rate(100.0, 300.0), rate(300.0, 400.0)]
    }

    #[test]
    fn a_peak_is_quiet_busy_and_quiet_at_the_rates_asked_for() {
        let source = Source::open(None).unwrap();
        for burst in [2.0, 11.0] {
            let trace = source.peak(&SHAPE, burst, 0.5);
            let [before, peak, after] = rates(&trace);
            assert!((peak / burst - 1.0).abs() < 0.2, "{peak}");
            assert!(before < 0.8 && after < 0.8 && before + after > 0.5, "{before} {after}");
            assert!(trace.arrivals.is_sorted_by(|a, b| a.at <= b.at));
        }
    }

    #[test]
    fn the_mean_counts_what_is_left_of_long_requests() {
        let source = Source::open(None).unwrap();
        let (all, clipped) = (source.mean_tokens(u32::MAX), source.mean_tokens(2048));
        assert!((1300.0..1430.0).contains(&all), "{all}");
        assert!((0.6 * all..0.9 * all).contains(&clipped), "{clipped}");
    }
}
