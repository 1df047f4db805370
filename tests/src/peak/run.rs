//! One run of a trace on a worker of local mode, and what was seen.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use modelprofile_operator::replay::{self, Options, Outcome};
use modelprofile_operator::traces::Trace;
use tokio::sync::watch::Sender;

use crate::local::{Local, Ready};

const READY_LIMIT: Duration = Duration::from_secs(300);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at the status: shorter than a pass of local mode.
const LOOK: Duration = Duration::from_millis(300);
/// Of every run, so that all send the same prompts.
const SALT: u64 = 1;
/// How long the picture goes on after the model is back in its first profile.
const CALM: Duration = Duration::from_secs(5);

/// When a run is over.
#[derive(Clone, Debug)]
pub enum End {
    /// When all requests were answered.
    AllAnswers,
    /// When as many were; the others are cut off.
    Answers(usize),
    /// When all were, and load has brought the model back to a profile.
    Back {
        /// The profile.
        to: String,
        /// Most time after the last answer.
        within: Duration,
    },
}

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

    /// Serves `manifest` and replays `trace` until `end`.
    ///
    /// # Errors
    /// The worker does not serve, or local mode does not end well.
    pub async fn run(&self, manifest: &Path, trace: &Trace, end: &End) -> anyhow::Result<Run> {
        let mut local = Local::start(&self.modelprofile, manifest)?;
        let run = measure(&mut local, trace, end).await;
        // After an error too: a local mode that is killed would leave its worker behind.
        let stopped = local.stop(STOP_LIMIT).await;
        let run = run?;
        stopped?;
        Ok(run)
    }

    /// Seconds that the one request of `trace` takes, from when it is due to its answer's end.
    ///
    /// # Errors
    /// As for [`Runner::run`], or it was not answered.
    pub async fn alone(&self, manifest: &Path, trace: &Trace) -> anyhow::Result<f64> {
        let run = self.run(manifest, trace, &End::AllAnswers).await?;
        let answered = run.outcome.records.iter().find(|record| record.failure.is_none());
        let record = answered.context("the worker did not answer a request that it had for itself")?;
        Ok(record.end_to_end())
    }

    /// Requests a second that `manifest` serves, from requests that are all sent at once. The first answers and the last
    /// do not count: then the worker is not yet full, or no longer. So nobody waits for the last.
    ///
    /// # Errors
    /// As for [`Runner::run`], or too few requests were answered.
    pub async fn capacity(&self, manifest: &Path, trace: &Trace) -> anyhow::Result<f64> {
        let sent = trace.arrivals.len();
        println!("\nmeasuring what the worker can serve, with {sent} requests");
        let (_, last) = middle(sent);
        let run = self.run(manifest, trace, &End::Answers(last + 1)).await?;
        let answered = run.outcome.records.iter().filter(|record| record.failure.is_none());
        let mut ends: Vec<f64> = answered.map(|record| record.ended).collect();
        ends.sort_by(f64::total_cmp);
        rate(&ends, sent).context("the worker answered too few requests to measure what it can serve")
    }
}

/// Places of the answers, in the order in which they end, between which all slots of the worker are taken: without the
/// first and the last quarter.
fn middle(sent: usize) -> (usize, usize) {
    (sent / 4, sent - sent.div_ceil(4))
}

/// Answers a second in the middle of those that were `sent`.
fn rate(ends: &[f64], sent: usize) -> Option<f64> {
    let (low, high) = middle(sent);
    let seconds = ends.get(high)? - ends.get(low)?;
    (seconds > 0.0).then(|| (high - low) as f64 / seconds)
}

async fn measure(local: &mut Local, trace: &Trace, end: &End) -> anyhow::Result<Run> {
    let Ready { session, .. } = local.ready(READY_LIMIT).await?;
    let mut options = Options { salt: SALT, ..Options::new(session.api_url) };
    let (back, is_back) = tokio::sync::watch::channel(false);
    let mut home = None;
    match end {
        End::AllAnswers => {}
        End::Answers(number) => options.enough = Some(*number),
        End::Back { to, within } => {
            (options.linger, options.seen_enough) = (*within, Some(is_back));
            home = Some(to.as_str());
        }
    }
    let mut watched = Watched::default();
    let mut outcome = tokio::select! {
        outcome = replay::run(&options, trace) => outcome?,
        never = watch(local, &mut watched, home, &back) => match never {},
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

/// Looks until it is dropped, and says whether the model has been back in the profile `home` for a while.
async fn watch(local: &Local, watched: &mut Watched, home: Option<&str>, back: &Sender<bool>) -> Infallible {
    let mut since = None;
    loop {
        watched.look(local);
        let is_back =
            home.is_some() && watched.switches.values().next_back().is_some_and(|last| Some(&*last.to) == home);
        since = if is_back { since.or_else(|| Some(Instant::now())) } else { None };
        back.send_replace(since.is_some_and(|since| since.elapsed() >= CALM));
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
        assert_eq!(rate(&ends, 9), Some(1.0));
        // The last are not needed for it.
        let (_, last) = middle(9);
        assert_eq!((rate(&ends[..=last], 9), rate(&ends[..last], 9)), (Some(1.0), None));
        assert_eq!((rate(&[], 0), rate(&[1.0], 1)), (None, None));
    }
}
