//! Load over target during a replay, from the server's metrics and as a decision would see it.

use std::time::Duration;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use modelprofile_api::{EngineType, ModelProfileSpec};
use modelprofile_policy::pressure::Load;
use modelprofile_policy::signals::Signals;
use modelprofile_policy::{Observation, Replica, Rules};
use serde_json::json;

use crate::scrape::{Metrics, Scraper};

/// Makes a pressure of each look.
#[derive(Debug)]
pub(super) struct Meter {
    rules: Rules,
    scraper: Scraper,
    /// The rules have the server's signals: a manifest named its engine, or its metrics did.
    engine_known: bool,
}

impl Meter {
    /// By `rules`, or by the default targets if there are none; with a look every `interval`.
    ///
    /// # Errors
    /// There are no default targets, which a test excludes.
    pub(super) fn new(rules: Option<&Rules>, interval: Duration) -> anyhow::Result<Self> {
        let interval = SignedDuration::try_from(interval)?;
        let engine_known = rules.is_some();
        let rules = match rules {
            Some(rules) => Rules { interval, ..rules.clone() },
            None => Rules::new(&default_spec()?, interval)?,
        };
        Ok(Self { rules, scraper: Scraper::default(), engine_known })
    }

    /// Load over target at `now`, where 1 is the target; `None` if the metrics do not tell.
    pub(super) fn read(&mut self, now: Timestamp, metrics: &Metrics) -> Option<f64> {
        if !self.engine_known {
            self.rules.signals = signals(metrics)?;
            self.engine_known = true;
        }
        let sample = self.scraper.sample(now, metrics, &self.rules);
        let observation = Observation { workers: vec![Replica::Ready(Some(sample))], ..Observation::default() };
        let (load, _) = Load::of(&self.rules, &observation, now);
        let told = load.kv_demand.or(load.oldest_waiting).or(load.ttft);
        told.map(|_| load.pressure(&self.rules).value)
    }
}

/// The signals of the engine whose metrics these are. Ours has those of vLLM and more; what is absent is not counted.
fn signals(metrics: &Metrics) -> Option<Signals> {
    let has = |signals: &Signals| signals.kv_usage.is_some_and(|name| metrics.highest(name).is_some());
    [EngineType::Native, EngineType::TensorRtLlm].map(Signals::of).into_iter().find(has)
}

/// A manifest that leaves everything out that can be.
fn default_spec() -> anyhow::Result<ModelProfileSpec> {
    let spec = json!({
        "model": {"uri": "file:///any"}, "profiles": [{"name": "any", "weights": {"format": "BF16"}}],
    });
    serde_json::from_value(spec).context("there are no default targets; give a manifest")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_secs(1);

    fn read(meter: &mut Meter, second: i64, text: &str) -> Option<f64> {
        meter.read(Timestamp::from_second(second).unwrap(), &Metrics::parse(text))
    }

    #[test]
    fn the_pressure_is_the_worst_signal_over_its_target() {
        let mut meter = Meter::new(None, LOOK).unwrap();
        let first_tokens = |count: u32| {
            format!(
                "vllm:kv_cache_usage_perc 0.425
vllm:time_to_first_token_seconds_bucket{{le=\"8\"}} 0
vllm:time_to_first_token_seconds_bucket{{le=\"+Inf\"}} {count}\n"
            )
        };
        assert_eq!(read(&mut meter, 0, &first_tokens(0)), Some(0.5));
        // Above the last bound of 8 seconds, where the target is 4.
        assert_eq!(read(&mut meter, 1, &first_tokens(1)), Some(2.0));
    }

    #[test]
    fn the_engine_is_the_one_whose_metrics_come() {
        let mut meter = Meter::new(None, LOOK).unwrap();
        assert_eq!(read(&mut meter, 0, "up 1\n"), None);
        assert_eq!(read(&mut meter, 1, "trtllm_kv_cache_utilization 0.85\n"), Some(1.0));
    }

    #[test]
    fn targets_of_a_manifest_are_followed() {
        let mut spec = default_spec().unwrap();
        spec.switching.targets.kv_cache_utilization_percent = 50;
        let rules = Rules::new(&spec, SignedDuration::from_secs(5)).unwrap();
        let mut meter = Meter::new(Some(&rules), LOOK).unwrap();
        assert_eq!(
            read(
                &mut meter,
                0,
                "modelprofile_kv_blocks{state=\"total\"} 10\n\
            modelprofile_kv_blocks{state=\"used\"} 4\nmodelprofile_kv_blocks{state=\"waiting\"} 6\n"
            ),
            Some(2.0)
        );
    }
}
