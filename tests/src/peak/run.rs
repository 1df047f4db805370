//! One run of a trace on a worker of local mode, and what was seen.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use modelprofile_operator::replay::{self, Options, Outcome};
use modelprofile_operator::traces::Trace;

use crate::local::{Local, Ready};

const READY_LIMIT: Duration = Duration::from_secs(300);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at the status: shorter than a pass of local mode.
const LOOK: Duration = Duration::from_millis(300);
/// Of every run, so that all send the same prompts.
const SALT: u64 = 1;

/// A change of profile that load caused.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoSwitch {
    /// Seconds since the replay's start.
    pub at: f64,
    /// Profile before.
    pub from: String,
    /// Profile asked for.
    pub to: String,
    /// Reason of the decision.
    pub reason: String,
    /// Sentence of the decision, with signal, value, target and window.
    pub message: String,
}

/// What one run showed.
#[derive(Clone, Debug)]
pub struct Run {
    /// What became of the requests.
    pub outcome: Outcome,
    /// Switches that load caused, in their order.
    pub switches: Vec<AutoSwitch>,
}

impl Run {
    /// 95th percentile of the time to the first token, in milliseconds; `None` if no request had one.
    pub fn p95_ttft_ms(&self) -> Option<f64> {
        Some(self.outcome.summary.ttft?.p95 * 1e3)
    }

    /// What happened, for a person.
    pub fn sentence(&self) -> String {
        let summary = &self.outcome.summary;
        let p95 = self.p95_ttft_ms().map_or("-".to_owned(), |p95| format!("{p95:.0} ms"));
        let mut text = format!(
            "  {} requests, {} failed, p95 time to first token {p95}, {:.0} tokens/s",
            summary.requests, summary.failed, summary.tokens_per_second
        );
        for switch in &self.switches {
            let AutoSwitch { at, to, reason, message, .. } = switch;
            // Writing to a string does not fail.
            let _ = write!(text, "\n  at {at:.1} s to {to}: {reason}: {message}");
        }
        text
    }
}

/// Runs traces.
#[derive(Clone, Debug)]
pub struct Runner {
    modelprofile: PathBuf,
}

/// What the status said while a trace ran, by the clock.
#[derive(Debug, Default)]
struct Watched {
    pressure: Vec<(Timestamp, f64)>,
    /// By start: the status holds the latest ten only.
    switches: BTreeMap<String, AutoSwitch>,
    /// The latest decision's reason and sentence for each profile that it asked for.
    sentences: BTreeMap<String, String>,
}

impl Runner {
    /// With this executable of `modelprofile`.
    pub fn new(modelprofile: &Path) -> Self {
        Self { modelprofile: modelprofile.to_owned() }
    }

    /// Serves `manifest` and replays `trace`; afterwards the metrics are watched for `linger` more.
    ///
    /// # Errors
    /// The worker does not serve, or local mode does not end well.
    pub async fn run(&self, manifest: &Path, trace: &Trace, linger: Duration) -> anyhow::Result<Run> {
        let mut local = Local::start(&self.modelprofile, manifest)?;
        let run = measure(&mut local, trace, linger).await;
        // After an error too: a local mode that is killed would leave its worker behind.
        let stopped = local.stop(STOP_LIMIT).await;
        let run = run?;
        stopped?;
        Ok(run)
    }

    /// Requests a second that `manifest` serves, from requests that are all sent at once. The first answers and the last
    /// do not count: then the worker is not yet full, or no longer.
    ///
    /// # Errors
    /// As for [`Runner::run`], or too few requests were answered.
    pub async fn capacity(&self, manifest: &Path, trace: &Trace) -> anyhow::Result<f64> {
        println!("\nmeasuring what the worker can serve, with {} requests", trace.arrivals.len());
        let run = self.run(manifest, trace, Duration::ZERO).await?;
        let answered = run.outcome.records.iter().filter(|record| record.failure.is_none());
        let mut ends: Vec<f64> = answered.map(|record| record.ended).collect();
        ends.sort_by(f64::total_cmp);
        rate(&ends).context("the worker answered too few requests to measure what it can serve")
    }
}

/// Answers a second, without the first and the last quarter.
fn rate(ends: &[f64]) -> Option<f64> {
    let (low, high) = (ends.len() / 4, ends.len() - ends.len().div_ceil(4));
    let seconds = ends.get(high)? - ends.get(low)?;
    (seconds > 0.0).then(|| (high - low) as f64 / seconds)
}

async fn measure(local: &mut Local, trace: &Trace, linger: Duration) -> anyhow::Result<Run> {
    let Ready { session, .. } = local.ready(READY_LIMIT).await?;
    let options = Options { salt: SALT, linger, ..Options::new(session.api_url) };
    let mut watched = Watched::default();
    let mut outcome = tokio::select! {
        outcome = replay::run(&options, trace) => outcome?,
        never = watch(local, &mut watched) => match never {},
    };
    // A look after the end: the last switch may have ended since the last one.
    watched.look(local);
    let started = outcome.started;
    let since = |at: Timestamp| at.duration_since(started).as_secs_f64();
    outcome.pressure = watched.pressure.iter().map(|(at, value)| (since(*at), *value)).collect();
    outcome.pressure.retain(|(at, _)| *at >= 0.0);
    let mut switches = Vec::new();
    for (start, switch) in watched.switches {
        let at = since(start.parse().context("the status has a time that is none")?);
        switches.push(AutoSwitch { at, ..switch });
    }
    switches.sort_by(|a, b| a.at.total_cmp(&b.at));
    Ok(Run { outcome, switches })
}

/// Looks until it is dropped.
async fn watch(local: &Local, watched: &mut Watched) -> Infallible {
    loop {
        watched.look(local);
        tokio::time::sleep(LOOK).await;
    }
}

impl Watched {
    fn look(&mut self, local: &Local) {
        let Ok(status) = local.status() else { return };
        let Some(decision) = status.last_decision else { return };
        if let Some(percent) = decision.pressure_percent {
            self.pressure.push((Timestamp::now(), f64::from(percent) / 100.0));
        }
        if let Some(desired) = status.desired_profile {
            // While a switch is asked for, the decision is about it; later ones are about the new profile.
            if status.active_profile.as_ref() != Some(&desired) {
                self.sentences.insert(desired, decision.message);
            }
        }
        for record in status.switch_history {
            if record.reason == "Requested" || record.outcome != "Completed" {
                continue;
            }
            let message = self.sentences.get(&record.to).cloned().unwrap_or_default();
            self.switches.entry(record.start_time).or_insert(AutoSwitch {
                at: 0.0,
                from: record.from,
                to: record.to,
                reason: record.reason,
                message,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capacity_is_that_of_the_middle_half() {
        let ends = [1.0, 2.0, 10.0, 11.0, 12.0, 13.0, 14.0, 60.0, 90.0];
        assert_eq!(rate(&ends), Some(1.0));
        assert_eq!((rate(&[]), rate(&[1.0])), (None, None));
    }
}
