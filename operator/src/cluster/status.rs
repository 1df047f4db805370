//! The status of a ModelProfile on a cluster: pure, from what was seen and planned in a pass.
//!
//! A condition says no more than was seen. What differs in numbers only (a pressure, a percentage in a sentence) is written
//! seldom: see [`settled`].

use std::time::Duration;

use jiff::Timestamp;
use modelprofile_api::conditions::{self, reason};
use modelprofile_api::worker::{SwitchOutcome, WorkerProfile, WorkerState};
use modelprofile_api::{
    Condition, ConditionStatus, DecisionAction, GateOutcome, LastDecision, ModelProfileSpec, ModelProfileStatus,
    ProfileStatus, SWITCH_HISTORY_LIMIT, SwitchRecord, SwitchingMode,
};
use modelprofile_policy::{Action, Decision, Reason};

use super::conditions::rows;
use super::judge;
use super::plan::action::{Plan, Progress, Stage};
use super::plan::facts::Worker;
use super::pods::Trouble;
use super::prepared::Preparation;
use crate::local::status::{last_decision, profile_row};

/// Least time between two writes of a status that differ in numbers only.
const COSMETIC: Duration = Duration::from_secs(30);
/// The same while a model is prepared: a person watches the percentage.
const PREPARING: Duration = Duration::from_secs(5);
/// Change of pressure that is worth a write, in percent points.
const POINTS: u32 = 10;

/// What a status is made of, beside the one before.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The spec.
    pub spec: &'a ModelProfileSpec,
    /// Its generation.
    pub generation: Option<i64>,
    /// The worker pods.
    pub workers: &'a [Worker],
    /// Why pods do not get on.
    pub troubles: &'a [Trouble],
    /// How far the artifacts are.
    pub preparation: &'a Preparation,
    /// The decision, and the name of the profile that it wants.
    pub decision: (&'a Decision, &'a str),
    /// What is done in this pass and what is waited for.
    pub plan: &'a Plan,
    /// Workers that should exist.
    pub replicas: u32,
    /// A worker's pod and the profile that it refused last.
    pub refused: Option<(&'a str, &'a str)>,
    /// What the API server did not take.
    pub failed: Option<&'a str>,
    /// Label selector of the workers.
    pub selector: &'a str,
    /// The profile that requests reach, where the Service says it.
    pub routed: Option<&'a str>,
    /// The profile that was active last, as this operator remembers it.
    pub last_active: Option<&'a str>,
}

impl Seen<'_> {
    pub(super) fn alive(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| !worker.terminating)
    }

    pub(super) fn ready(&self) -> impl Iterator<Item = &Worker> {
        self.alive().filter(|worker| worker.ready)
    }

    pub(super) fn states(&self) -> impl Iterator<Item = &WorkerState> {
        self.alive().filter_map(|worker| worker.state.as_deref())
    }

    pub(super) fn waits(&self, stage: Stage) -> Option<&Progress> {
        self.plan.progress.iter().find(|progress| progress.stage == stage)
    }

    /// What is known of a profile: of the workers that serve, else of the Job that prepared it.
    pub(super) fn profile(&self, name: &str) -> Option<&WorkerProfile> {
        let prepared = match self.preparation {
            Preparation::Done(profiles) => profiles.as_slice(),
            Preparation::Running(Some(state)) => state.profiles.as_slice(),
            _ => &[],
        };
        let all =
            || self.states().flat_map(|state| &state.profiles).chain(prepared).filter(|profile| profile.name == name);
        all().find(|profile| profile.quality.is_some()).or_else(|| all().next())
    }

    /// The one profile of all ready workers.
    fn active(&self) -> Option<&str> {
        if self.ready().next().is_some() && self.routed.is_some() {
            return self.routed;
        }
        let mut profiles = self.ready().map(judge::profile);
        let first = profiles.next()??;
        profiles.all(|other| other == Some(first)).then_some(first)
    }
}

/// Least time until a status that differs from the one before in numbers only is written.
pub fn pause(status: &ModelProfileStatus) -> Duration {
    let prepared = status.condition(conditions::PREPARED);
    if prepared.is_some_and(|prepared| prepared.reason == reason::PREPARING) { PREPARING } else { COSMETIC }
}

/// The status after a pass.
pub fn next(before: &ModelProfileStatus, seen: &Seen<'_>, now: Timestamp) -> ModelProfileStatus {
    let (decision, wanted) = seen.decision;
    // Ready workers of which nobody has answered yet serve with what they did.
    let silent = || seen.ready().next().is_some() && seen.ready().all(|worker| judge::profile(worker).is_none());
    let active = seen.active().map(str::to_owned);
    let active = active.or_else(|| before.active_profile.clone().filter(|_| silent()));
    let mut status = ModelProfileStatus {
        observed_generation: seen.generation,
        active_profile: active,
        desired_profile: Some(wanted.to_owned()),
        replicas: count(seen.alive()),
        ready_replicas: count(seen.ready()),
        selector: Some(seen.selector.to_owned()),
        profiles: seen.spec.profiles.iter().map(|profile| row(before, seen, &profile.name)).collect(),
        last_decision: Some(begun(before, seen).unwrap_or_else(|| last_decision(before, decision, now))),
        switch_history: before.switch_history.clone(),
        conditions: Vec::new(),
    };
    if let Some(record) = switched(before, &status, seen, now) {
        status.switch_history.insert(0, record);
        status.switch_history.truncate(SWITCH_HISTORY_LIMIT);
    }
    status.conditions = conditions(&before.conditions, seen.generation, rows(seen), now);
    status
}

/// The status of a spec that cannot be carried out: what runs keeps running, so what is known of it stays.
pub fn rejected(
    before: &ModelProfileStatus,
    generation: Option<i64>,
    (reason, message): (&str, &str),
    now: Timestamp,
) -> ModelProfileStatus {
    let mut rows: Vec<Row> = Vec::new();
    for kind in conditions::ALL {
        let kept = before.conditions.iter().find(|condition| condition.kind == kind);
        rows.push(match (kind, kept) {
            (conditions::ACCEPTED, _) => (kind, ConditionStatus::False, reason.to_owned(), message.to_owned()),
            (conditions::DEGRADED, _) => (kind, ConditionStatus::True, reason.to_owned(), message.to_owned()),
            (_, Some(kept)) => (kind, kept.status, kept.reason.clone(), kept.message.clone()),
            (_, None) => (kind, ConditionStatus::Unknown, reason::PENDING.to_owned(), String::new()),
        });
    }
    ModelProfileStatus {
        observed_generation: generation,
        conditions: conditions(&before.conditions, generation, rows, now),
        ..before.clone()
    }
}

/// What is to be written: `next`, or what is there already where the two differ in numbers only and the latest such write was
/// less than [`pause`] ago (`waited` is false), or the pressure has hardly moved.
pub fn settled(before: &ModelProfileStatus, mut next: ModelProfileStatus, waited: bool) -> ModelProfileStatus {
    let pressure =
        |status: &ModelProfileStatus| status.last_decision.as_ref().and_then(|decision| decision.pressure_percent);
    let far = match (pressure(before), pressure(&next)) {
        (Some(then), Some(now)) => then.abs_diff(now) >= POINTS,
        (then, now) => then.is_some() != now.is_some(),
    };
    if let (Some(then), Some(now)) = (&before.last_decision, &mut next.last_decision)
        && then.action == now.action
        && then.reason == now.reason
        && !(far && waited)
    {
        *now = then.clone();
    }
    // A percentage, a count: told seldom. Another sentence is told at once.
    let words = |text: &str| text.replace(|character: char| character.is_ascii_digit(), "");
    let told = next.conditions.clone();
    for condition in &mut next.conditions {
        let same = before.conditions.iter().find(|then| {
            then.kind == condition.kind
                && then.status == condition.status
                && then.reason == condition.reason
                && then.observed_generation == condition.observed_generation
        });
        if let Some(then) = same.filter(|then| !waited && words(&then.message) == words(&condition.message)) {
            condition.message.clone_from(&then.message);
        }
    }
    if next != *before {
        // It is written anyway: then with sentences that agree with the rest.
        next.conditions = told;
    }
    next
}

pub(super) fn count<'a>(workers: impl Iterator<Item = &'a Worker>) -> u32 {
    u32::try_from(workers.count()).unwrap_or(u32::MAX)
}

/// What is known of a profile stays known while no worker answers.
fn row(before: &ModelProfileStatus, seen: &Seen<'_>, name: &str) -> ProfileStatus {
    let kept = || before.profiles.iter().find(|profile| profile.name == name).cloned();
    match seen.profile(name) {
        Some(profile) => {
            let prepared = matches!(seen.preparation, Preparation::Done(_)) || seen.ready().next().is_some();
            let verdict = seen.spec.quality.verdict(profile.quality.as_ref());
            let gate = (prepared || profile.quality.is_some()).then(|| GateOutcome::from(verdict));
            let row = ProfileStatus { quality_gate: gate, ..profile_row(profile) };
            // The Job does not know how many tokens a worker's memory has room for.
            ProfileStatus { kv_tokens: row.kv_tokens.or_else(|| kept()?.kv_tokens), ..row }
        }
        None => kept().unwrap_or_else(|| ProfileStatus { name: name.to_owned(), ..ProfileStatus::default() }),
    }
}

/// The decision that began the switch that is under way. It stays the latest one until the switch ends: its reason is wanted then,
/// of whichever operator there is.
fn begun(before: &ModelProfileStatus, seen: &Seen<'_>) -> Option<LastDecision> {
    let (decision, wanted) = seen.decision;
    let same = before.desired_profile.as_deref() == Some(wanted) && seen.active() != Some(wanted);
    let last = before.last_decision.as_ref().filter(|last| last.action == DecisionAction::Switch)?;
    // For lack of workers too: those of a Recreate, and one that starts again.
    (decision.action == Action::Hold && same).then(|| last.clone())
}

/// The switch that this pass saw the end of: all workers serve with another profile than the status said. What began it is in
/// the status too, so an operator that starts anew records a switch that the one before it began.
fn switched(
    before: &ModelProfileStatus,
    after: &ModelProfileStatus,
    seen: &Seen<'_>,
    now: Timestamp,
) -> Option<SwitchRecord> {
    let to = after.active_profile.clone()?;
    let last = || before.switch_history.first();
    let reports = || {
        let reports = seen.ready().filter_map(|worker| worker.state.as_ref()?.last_switch.as_ref());
        reports.filter(|report| report.to == to && report.outcome == SwitchOutcome::Completed)
    };
    // While workers differ there is no active profile; the one before is then that of the latest switch, or what workers say.
    let from = before.active_profile.clone().or_else(|| seen.last_active.map(str::to_owned));
    let from = from.or_else(|| last().map(|switch| switch.to.clone()));
    let from = from.or_else(|| reports().next().map(|report| report.from.clone()))?;
    if from == to {
        return None;
    }
    let decided = before.last_decision.as_ref().filter(|decision| decision.action == DecisionAction::Switch);
    let decided = decided.filter(|_| before.desired_profile.as_deref() == Some(to.as_str()));
    let reported = reports().min_by_key(|report| report.start_time.clone());
    let (start, millis) = match (decided.and_then(|decision| decision.time.parse::<Timestamp>().ok()), reported) {
        (Some(start), _) => (start, i64::try_from(now.duration_since(start).as_millis()).unwrap_or(i64::MAX)),
        // Nobody served when it came to be wanted: the switch itself is all that took time.
        (None, Some(report)) => {
            (report.start_time.parse().unwrap_or(now), i64::try_from(report.duration_millis).unwrap_or(i64::MAX))
        }
        (None, None) => (now, 0),
    };
    Some(SwitchRecord {
        from,
        reason: decided.map_or_else(|| requested(seen.spec, &to), |decision| decision.reason.as_str()).to_owned(),
        to,
        start_time: start.to_string(),
        duration_millis: millis.max(0),
        outcome: "Completed".to_owned(),
    })
}

/// Who wanted a profile that no decision switched to.
fn requested(spec: &ModelProfileSpec, to: &str) -> &'static str {
    let pinned = spec.switching.mode == SwitchingMode::Pinned && spec.switching.pinned_profile.as_deref() == Some(to);
    if pinned { Reason::Pinned.as_str() } else { "Requested" }
}

/// Type, status, reason, message.
pub(super) type Row = (&'static str, ConditionStatus, String, String);

fn conditions(before: &[Condition], generation: Option<i64>, rows: Vec<Row>, now: Timestamp) -> Vec<Condition> {
    // Times of Kubernetes have whole seconds.
    let time = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let one = |(kind, status, reason, message): Row| {
        let same = before.iter().find(|condition| condition.kind == kind && condition.status == status);
        Condition {
            kind: kind.to_owned(),
            status,
            observed_generation: generation,
            last_transition_time: same.map_or_else(|| time.clone(), |same| same.last_transition_time.clone()),
            reason,
            message,
        }
    };
    rows.into_iter().map(one).collect()
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
