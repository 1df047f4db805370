use std::time::Duration;

use modelprofile_api::worker::{PrepareReason, WorkerPhase, WorkerState};
use modelprofile_api::{DecisionAction, Validated, conditions as kinds};
use modelprofile_policy::{Action, Reason};
use rstest::rstest;

use super::super::plan::names::Set;
use super::super::prepared::Failure;
use super::*;
use crate::local::gate::tests::measured;
use crate::local::watch::fixture;

const NOON: &str = "2026-03-01T12:00:00Z";

fn at(seconds: i64) -> Timestamp {
    NOON.parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(seconds)
}

/// What a pass saw, for a test to change.
struct Scene {
    manifest: Validated,
    workers: Vec<Worker>,
    troubles: Vec<Trouble>,
    preparation: Preparation,
    decision: Decision,
    wanted: &'static str,
    plan: Plan,
    replicas: u32,
    refused: Option<(&'static str, &'static str)>,
}

impl Scene {
    fn new(workers: Vec<Worker>) -> Self {
        let profile = |name: &str| WorkerProfile {
            name: name.to_owned(),
            quality: Some(measured(0.5)),
            ..WorkerProfile::default()
        };
        Self {
            manifest: fixture::valid("{}"),
            replicas: u32::try_from(workers.len()).unwrap(),
            workers,
            troubles: Vec::new(),
            preparation: Preparation::Done(vec![profile("quality"), profile("density")]),
            decision: decision(Action::Hold, Reason::WithinTargets, Some(0.5)),
            wanted: "quality",
            plan: Plan::default(),
            refused: None,
        }
    }

    fn next(&self, before: &ModelProfileStatus, now: Timestamp) -> ModelProfileStatus {
        let seen = Seen {
            spec: self.manifest.spec(),
            generation: Some(3),
            workers: &self.workers,
            troubles: &self.troubles,
            preparation: &self.preparation,
            decision: (&self.decision, self.wanted),
            plan: &self.plan,
            replicas: self.replicas,
            refused: self.refused,
            failed: None,
            selector: "a=b",
            routed: None,
            last_active: None,
        };
        next(before, &seen, now)
    }

    fn row(&self, kind: &str) -> (ConditionStatus, String) {
        let status = self.next(&ModelProfileStatus::default(), at(0));
        let found = status.condition(kind).unwrap();
        (found.status, found.reason.clone())
    }
}

fn decision(action: Action, reason: Reason, pressure: Option<f64>) -> Decision {
    Decision {
        rung: 0,
        replicas: 1,
        action,
        recommended: None,
        reason,
        message: format!("pressure {pressure:?}"),
        pressure,
        revisit_after: Duration::ZERO,
    }
}

fn worker(pod: &str, active: &str) -> Worker {
    let state =
        WorkerState { phase: WorkerPhase::Ready, active_profile: Some(active.to_owned()), ..WorkerState::default() };
    Worker { ready: true, state: Some(Box::new(state)), ..Worker::new(pod, Set::InPlace) }
}

fn starting(pod: &str) -> Worker {
    Worker::new(pod, Set::InPlace)
}

fn trouble(reason: &'static str) -> Trouble {
    Trouble { reason, message: "a sentence".to_owned() }
}

fn failed(reason: PrepareReason) -> Preparation {
    Preparation::Failed(Failure { reason: Some(reason), message: "what to do".to_owned() })
}

#[test]
fn a_model_that_serves_as_asked_says_so_in_every_condition() {
    let status =
        Scene::new(vec![worker("a", "quality"), worker("b", "quality")]).next(&ModelProfileStatus::default(), at(0));
    let rows: Vec<String> =
        status.conditions.iter().map(|c| format!("{} {:?} {}", c.kind, c.status, c.reason)).collect();
    assert_eq!(
        rows,
        [
            "Accepted True Valid",
            "LicenseAccepted True Matches",
            "Prepared True Prepared",
            "QualityGatePassed True WithinLimits",
            "MetricsAvailable True Fresh",
            "Available True WorkerReady",
            "Progressing False Stable",
            "Degraded False AsExpected",
        ]
    );
    assert_eq!((status.active_profile.as_deref(), status.replicas, status.ready_replicas), (Some("quality"), 2, 2));
    assert_eq!(status.observed_generation, Some(3));
    assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(3)));
}

#[rstest]
#[case(Preparation::Pending, "Prepared", ConditionStatus::False, "Preparing")]
#[case(Preparation::Running(None), "Progressing", ConditionStatus::True, "Preparing")]
#[case(failed(PrepareReason::LicenceDiffers), "LicenseAccepted", ConditionStatus::False, "Differs")]
#[case(failed(PrepareReason::LicenceDiffers), "Prepared", ConditionStatus::False, "PrepareFailed")]
#[case(failed(PrepareReason::NeedsAccelerator), "Prepared", ConditionStatus::False, "NeedsAccelerator")]
#[case(failed(PrepareReason::NoSpace), "Degraded", ConditionStatus::True, "PrepareFailed")]
#[case(Preparation::Stuck(trouble("ImagePullFailed")), "Prepared", ConditionStatus::False, "ImagePullFailed")]
#[case(Preparation::Stuck(trouble("OutOfMemory")), "Degraded", ConditionStatus::True, "OutOfMemory")]
#[case(Preparation::ByWorkers, "Prepared", ConditionStatus::Unknown, "Pending")]
fn a_preparation_is_told_where_it_belongs(
    #[case] preparation: Preparation,
    #[case] kind: &str,
    #[case] status: ConditionStatus,
    #[case] reason: &str,
) {
    let scene = Scene { preparation, ..Scene::new(Vec::new()) };
    assert_eq!(scene.row(kind), (status, reason.to_owned()));
    let stuck = if let Preparation::Stuck(trouble) = &scene.preparation { trouble.reason } else { "NoWorkerReady" };
    assert_eq!(scene.row(kinds::AVAILABLE), (ConditionStatus::False, stuck.to_owned()));
}

#[test]
fn a_pod_that_waits_for_an_accelerator_is_why_nothing_is_available_and_only_a_loss_while_another_serves() {
    let waiting = trouble("WaitingForAccelerator");
    let alone = Scene { troubles: vec![waiting.clone()], ..Scene::new(vec![starting("a")]) };
    assert_eq!(alone.row(kinds::AVAILABLE), (ConditionStatus::False, "WaitingForAccelerator".to_owned()));
    let beside = Scene { troubles: vec![waiting], ..Scene::new(vec![worker("a", "quality"), starting("b")]) };
    assert_eq!(beside.row(kinds::AVAILABLE), (ConditionStatus::True, "WorkerReady".to_owned()));
    assert_eq!(beside.row(kinds::DEGRADED), (ConditionStatus::True, "WaitingForAccelerator".to_owned()));
}

#[test]
fn a_switch_is_recorded_when_the_last_worker_is_through_with_what_began_it() {
    let mut scene = Scene::new(vec![worker("a", "quality"), worker("b", "quality")]);
    let quiet = scene.next(&ModelProfileStatus::default(), at(0));
    scene.decision = decision(Action::Switch, Reason::PressureHigh, Some(1.2));
    scene.wanted = "density";
    let asked = scene.next(&quiet, at(10));
    assert_eq!(asked.last_decision.as_ref().unwrap().action, DecisionAction::Switch);
    // From now on the policy waits for what it decided.
    scene.decision = decision(Action::Hold, Reason::WaitingForEffect, Some(1.2));
    scene.workers[0] = worker("a", "density");
    let half = scene.next(&asked, at(11));
    assert_eq!((half.active_profile.as_deref(), half.switch_history.len()), (None, 0), "they differ");
    assert_eq!(half.last_decision, asked.last_decision, "what began it");
    assert_eq!(half.condition(kinds::PROGRESSING).unwrap().reason, "Switching");
    scene.workers[1] = worker("b", "density");
    // The status before has no active profile; an earlier switch says which it was.
    let earlier = SwitchRecord { to: "quality".to_owned(), ..record("density") };
    let half = ModelProfileStatus { switch_history: vec![earlier], ..half };
    let done = scene.next(&half, at(12));
    let expected = SwitchRecord { duration_millis: 2000, start_time: at(10).to_string(), ..record("density") };
    assert_eq!(done.switch_history[0], expected);
    assert_eq!(done.last_decision.as_ref().unwrap().reason, "WaitingForEffect");
    assert_eq!(scene.next(&done, at(13)).switch_history.len(), 2, "once");
}

fn record(to: &str) -> SwitchRecord {
    SwitchRecord {
        from: "quality".to_owned(),
        to: to.to_owned(),
        reason: "PressureHigh".to_owned(),
        start_time: NOON.to_owned(),
        duration_millis: 0,
        outcome: "Completed".to_owned(),
    }
}

#[test]
fn a_refused_switch_degrades_and_names_the_pod() {
    let scene = Scene { refused: Some(("a", "density")), ..Scene::new(vec![worker("a", "quality")]) };
    let status = scene.next(&ModelProfileStatus::default(), at(0));
    let degraded = status.condition(kinds::DEGRADED).unwrap();
    assert_eq!((degraded.status, degraded.reason.as_str()), (ConditionStatus::True, "SwitchRefused"));
    assert!(degraded.message.starts_with("a refused density;"), "{}", degraded.message);
}

#[test]
fn numbers_alone_are_written_when_they_moved_far_and_seldom() {
    let mut scene = Scene::new(vec![worker("a", "quality")]);
    let before = scene.next(&ModelProfileStatus::default(), at(0));
    scene.decision = decision(Action::Hold, Reason::WithinTargets, Some(0.55));
    let near = scene.next(&before, at(60));
    assert_ne!(near, before);
    assert_eq!(settled(&before, near, true), before, "five points");
    scene.decision = decision(Action::Hold, Reason::WithinTargets, Some(0.75));
    let far = scene.next(&before, at(60));
    assert_eq!(settled(&before, far.clone(), false), before, "too soon");
    assert_eq!(settled(&before, far.clone(), true), far);
    scene.decision = decision(Action::Switch, Reason::PressureHigh, Some(0.51));
    let other = scene.next(&before, at(1));
    assert_eq!(settled(&before, other.clone(), false), other, "a decision is never held back");
}

#[test]
fn a_spec_that_is_rejected_leaves_what_is_known_of_the_workers() {
    let before = Scene::new(vec![worker("a", "quality")]).next(&ModelProfileStatus::default(), at(0));
    let after = rejected(&before, Some(4), ("Invalid", "spec.profiles: two are named a"), at(9));
    let accepted = after.condition(kinds::ACCEPTED).unwrap();
    assert_eq!((accepted.status, accepted.observed_generation), (ConditionStatus::False, Some(4)));
    assert_eq!(after.condition(kinds::AVAILABLE).unwrap().status, ConditionStatus::True);
    assert_eq!(after.profiles, before.profiles);
    let never = rejected(&ModelProfileStatus::default(), Some(1), ("Invalid", "m"), at(0));
    assert_eq!(never.conditions.len(), kinds::ALL.len());
}

#[test]
fn what_is_known_of_a_profile_stays_while_nobody_answers() {
    let before = Scene::new(vec![worker("a", "quality")]).next(&ModelProfileStatus::default(), at(0));
    let gone = Scene { preparation: Preparation::Pending, ..Scene::new(Vec::new()) };
    let after = gone.next(&before, at(5));
    assert_eq!(after.profiles, before.profiles);
    assert!(after.profiles.iter().all(|profile| profile.perplexity.is_some()));
}
