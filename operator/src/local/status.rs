//! The status of the model, the same object that a cluster shows: pure, from what was observed and decided.

use jiff::Timestamp;
use modelprofile_api::conditions::{self, reason};
use modelprofile_api::worker::{SwitchReport, WorkerPhase, WorkerProfile, WorkerState};
use modelprofile_api::{
    Condition, ConditionStatus, Decimal, DecisionAction, LastDecision, ModelProfileStatus, OnFailure, ProfileStatus,
    Quality, SWITCH_HISTORY_LIMIT, SwitchRecord,
};
use modelprofile_policy::{Action, Decision, Reason};

use super::gate;

/// What a status is made of, beside the one before.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The worker's state; `None` while it does not answer.
    pub state: Option<&'a WorkerState>,
    /// The latest decision, and the name of the profile that it wants.
    pub decision: Option<(&'a Decision, &'a str)>,
    /// The profile that the worker refused last, if no switch came about since.
    pub refused: Option<&'a str>,
    /// The limits that profiles are held against.
    pub limits: &'a Quality,
}

/// The status after a pass. A condition keeps the time of its last change.
pub fn next(before: &ModelProfileStatus, seen: Seen<'_>, now: Timestamp) -> ModelProfileStatus {
    let state = seen.state;
    let ready = state.is_some_and(|state| state.phase == WorkerPhase::Ready);
    let mut status = ModelProfileStatus {
        active_profile: state.and_then(|state| state.active_profile.clone()).filter(|_| ready),
        desired_profile: seen.decision.map(|(_, profile)| profile.to_owned()),
        replicas: 1,
        ready_replicas: u32::from(ready),
        profiles: state.map_or_else(|| before.profiles.clone(), |state| profiles(state, seen.limits)),
        last_decision: seen.decision.map(|(decision, _)| {
            let mut last = last_decision(before, decision, now);
            // The pressure of a worker that is gone is nobody's any more.
            last.pressure_percent = last.pressure_percent.filter(|_| ready);
            last
        }),
        switch_history: before.switch_history.clone(),
        ..ModelProfileStatus::default()
    };
    status.conditions = conditions(&before.conditions, seen, ready, now);
    status
}

/// Adds a switch that ended, the newest first.
pub fn record(status: &mut ModelProfileStatus, report: &SwitchReport, reason: &str) {
    let record = SwitchRecord {
        from: report.from.clone(),
        to: report.to.clone(),
        reason: reason.to_owned(),
        start_time: report.start_time.clone(),
        duration_millis: i64::try_from(report.duration_millis).unwrap_or(i64::MAX),
        outcome: report.outcome.as_str().to_owned(),
    };
    status.switch_history.insert(0, record);
    status.switch_history.truncate(SWITCH_HISTORY_LIMIT);
}

fn profiles(state: &WorkerState, limits: &Quality) -> Vec<ProfileStatus> {
    let one = |profile: &WorkerProfile| ProfileStatus {
        quality_gate: gate::verdict(limits, state, profile).map(Into::into),
        ..profile_row(profile)
    };
    state.profiles.iter().map(one).collect()
}

/// What a worker tells of a profile, without the gate's word on it.
pub(crate) fn profile_row(profile: &WorkerProfile) -> ProfileStatus {
    let known = |value: u64| i64::try_from(value).ok().filter(|value| *value > 0);
    let decimal = |value: f64| value.is_finite().then(|| Decimal(format!("{:.4}", value.max(0.0))));
    let quality = profile.quality.as_ref();
    ProfileStatus {
        name: profile.name.clone(),
        artifact_key: Some(profile.artifact_key.clone()).filter(|key| !key.is_empty()),
        weight_bytes: known(profile.weight_bytes),
        kv_tokens: known(profile.kv_tokens),
        perplexity: quality.and_then(|quality| decimal(quality.perplexity)),
        reference_perplexity: quality.and_then(|quality| decimal(quality.reference_perplexity)),
        mean_kl_divergence: quality.and_then(|quality| decimal(quality.mean_kl_divergence)),
        measured_at: quality.map(|quality| quality.measured_at.clone()),
        quality_gate: None,
    }
}

/// Its time is that of the decision's first pass: a decision that is made again each second is still the same.
pub(crate) fn last_decision(before: &ModelProfileStatus, decision: &Decision, now: Timestamp) -> LastDecision {
    let action = match decision.action {
        Action::Hold => DecisionAction::Hold,
        Action::Switch => DecisionAction::Switch,
        Action::Scale => DecisionAction::Scale,
    };
    let reason = decision.reason.as_str();
    let same = before.last_decision.as_ref().filter(|last| last.action == action && last.reason == reason);
    LastDecision {
        time: same.map_or_else(|| now.to_string(), |last| last.time.clone()),
        action,
        reason: reason.to_owned(),
        message: decision.message.chars().take(1024).collect(),
        pressure_percent: decision.pressure.map(|pressure| (100.0 * pressure).round().min(1e6) as u32),
    }
}

fn conditions(before: &[Condition], seen: Seen<'_>, ready: bool, now: Timestamp) -> Vec<Condition> {
    use ConditionStatus::{False, True, Unknown};
    let state = seen.state;
    let message = state.map(|state| state.message.clone()).unwrap_or_default();
    let prepared = match state.map(|state| state.phase) {
        Some(WorkerPhase::Ready | WorkerPhase::Draining | WorkerPhase::Blocked) => {
            (True, reason::PREPARED, String::new())
        }
        Some(WorkerPhase::Failed) => (False, reason::PREPARE_FAILED, message.clone()),
        Some(WorkerPhase::Preparing) => (False, reason::PREPARING, preparing(state)),
        None => (Unknown, reason::PENDING, "the worker does not answer".to_owned()),
    };
    let metrics = match seen.decision {
        Some(_) if state.is_none() => (False, reason::METRICS_UNAVAILABLE, "the worker does not answer".to_owned()),
        Some((decision, _)) if decision.reason == Reason::MetricsUnavailable => {
            (False, reason::METRICS_UNAVAILABLE, decision.message.clone())
        }
        Some((decision, _)) if decision.pressure.is_some() => (True, reason::FRESH, String::new()),
        _ => (Unknown, reason::PENDING, "no metrics were read yet".to_owned()),
    };
    let blocked = state.is_some_and(|state| state.phase == WorkerPhase::Blocked);
    let available = match (ready, blocked) {
        (true, _) => (True, reason::WORKER_READY, String::new()),
        (false, true) => (False, reason::BEYOND_LIMITS, message),
        (false, false) => (False, reason::NO_WORKER_READY, message),
    };
    let quality = match state.map(|state| gate::of(seen.limits, state)) {
        Some(gate) => (gate.status, gate.reason, gate.message),
        None => (Unknown, reason::PENDING, "the worker does not answer".to_owned()),
    };
    // Profiles that are still prepared are no loss yet, and those that serve with `Warn` are none.
    let kept_out = quality.0 != True && quality.1 != reason::PENDING && seen.limits.on_failure == OnFailure::Block;
    let target = state.and_then(|state| state.target_profile.as_deref());
    let progressing = match target {
        Some(target) => (True, reason::SWITCHING, format!("switching to {target}")),
        None if prepared.1 == reason::PREPARING => (True, reason::PREPARING, prepared.2.clone()),
        None => (False, reason::STABLE, String::new()),
    };
    let degraded = match seen.refused {
        Some(profile) => (
            True,
            reason::SWITCH_REFUSED,
            format!(
                "the worker refused {profile}; while that is wanted it is asked again, each time after a longer pause, and at once after an edit of the manifest"
            ),
        ),
        None if !ready && state.is_none() => (True, reason::REPLICAS_MISSING, "the worker does not answer".to_owned()),
        None if prepared.1 == reason::PREPARE_FAILED => (True, reason::PREPARE_FAILED, prepared.2.clone()),
        None if kept_out => (True, quality.1, quality.2.clone()),
        None => (False, reason::AS_EXPECTED, String::new()),
    };
    // Local mode serves validated manifests only; the worker checks the licence before it prepares anything.
    let license = match prepared.0 {
        True => (True, reason::MATCHES, "the worker accepted the checkpoint's declaration".to_owned()),
        _ => (Unknown, reason::PENDING, String::new()),
    };
    let all = [
        (conditions::ACCEPTED, (True, reason::VALID, String::new())),
        (conditions::LICENSE_ACCEPTED, license),
        (conditions::PREPARED, prepared),
        (conditions::QUALITY_GATE_PASSED, quality),
        (conditions::METRICS_AVAILABLE, metrics),
        (conditions::AVAILABLE, available),
        (conditions::PROGRESSING, progressing),
        (conditions::DEGRADED, degraded),
    ];
    all.into_iter()
        .map(|(kind, (status, reason, message))| {
            let same = before.iter().find(|condition| condition.kind == kind && condition.status == status);
            Condition {
                kind: kind.to_owned(),
                status,
                observed_generation: None,
                last_transition_time: same.map_or_else(|| now.to_string(), |c| c.last_transition_time.clone()),
                reason: reason.to_owned(),
                message,
            }
        })
        .collect()
}

/// How far each profile is.
pub(crate) fn preparing(state: Option<&WorkerState>) -> String {
    let parts = state.into_iter().flat_map(|state| &state.profiles);
    let text = |p: &WorkerProfile| match p.activity.as_str() {
        "" => format!("{} {:.0} %", p.name, p.prepared_percent),
        // Percentages begin anew with each activity.
        activity => format!("{}: {activity}, {:.0} %", p.name, p.prepared_percent),
    };
    parts.map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use modelprofile_api::GateOutcome;
    use modelprofile_api::worker::SwitchOutcome;

    use super::super::gate::tests::{limits, worker};
    use super::*;

    fn state(phase: WorkerPhase) -> WorkerState {
        WorkerState { phase, active_profile: Some("quality".to_owned()), ..WorkerState::default() }
    }

    fn decision(reason: Reason, pressure: Option<f64>) -> Decision {
        Decision {
            rung: 0,
            replicas: 1,
            action: Action::Hold,
            recommended: None,
            reason,
            message: "a sentence".to_owned(),
            pressure,
            revisit_after: Duration::ZERO,
        }
    }

    fn find<'a>(status: &'a ModelProfileStatus, kind: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.kind == kind).unwrap()
    }

    #[test]
    fn every_condition_is_there_and_says_no_more_than_was_seen() {
        let now = Timestamp::UNIX_EPOCH;
        let seen = Seen { state: None, decision: None, refused: None, limits: &Quality::default() };
        let status = next(&ModelProfileStatus::default(), seen, now);
        let kinds: Vec<&str> = status.conditions.iter().map(|condition| &*condition.kind).collect();
        assert_eq!(kinds, conditions::ALL);
        assert_eq!(find(&status, conditions::AVAILABLE).status, ConditionStatus::False);
        assert_eq!(find(&status, conditions::METRICS_AVAILABLE).status, ConditionStatus::Unknown);
        let quality = find(&status, conditions::QUALITY_GATE_PASSED);
        assert_eq!((quality.status, &*quality.reason), (ConditionStatus::Unknown, "Pending"));
        assert_eq!((status.active_profile, status.ready_replicas), (None, 0));
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let (first, later) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
        let ready = state(WorkerPhase::Ready);
        let fresh = decision(Reason::WithinTargets, Some(0.534));
        let seen = Seen {
            state: Some(&ready),
            decision: Some((&fresh, "quality")),
            refused: None,
            limits: &Quality::default(),
        };
        let status = next(&ModelProfileStatus::default(), seen, first);
        assert_eq!(status.last_decision.as_ref().unwrap().pressure_percent, Some(53));
        let stale = decision(Reason::MetricsUnavailable, None);
        let after = next(&status, Seen { decision: Some((&stale, "quality")), ..seen }, later);
        assert_eq!(find(&after, conditions::AVAILABLE).last_transition_time, first.to_string());
        let metrics = find(&after, conditions::METRICS_AVAILABLE);
        assert_eq!((metrics.status, &*metrics.last_transition_time), (ConditionStatus::False, &*later.to_string()));
    }

    #[test]
    fn metrics_of_a_worker_that_is_gone_are_not_called_fresh() {
        let fresh = decision(Reason::WithinTargets, Some(0.5));
        let seen =
            Seen { state: None, decision: Some((&fresh, "quality")), refused: None, limits: &Quality::default() };
        let status = next(&ModelProfileStatus::default(), seen, Timestamp::UNIX_EPOCH);
        let metrics = find(&status, conditions::METRICS_AVAILABLE);
        assert_eq!((metrics.status, &*metrics.reason), (ConditionStatus::False, "MetricsUnavailable"));
        assert_eq!(status.last_decision.unwrap().pressure_percent, None);
    }

    #[test]
    fn a_worker_without_a_profile_that_may_serve_is_prepared_but_neither_available_nor_as_expected() {
        let mut state = worker(WorkerPhase::Blocked, Some(3.1), Some(2.5));
        state.message = "the figures".to_owned();
        let seen = Seen { state: Some(&state), decision: None, refused: None, limits: &limits(1) };
        let status = next(&ModelProfileStatus::default(), seen, Timestamp::UNIX_EPOCH);
        let row = |kind| {
            let Condition { status, reason, .. } = find(&status, kind);
            (*status, &**reason)
        };
        assert_eq!(row(conditions::PREPARED), (ConditionStatus::True, "Prepared"));
        assert_eq!(row(conditions::AVAILABLE), (ConditionStatus::False, "BeyondLimits"));
        assert_eq!(find(&status, conditions::AVAILABLE).message, "the figures");
        assert_eq!(row(conditions::QUALITY_GATE_PASSED), (ConditionStatus::False, "BeyondLimits"));
        assert_eq!(row(conditions::DEGRADED), (ConditionStatus::True, "BeyondLimits"));
        assert_eq!(status.ready_replicas, 0);
    }

    #[test]
    fn a_profile_shows_its_figures_and_what_the_gate_says_and_a_gate_that_warns_degrades_nothing() {
        let state = worker(WorkerPhase::Ready, Some(3.1), Some(0.5));
        let limits = Quality { on_failure: OnFailure::Warn, ..limits(1) };
        let seen = Seen { state: Some(&state), decision: None, refused: None, limits: &limits };
        let status = next(&ModelProfileStatus::default(), seen, Timestamp::UNIX_EPOCH);
        let decimal = |text: &str| Some(Decimal(text.to_owned()));
        let expected = ProfileStatus {
            name: "quality".to_owned(),
            perplexity: decimal("20.6200"),
            reference_perplexity: decimal("20.0000"),
            mean_kl_divergence: decimal("0.0123"),
            measured_at: Some("2026-03-01T12:00:00Z".to_owned()),
            quality_gate: Some(GateOutcome::BeyondLimits),
            ..ProfileStatus::default()
        };
        assert_eq!(status.profiles[0], expected);
        assert_eq!(status.profiles[1].quality_gate, Some(GateOutcome::WithinLimits));
        assert_eq!(find(&status, conditions::QUALITY_GATE_PASSED).status, ConditionStatus::False);
        assert_eq!(find(&status, conditions::DEGRADED).status, ConditionStatus::False);
    }

    #[test]
    fn the_history_holds_the_last_ten_switches_newest_first() {
        let mut status = ModelProfileStatus::default();
        for millis in 0..12 {
            let report = SwitchReport {
                from: "quality".to_owned(),
                to: "density".to_owned(),
                start_time: "2026-03-01T12:00:00Z".to_owned(),
                duration_millis: millis,
                pause_millis: 0.0,
                preempted: 0,
                outcome: SwitchOutcome::Completed,
                message: String::new(),
            };
            record(&mut status, &report, "PressureHigh");
        }
        let millis: Vec<i64> = status.switch_history.iter().map(|switch| switch.duration_millis).collect();
        assert_eq!(millis, (2..12).rev().collect::<Vec<i64>>());
    }
}
