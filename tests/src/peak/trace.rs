//! The requests of a peak: quiet, a burst, quiet again.

use std::path::Path;

use modelprofile_operator::traces::{Arrival, SyntheticDay, Trace, synthetic_day};

/// Seconds of the trace that are left out: the Azure trace begins with a few requests a second fewer than it goes on with.
const SKIPPED: f64 = 600.0;
const SEED: u64 = 4;

/// What the parts are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Quiet before the burst, in seconds of the replay.
    pub lead: f64,
    /// Requests of the burst; how long it takes depends on their rate.
    pub requests: usize,
    /// Seconds of the replay that they should take at most: where the rate is too low for that there are fewer, but not fewer
    /// than twelve. Without it, all.
    pub longest: Option<f64>,
    /// Quiet after it, in seconds of the replay.
    pub tail: f64,
    /// Seconds that a request of mean length may take while no other runs: where the machine takes longer, all requests are
    /// shortened in proportion. Without it, none is.
    pub alone: Option<f64>,
}

/// Least part of a request's length that is kept, however slow the machine: with less, a prompt would be a few tokens.
const SHORTEST: f64 = 0.1;

/// Fewest requests of a burst, however slow the machine: with fewer, few would wait.
const FEWEST: usize = 12;

impl Shape {
    /// The same with the requests of the burst that come in its time at a rate.
    #[must_use]
    pub fn at_rate(self, burst_rate: f64) -> Self {
        let in_time = self.longest.map_or(usize::MAX, |seconds| (seconds * burst_rate) as usize);
        Self { requests: self.requests.min(in_time.max(FEWEST)), ..self }
    }

    /// Part of their length that requests keep on a machine where one of mean length takes `seconds` by itself.
    #[must_use]
    pub fn kept(&self, seconds: f64) -> f64 {
        self.alone.map_or(1.0, |limit| (limit / seconds).clamp(SHORTEST, 1.0))
    }
}

/// The requests of a peak.
#[derive(Clone, Debug, PartialEq)]
pub struct Peak {
    /// All of them.
    pub trace: Trace,
    /// Second up to which those of the burst arrive.
    pub burst_end: f64,
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
        let (prompt, output) = self.mean(context);
        prompt + output
    }

    /// A request of mean length, after clipping to the context.
    pub fn typical(&self, context: u32) -> Trace {
        let (prompt, output) = self.mean(context);
        let tokens = |mean: f64| (mean.round() as u32).max(1);
        Trace { arrivals: vec![Arrival { at: 0.0, prompt_tokens: tokens(prompt), output_tokens: tokens(output) }] }
    }

    /// Mean tokens of prompt and answer.
    fn mean(&self, context: u32) -> (f64, f64) {
        let (trace, _) = self.trace.clip(context);
        let mean = |tokens: fn(&Arrival) -> u32| {
            trace.arrivals.iter().map(|arrival| f64::from(tokens(arrival))).sum::<f64>()
                / trace.arrivals.len().max(1) as f64
        };
        (mean(|arrival| arrival.prompt_tokens), mean(|arrival| arrival.output_tokens))
    }

    /// The same requests at a part of their length, prompt and answer alike.
    #[must_use]
    pub fn shortened(&self, part: f64) -> Self {
        let tokens = |all: u32| ((f64::from(all) * part).round() as u32).max(1);
        let shorter = |arrival: &Arrival| Arrival {
            at: arrival.at,
            prompt_tokens: tokens(arrival.prompt_tokens),
            output_tokens: tokens(arrival.output_tokens),
        };
        Self { name: self.name.clone(), trace: Trace { arrivals: self.trace.arrivals.iter().map(shorter).collect() } }
    }

    /// The requests of the burst, thinned to about one a second of the recording; the thinning alone decides which.
    fn burst(&self, requests: usize) -> Trace {
        let recorded = self.trace.window(SKIPPED, f64::INFINITY);
        let rate = recorded.arrivals.len() as f64 / recorded.duration().max(1.0);
        let mut burst = recorded.thin(1.0 / rate.max(1.0), SEED);
        burst.arrivals.truncate(requests);
        burst
    }

    /// Every second request of the burst, all at once.
    pub fn probes(&self, shape: &Shape) -> Trace {
        let burst = self.burst(shape.requests);
        let probes = burst.arrivals.into_iter().step_by(2).map(|arrival| Arrival { at: 0.0, ..arrival });
        Trace { arrivals: probes.collect() }
    }

    /// A peak whose rates are given in requests a second, on average.
    pub fn peak(&self, shape: &Shape, burst_rate: f64, quiet_rate: f64) -> Peak {
        let burst = self.burst(shape.requests);
        let seconds = burst.arrivals.len() as f64 / burst_rate;
        let burst = burst.speed_up(burst.duration().max(1e-9) / seconds);
        let burst_end = shape.lead + seconds;
        let parts = [
            (0.0, self.quiet(0.0, shape.lead, quiet_rate)),
            (shape.lead, burst),
            (burst_end, self.quiet(shape.lead, shape.tail, quiet_rate)),
        ];
        let moved = |(start, part): (f64, Trace)| {
            part.arrivals.into_iter().map(move |arrival| Arrival { at: arrival.at + start, ..arrival })
        };
        Peak { trace: Trace { arrivals: parts.into_iter().flat_map(moved).collect() }, burst_end }
    }

    /// `length` seconds of the recording from second `from` on, thinned to `rate`.
    fn quiet(&self, from: f64, length: f64, rate: f64) -> Trace {
        let part = self.trace.window(from, from + length);
        let recorded = part.arrivals.len() as f64 / length;
        part.thin(rate / recorded.max(rate), SEED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { lead: 100.0, requests: 400, longest: None, tail: 200.0, alone: None };

    #[test]
    fn a_slow_machine_gets_fewer_requests_but_some() {
        let shape = Shape { longest: Some(90.0), ..SHAPE };
        assert_eq!(shape.at_rate(10.0), shape);
        assert_eq!(shape.at_rate(0.5), Shape { requests: 45, ..shape });
        assert_eq!(shape.at_rate(0.01).requests, FEWEST);
        assert_eq!(Shape { requests: 5, ..shape }.at_rate(0.01).requests, 5);
        assert_eq!(SHAPE.at_rate(0.01), SHAPE);
    }

    #[test]
    fn a_slow_machine_gets_shorter_requests_at_the_same_times() {
        let shape = Shape { alone: Some(4.0), ..SHAPE };
        let percent = |shape: &Shape, seconds| (100.0 * shape.kept(seconds)).round() as u32;
        assert_eq!([1.0, 4.0, 8.0, 4000.0].map(|seconds| percent(&shape, seconds)), [100, 100, 50, 10]);
        assert_eq!(percent(&SHAPE, 4000.0), 100);
        let source = Source::open(None).unwrap();
        let half = source.shortened(0.5);
        assert_eq!(half.trace.arrivals.len(), source.trace.arrivals.len());
        for (whole, half) in source.trace.arrivals.iter().zip(&half.trace.arrivals) {
            assert!((whole.at - half.at).abs() < 1e-9);
            assert!(whole.prompt_tokens.abs_diff(2 * half.prompt_tokens) <= 1 && half.prompt_tokens > 0);
            assert!(whole.output_tokens.abs_diff(2 * half.output_tokens) <= 1 && half.output_tokens > 0);
        }
        assert_eq!(source.shortened(1.0).trace, source.trace);
    }

    #[test]
    fn a_peak_is_quiet_busy_and_quiet_at_the_rates_asked_for() {
        let source = Source::open(None).unwrap();
        for rate in [0.5, 2.0, 11.0] {
            let Peak { trace, burst_end } = source.peak(&SHAPE, rate, 0.5);
            assert!((burst_end - (100.0 + 400.0 / rate)).abs() < 1e-6, "{burst_end}");
            let count = |from: f64, to: f64| trace.window(from, to).arrivals.len() as f64;
            // The last one arrives at the very end.
            let in_burst = |arrival: &&Arrival| (100.0..burst_end + 1e-6).contains(&arrival.at);
            assert_eq!(trace.arrivals.iter().filter(in_burst).count(), 400);
            let (before, after) = (count(0.0, 100.0) / 100.0, count(burst_end + 1e-6, f64::INFINITY) / 200.0);
            assert!((0.3..0.7).contains(&before) && (0.3..0.7).contains(&after), "{before} {after}");
            assert!(trace.arrivals.is_sorted_by(|a, b| a.at <= b.at));
        }
    }

    #[test]
    fn the_probes_are_half_of_the_burst_at_once() {
        let source = Source::open(None).unwrap();
        let burst = source.peak(&Shape { lead: 0.0, ..SHAPE }, 1.0, 0.0).trace;
        let probes = source.probes(&SHAPE);
        assert_eq!(probes.arrivals.len(), 200);
        assert_eq!(probes.arrivals[7], Arrival { at: 0.0, ..burst.arrivals[14] });
    }

    #[test]
    fn the_mean_counts_what_is_left_of_long_requests() {
        let source = Source::open(None).unwrap();
        let (all, clipped) = (source.mean_tokens(u32::MAX), source.mean_tokens(2048));
        assert!((1300.0..1430.0).contains(&all), "{all}");
        assert!((0.6 * all..0.9 * all).contains(&clipped), "{clipped}");
        let [typical] = &source.typical(2048).arrivals[..] else { panic!("one request") };
        let tokens = typical.prompt_tokens + typical.output_tokens;
        assert!(clipped.round() as u32 == tokens && typical.prompt_tokens > 3 * typical.output_tokens, "{typical:?}");
    }
}
