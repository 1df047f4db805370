//! Decisions one by one: what is done, why, and in which words.

use jiff::SignedDuration;
use modelprofile_policy::{Action, Observation, Reading, Reason, Replica, decide};

use crate::support::{Plant, beyond, rules};

fn plant(switching: &str, scaling: &str) -> Plant {
    Plant::new(rules(2, switching, scaling), &[100.0, 200.0], &[1.0, 1.0])
}

#[test]
fn a_peak_climbs_after_its_window_and_comes_back_after_the_other() {
    let mut plant = plant("{}", "{}");
    for _ in 0..3 {
        assert_eq!(plant.pass(110.0, 0.1).reason, Reason::Stabilizing);
    }
    let up = plant.pass(110.0, 0.1);
    assert_eq!((up.action, up.rung, up.reason), (Action::Switch, 1, Reason::PressureHigh));
    assert_eq!(
        up.message,
        "KV demand is 110 % (target 85 %) for 15 s; density is predicted to bring the pressure from 129 to 65 %"
    );
    plant.run(20, 110.0, 0.1);
    assert_eq!(plant.active, 1);
    let quiet = (0..70).map(|_| plant.pass(20.0, 0.1)).collect::<Vec<_>>();
    let down = quiet.iter().position(|d| d.action == Action::Switch).unwrap();
    assert_eq!(down, 60, "300 s of 5 s");
    assert_eq!(quiet[down].message, "quality is predicted at 24 % of the target, below 70 % for 300 s");
    assert!(quiet[..down].iter().all(|d| d.reason == Reason::Stabilizing));
}

#[test]
fn one_quiet_pass_starts_the_window_anew() {
    let mut plant = plant("{}", "{}");
    plant.run(3, 110.0, 0.1);
    plant.pass(50.0, 0.1);
    plant.run(3, 110.0, 0.1);
    assert_eq!(plant.switches, 0);
}

#[test]
fn density_that_would_not_help_is_said() {
    let mut plant = Plant::new(rules(2, "{}", "{}"), &[100.0, 105.0], &[1.0, 1.0]);
    plant.run(4, 110.0, 0.1);
    let decision = plant.decisions.last().unwrap();
    assert_eq!(decision.reason, Reason::DensityWouldNotHelp);
    assert!(decision.message.contains("less than a tenth better"), "{}", decision.message);
}

#[test]
fn a_person_pins_at_once_and_load_does_not_undo_it() {
    let mut plant = plant(r#"{"mode": "Pinned", "pinnedProfile": "density"}"#, "{}");
    assert_eq!(plant.pass(0.0, 0.0).reason, Reason::Pinned);
    assert_eq!(plant.active, 1);
    plant.run(200, 0.0, 0.0);
    assert_eq!(plant.active, 1);
    plant.rules = rules(2, r#"{"mode": "Pinned", "pinnedProfile": "quality"}"#, "{}");
    plant.run(50, 500.0, 9.0);
    assert_eq!(plant.active, 0);
    assert_eq!(plant.decisions.last().unwrap().reason, Reason::AtLimit);
}

#[test]
fn recommend_tells_and_does_not_do() {
    let mut plant = plant(r#"{"mode": "Recommend"}"#, "{}");
    plant.run(4, 110.0, 0.1);
    let decision = plant.decisions.last().unwrap();
    assert_eq!((decision.action, decision.rung, decision.recommended), (Action::Hold, 0, Some(1)));
    assert!(decision.message.starts_with("recommended, not done: density. KV demand"), "{}", decision.message);
}

const BUSINESS: &str =
    r#"{"schedule": {"windows": [{"name": "business", "profile": "density", "start": "08:00", "end": "20:00"}]}}"#;

#[test]
fn a_window_toward_density_acts_without_metrics_and_load_brings_it_back() {
    let mut plant = plant(BUSINESS, "{}");
    plant.now = "2026-03-02T07:59:50Z".parse().unwrap();
    plant.age = SignedDuration::from_secs(999);
    assert_eq!(plant.pass(0.0, 0.0).reason, Reason::MetricsUnavailable);
    assert_eq!(plant.decisions[0].revisit_after.as_secs(), 5);
    plant.pass(0.0, 0.0);
    let open = plant.pass(0.0, 0.0);
    assert_eq!((open.reason, open.rung), (Reason::Scheduled, 1));
    assert_eq!(open.message, "the window business prefers density");
    // Within the window nothing goes below its profile; after it the load decides.
    plant.age = SignedDuration::ZERO;
    plant.run(200, 1.0, 0.0);
    assert_eq!(plant.active, 1);
    plant.now = "2026-03-02T20:00:00Z".parse().unwrap();
    plant.run(70, 1.0, 0.0);
    assert_eq!(plant.active, 0);
}

#[test]
fn dwell_and_budget_hold_up_moves_toward_quality() {
    let fast = r#"{"minDwellSeconds": 600, "toQuality": {"stabilizationWindowSeconds": 10}}"#;
    let mut dwelling = plant(fast, "{}");
    dwelling.run(4, 110.0, 0.1);
    dwelling.run(10, 1.0, 0.1);
    assert_eq!(dwelling.decisions.last().unwrap().reason, Reason::Dwelling);
    let mut spent = plant(
        r#"{"minDwellSeconds": 0, "maxSwitchesPerHour": 1, "toQuality": {"stabilizationWindowSeconds": 10}}"#,
        "{}",
    );
    spent.run(4, 110.0, 0.1);
    spent.run(10, 1.0, 0.1);
    let last = spent.decisions.last().unwrap();
    assert_eq!(last.reason, Reason::SwitchBudgetExhausted);
    assert!(last.message.contains("1 switches within an hour"), "{}", last.message);
    spent.run(720, 1.0, 0.1);
    assert_eq!(spent.active, 0, "an hour later it is free");
}

#[test]
fn a_failed_gate_takes_its_rung_out() {
    let mut plant = Plant::new(rules(3, "{}", "{}"), &[100.0, 150.0, 400.0], &[1.0; 3]);
    plant.rungs[1].verdict = beyond();
    plant.run(4, 110.0, 0.1);
    assert_eq!(plant.active, 2);
    plant.rungs[2].verdict = beyond();
    let decision = plant.pass(110.0, 0.1);
    assert_eq!((decision.reason, plant.active), (Reason::QualityGateFailed, 0));
}

#[test]
fn preference_says_what_comes_first_and_relief_undoes_it_in_the_opposite_order() {
    let scaling = r#"{"maxReplicas": 2, "scaleDown": {"stabilizationWindowSeconds": 10}}"#;
    for (prefer, first) in [("Switch", Action::Switch), ("Scale", Action::Scale)] {
        let switching = format!(
            r#"{{"prefer": "{prefer}", "minDwellSeconds": 0, "toQuality": {{"stabilizationWindowSeconds": 10}}}}"#
        );
        let mut plant = plant(&switching, scaling);
        plant.run(40, 380.0, 0.1);
        assert_eq!((plant.active, plant.replicas), (1, 2), "{prefer}");
        plant.run(40, 1.0, 0.1);
        assert_eq!((plant.active, plant.replicas), (0, 1), "{prefer}");
        let acts: Vec<Action> = plant.decisions.iter().map(|d| d.action).filter(|a| *a != Action::Hold).collect();
        let second = if first == Action::Switch { Action::Scale } else { Action::Switch };
        assert_eq!(acts, [first, second, second, first], "{prefer}");
    }
}

#[test]
fn workers_at_most_double_and_what_starts_is_waited_for() {
    let mut plant = plant(r#"{"prefer": "Scale"}"#, r#"{"maxReplicas": 10}"#);
    plant.run(4, 900.0, 0.1);
    assert_eq!(plant.replicas, 2);
    let mut seen = plant.observe(900.0, 0.1);
    seen.workers[1] = Replica::Starting;
    plant.history.record(&plant.rules, &seen, plant.now);
    assert_eq!(decide(&plant.rules, &seen, &plant.history, plant.now).reason, Reason::WaitingForEffect);
}

#[test]
fn one_silent_worker_of_many_lets_a_peak_be_seen_and_holds_relief_back() {
    let mut plant = plant(
        r#"{"toQuality": {"stabilizationWindowSeconds": 0}, "minDwellSeconds": 0}"#,
        r#"{"minReplicas": 4, "maxReplicas": 4}"#,
    );
    plant.replicas = 4;
    let one_silent = |plant: &Plant, blocks| {
        let mut seen = plant.observe(blocks, 0.1);
        seen.workers[3] = Replica::Ready(None);
        seen
    };
    for _ in 0..4 {
        let seen = one_silent(&plant, 500.0);
        plant.history.record(&plant.rules, &seen, plant.now);
        plant.now += SignedDuration::from_secs(5);
    }
    let seen = one_silent(&plant, 500.0);
    assert_eq!(decide(&plant.rules, &seen, &plant.history, plant.now).reason, Reason::PressureHigh);
    plant.active = 1;
    for _ in 0..4 {
        let seen = one_silent(&plant, 4.0);
        plant.history.record(&plant.rules, &seen, plant.now);
        let decision = decide(&plant.rules, &seen, &plant.history, plant.now);
        assert_eq!((decision.action, decision.reason), (Action::Hold, Reason::WithinTargets));
        assert!(decision.message.contains("not every worker has fresh metrics"), "{}", decision.message);
        plant.now += SignedDuration::from_secs(5);
    }
}

#[test]
fn a_signal_that_vanished_is_stale_and_one_with_nothing_to_measure_is_not() {
    let plant = plant("{}", "{}");
    let with = |reading| {
        let mut seen = plant.observe(10.0, 0.1);
        if let Replica::Ready(Some(sample)) = &mut seen.workers[0] {
            sample.time_to_first_token = reading;
        }
        decide(&plant.rules, &seen, &plant.history, plant.now).reason
    };
    assert_eq!(with(Reading::Missing), Reason::MetricsUnavailable);
    assert_eq!(with(Reading::Idle), Reason::WithinTargets);
}

#[test]
fn limits_and_other_autoscalers_are_followed_at_once() {
    let mut plant = plant("{}", r#"{"mode": "External", "replicas": 3, "minReplicas": 1, "maxReplicas": 2}"#);
    let decision = plant.pass(0.0, 0.0);
    assert_eq!((decision.reason, decision.replicas), (Reason::ReplicasRequested, 2));
    assert_eq!(decision.message, "2 workers instead of 1: 3 asked for, between 1 and 2");
}

#[test]
fn before_a_worker_serves_nothing_is_decided() {
    let plant = plant(BUSINESS, "{}");
    let seen = Observation { replicas: 1, workers: vec![Replica::Starting], ..Observation::default() };
    let decision = decide(&plant.rules, &seen, &plant.history, "2026-03-02T09:00:00Z".parse().unwrap());
    assert_eq!((decision.reason, decision.rung, decision.action), (Reason::NotServing, 1, Action::Hold));
}
