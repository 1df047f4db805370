//! The server's metrics over time. A server without them leaves its part of the timeline empty.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::client::Target;
use super::pressure::Meter;
use crate::scrape::Metrics;

/// Often enough to show a switch, seldom enough not to be load.
pub(super) const PERIOD: Duration = Duration::from_millis(500);

/// One look at `/metrics`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Seconds since the replay's start.
    pub at: f64,
    /// Share of the KV cache in use, 0 to 1; the fullest engine's if there are several.
    pub kv_usage: Option<f64>,
    /// Requests being computed.
    pub running: Option<f64>,
    /// Requests that wait.
    pub waiting: Option<f64>,
    /// The profile that computes.
    pub profile: Option<String>,
}

impl Sample {
    /// Of one look; `None` if it has nothing of interest.
    fn of(at: f64, metrics: &Metrics) -> Option<Self> {
        let sample = Self {
            at,
            kv_usage: metrics.highest("vllm:kv_cache_usage_perc"),
            running: metrics.sum("vllm:num_requests_running"),
            waiting: metrics.sum("vllm:num_requests_waiting"),
            profile: metrics.label_where_positive("modelprofile_active_profile", "profile"),
        };
        (sample != Self { at, ..Self::default() }).then_some(sample)
    }
}

/// What was seen over time.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) samples: Vec<Sample>,
    /// Seconds since the replay's start, and load over target.
    pub(super) pressure: Vec<(f64, f64)>,
}

/// Looks until it is dropped. A look that fails leaves a gap.
pub(super) async fn scrape(target: &Target, start: Instant, meter: &mut Meter, seen: &mut Seen) -> Infallible {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let at = start.elapsed().as_secs_f64();
        if let Some(text) = target.metrics().await {
            let metrics = Metrics::parse(&text);
            seen.samples.extend(Sample::of(at, &metrics));
            seen.pressure.extend(meter.read(Timestamp::now(), &metrics).map(|pressure| (at, pressure)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_reads_the_workers_metrics() {
        let text = "# HELP x y\nvllm:kv_cache_usage_perc 0.25\nvllm:num_requests_running{engine=\"0\"} 2\n\
            vllm:num_requests_running{engine=\"1\"} 3\nvllm:num_requests_waiting 1\n\
            modelprofile_active_profile{profile=\"quality\"} 0\nmodelprofile_active_profile{profile=\"density\"} 1\n";
        let sample = Sample {
            at: 1.5,
            kv_usage: Some(0.25),
            running: Some(5.0),
            waiting: Some(1.0),
            profile: Some("density".into()),
        };
        assert_eq!(Sample::of(1.5, &Metrics::parse(text)), Some(sample));
    }

    #[test]
    fn other_metrics_are_no_sample() {
        assert_eq!(Sample::of(0.0, &Metrics::parse("up 1\nnot a metric\n")), None);
    }
}
