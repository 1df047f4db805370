//! What is told about a model: every reason and sentence, as data. Whoever tells it (local mode to the terminal and its event
//! log, an operator to the Kubernetes API) adds the time and the object.
//!
//! | reason | type | told when |
//! |---|---|---|
//! | [`reason::WORKER_STARTED`], `WorkerReady` | Normal | a worker process starts; it answers requests |
//! | the policy's own, such as `PressureHigh` | Normal | a decision asks for another profile |
//! | [`reason::SWITCHED`], [`reason::SWITCH_REPLACED`] | Normal | a switch completed; a later one took its place |
//! | `SwitchRefused`, [`reason::SWITCH_FAILED`] | Warning | the worker refused a switch; there was no answer to it |
//! | [`reason::WORKER_ENDED`], [`reason::START_FAILED`] | Warning | a worker ended by itself; a new one could not be started |
//! | [`reason::RESTART_PLANNED`] | Normal | a worker that ended starts again after a pause |
//! | [`reason::WORKER_SILENT`], [`reason::WORKER_HUNG`] | Warning | a worker does not answer; it was ended for that, or because it stopped computing |
//! | [`reason::WORKER_ANSWERS`] | Normal | a silent worker answers again |
//! | `MetricsUnavailable` | Warning | decisions lack metrics, and the profile is held |
//! | `Fresh` | Normal | decisions have metrics again |
//! | [`reason::EDIT_FOLLOWED`], [`reason::RESTART_NEEDED`] | Normal | an edit of the manifest takes effect; some of it waits |
//! | `Invalid` | Warning | an edit of the manifest was rejected |
//! | `BeyondLimits`, `NotMeasured` | Warning | the quality gate finds a profile, or the whole ladder, wanting |
//! | `PrepareFailed` | Warning | a worker cannot prepare the model |
//!
//! Reasons without a link are those of [`modelprofile_api::conditions::reason`].

use std::time::Duration;

use modelprofile_api::conditions::reason as condition;
use modelprofile_api::worker::{SwitchOutcome, SwitchReport};
use modelprofile_api::{Errors, Quality, Verdict};
use modelprofile_policy::Decision;
use modelprofile_policy::gate::consequence;
use serde::{Deserialize, Serialize};

/// Reasons that only events have.
pub mod reason {
    /// A worker process was started; it prepares the model.
    pub const WORKER_STARTED: &str = "WorkerStarted";
    /// A worker ended without having been asked to.
    pub const WORKER_ENDED: &str = "WorkerEnded";
    /// A worker that ended starts again after a pause.
    pub const RESTART_PLANNED: &str = "RestartPlanned";
    /// A worker could not be started; it is tried again after a pause.
    pub const START_FAILED: &str = "StartFailed";
    /// A worker that answered before does not answer.
    pub const WORKER_SILENT: &str = "WorkerSilent";
    /// A silent worker answers again.
    pub const WORKER_ANSWERS: &str = "WorkerAnswers";
    /// A worker did not answer, or did not compute, for too long and was ended.
    pub const WORKER_HUNG: &str = "WorkerHung";
    /// A switch of profile completed, whoever asked for it.
    pub const SWITCHED: &str = "Switched";
    /// A later switch took the place of this one.
    pub const SWITCH_REPLACED: &str = "SwitchReplaced";
    /// There was no answer to a switch.
    pub const SWITCH_FAILED: &str = "SwitchFailed";
    /// An edit of the manifest takes effect without a restart.
    pub const EDIT_FOLLOWED: &str = "EditFollowed";
    /// An edit of the manifest waits for the next start.
    pub const RESTART_NEEDED: &str = "RestartNeeded";
}

/// The two types of Kubernetes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Severity {
    /// As it should go.
    Normal,
    /// Somebody may have to act.
    Warning,
}

impl Severity {
    /// The word itself.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Something that happened, without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether somebody may have to act.
    pub severity: Severity,
    /// One word of a closed set, for programs.
    pub reason: &'static str,
    /// A sentence for a person; what it quotes may follow on lines of its own.
    pub message: String,
}

const fn normal(reason: &'static str, message: String) -> Note {
    Note { severity: Severity::Normal, reason, message }
}

const fn warning(reason: &'static str, message: String) -> Note {
    Note { severity: Severity::Warning, reason, message }
}

/// A worker process was started that serves `profile` first.
pub fn worker_started(profile: &str) -> Note {
    normal(reason::WORKER_STARTED, format!("the worker starts in profile {profile}"))
}

/// The worker of the model `name` answers requests.
pub fn worker_ready(name: &str, profile: Option<&str>) -> Note {
    let profile = profile.map_or_else(String::new, |profile| format!(" in profile {profile}"));
    normal(condition::WORKER_READY, format!("{name} is ready{profile}"))
}

/// A decision asks for `profile`; the event's reason is the decision's.
pub fn switching(profile: &str, decision: &Decision) -> Note {
    normal(decision.reason.as_str(), format!("switching to {profile}: {}", decision.message))
}

/// A switch ended, as the worker reports it.
pub fn switch_ended(report: &SwitchReport) -> Note {
    let message = sentence(report);
    match report.outcome {
        SwitchOutcome::Completed => normal(reason::SWITCHED, message),
        SwitchOutcome::Replaced => normal(reason::SWITCH_REPLACED, message),
        SwitchOutcome::Refused => warning(condition::SWITCH_REFUSED, message),
    }
}

/// The worker gave no report of a switch to `profile`, which may be asked for again after `pause`.
pub fn switch_failed(profile: &str, why: &str, pause: Duration) -> Note {
    let seconds = pause.as_secs();
    let message = format!("cannot switch to {profile}: {why}; if it is still wanted, it is tried again in {seconds} s");
    warning(reason::SWITCH_FAILED, message)
}

/// The worker ended by itself; `how` says how and gives its last lines.
pub fn worker_ended(how: &str) -> Note {
    warning(reason::WORKER_ENDED, format!("the worker ended: {how}"))
}

/// The worker that ended starts again after `pause`.
pub fn restart_planned(pause: Duration) -> Note {
    normal(reason::RESTART_PLANNED, format!("the worker is down; it starts again in {} s", pause.as_secs()))
}

/// The worker could not be started, and the next try comes after `pause`; `None`: there is no further one.
pub fn start_failed(error: &anyhow::Error, pause: Option<Duration>) -> Note {
    let next = match pause {
        Some(pause) => format!("the next try is in {} s", pause.as_secs()),
        None => "that was the last try".to_owned(),
    };
    warning(reason::START_FAILED, format!("the worker could not be started ({error:#}); {next}"))
}

/// The worker answered before and does not now.
pub fn worker_silent(why: &str) -> Note {
    warning(reason::WORKER_SILENT, format!("the worker does not answer: {why}"))
}

/// The worker answers after a silence.
pub fn worker_answers() -> Note {
    normal(reason::WORKER_ANSWERS, "the worker answers again".to_owned())
}

/// The worker was ended because it did not answer for `limit`.
pub fn worker_hung(limit: Duration) -> Note {
    let limit = limit.as_secs();
    warning(reason::WORKER_HUNG, format!("the worker has not answered for {limit} s, so it is ended"))
}

/// The worker was ended because its engine did nothing about its requests for `limit`.
pub fn engine_hung(limit: Duration) -> Note {
    let limit = limit.as_secs();
    warning(
        reason::WORKER_HUNG,
        format!("the worker answers, but has computed nothing for its requests for {limit} s, so it is ended"),
    )
}

/// Decisions lack metrics; `message` is the decision's sentence.
pub fn metrics_unavailable(message: &str) -> Note {
    warning(condition::METRICS_UNAVAILABLE, message.to_owned())
}

/// Decisions have metrics again.
pub fn metrics_fresh() -> Note {
    normal(condition::FRESH, "the worker's metrics are fresh again; load decides".to_owned())
}

/// An edit of the manifest takes effect; the pins are those before and after it.
pub fn edit_followed(before: Option<&str>, now: Option<&str>) -> Note {
    let message = match now {
        _ if before == now => "the edited manifest is followed from now on".to_owned(),
        Some(profile) => format!("the manifest pins {profile} now"),
        None => "the manifest pins no profile any more; load and schedule decide".to_owned(),
    };
    normal(reason::EDIT_FOLLOWED, message)
}

/// An edit of the manifest breaks rules, all of which are named.
pub fn edit_rejected(errors: &Errors) -> Note {
    warning(condition::INVALID, format!("the edited manifest is not valid, so nothing changes:\n{errors}"))
}

/// An edit of the manifest is valid, but no decision can be made on it.
pub fn edit_undecidable(error: &anyhow::Error) -> Note {
    warning(condition::INVALID, format!("the edited manifest cannot be decided on: {error:#}"))
}

/// The live sections of an edit need its other changes, which wait for the next start.
pub fn edit_waits() -> Note {
    normal(
        reason::RESTART_NEEDED,
        "the edited spec.switching needs the other changes too, so it is not followed before the next start".to_owned(),
    )
}

/// These fields of an edit take effect at the next start only.
pub fn restart_needed(fields: &[String]) -> Note {
    let fields = fields.join(", ");
    normal(
        reason::RESTART_NEEDED,
        format!("restart `modelprofile local` for the change of {fields}; until then the model stays as it is"),
    )
}

/// The worker runs, but cannot serve: `message` is its own.
pub fn prepare_failed(message: &str) -> Note {
    warning(condition::PREPARE_FAILED, format!("the worker could not prepare the model: {message}"))
}

/// The quality gate did not pass the profile of that name; `None` if it did.
pub fn gate(name: &str, limits: &Quality, verdict: &Verdict) -> Option<Note> {
    let reason = match verdict {
        Verdict::Passed => return None,
        Verdict::NotMeasured => condition::NOT_MEASURED,
        Verdict::Beyond(_) => condition::BEYOND_LIMITS,
    };
    Some(warning(reason, format!("{}; {}", verdict.sentence(name), consequence(limits, 1, verdict))))
}

/// No profile may serve, so the worker takes no request; `why` has the figures.
pub fn blocked(why: &str) -> Note {
    warning(
        condition::BEYOND_LIMITS,
        format!("no profile may serve, so no request is taken until an edit of spec.quality is saved: {why}"),
    )
}

/// A switch as a sentence for a person; its reason where it did not complete.
pub fn sentence(switch: &SwitchReport) -> String {
    let SwitchReport { from, to, duration_millis, pause_millis, preempted, outcome, message, .. } = switch;
    match outcome {
        SwitchOutcome::Completed if from == to => format!("{to} is active already"),
        SwitchOutcome::Completed => {
            let preempted = match preempted {
                0 => String::new(),
                1 => ", 1 request preempted and recomputed".to_owned(),
                n => format!(", {n} requests preempted and recomputed"),
            };
            format!("switched from {from} to {to} in {duration_millis} ms (paused {pause_millis:.0} ms){preempted}")
        }
        SwitchOutcome::Refused => format!("the switch from {from} to {to} was refused: {message}"),
        SwitchOutcome::Replaced => format!("the switch from {from} to {to} was replaced by a later one: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switch(outcome: SwitchOutcome) -> SwitchReport {
        SwitchReport {
            from: "quality".to_owned(),
            to: "density".to_owned(),
            start_time: "2026-03-01T12:00:05Z".to_owned(),
            duration_millis: 83,
            pause_millis: 11.6,
            preempted: 0,
            outcome,
            message: "density's weights are damaged".to_owned(),
        }
    }

    #[test]
    fn a_switch_to_the_active_profile_is_not_told_as_a_change() {
        let report = SwitchReport { from: "density".to_owned(), ..switch(SwitchOutcome::Completed) };
        assert_eq!(sentence(&report), "density is active already");
    }

    #[test]
    fn a_switch_gives_its_duration_and_pause_and_a_refusal_its_reason() {
        assert_eq!(
            switch_ended(&switch(SwitchOutcome::Completed)),
            Note {
                severity: Severity::Normal,
                reason: "Switched",
                message: "switched from quality to density in 83 ms (paused 12 ms)".to_owned(),
            }
        );
        assert_eq!(
            switch_ended(&switch(SwitchOutcome::Refused)),
            Note {
                severity: Severity::Warning,
                reason: "SwitchRefused",
                message: "the switch from quality to density was refused: density's weights are damaged".to_owned(),
            }
        );
    }

    #[test]
    fn an_edit_is_told_by_its_pin_where_that_changed() {
        let message = |before, now| edit_followed(before, now).message;
        assert_eq!(message(None, Some("density")), "the manifest pins density now");
        assert_eq!(message(Some("density"), None), "the manifest pins no profile any more; load and schedule decide");
        assert_eq!(message(None, None), "the edited manifest is followed from now on");
    }
}
