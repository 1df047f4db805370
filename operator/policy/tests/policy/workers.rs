//! Workers that start, go, come back, or never come.

use jiff::SignedDuration;
use modelprofile_policy::{Action, Decision, Observation, Reason, Replica, decide};

use crate::support::{INTERVAL, Plant, rules};

fn plant(switching: &str, scaling: &str) -> Plant {
    Plant::new(rules(2, switching, scaling), &[100.0, 200.0], &[1.0, 1.0])
}

/// A pass with these workers.
fn pass(plant: &mut Plant, blocks: f64, change: impl FnOnce(&mut Observation)) -> Decision {
    let mut seen = plant.observe(blocks, 0.1);
    change(&mut seen);
    plant.history.record(&plant.rules, &seen, plant.now);
    let decision = decide(&plant.rules, &seen, &plant.history, plant.now);
    plant.now += SignedDuration::from_secs(INTERVAL);
    decision
}

/// A plant whose worker was away for a minute.
fn after_an_outage() -> Plant {
    let mut plant = plant("{}", "{}");
    plant.run(20, 50.0, 0.1);
    for _ in 0..12 {
        let away =
            Observation { active: Some(0), replicas: 1, workers: vec![Replica::Starting], ..Observation::default() };
        plant.history.record(&plant.rules, &away, plant.now);
        assert_eq!(decide(&plant.rules, &away, &plant.history, plant.now).action, Action::Hold);
        plant.now += SignedDuration::from_secs(INTERVAL);
    }
    plant
}

#[test]
fn a_backlog_that_is_worked_off_is_no_peak() {
    let mut plant = after_an_outage();
    for step in 0..20 {
        let decision = plant.pass(400.0 * 0.9f64.powi(step), 0.1);
        assert_eq!((decision.action, decision.rung), (Action::Hold, 0), "{decision:?}");
    }
    assert_eq!(
        plant.decisions[24].message,
        "the oldest waiting request is 16.2 s old (target 2 s), from requests that came while workers were away; something is \
         done if it does not fall for 60 s"
    );
    // Once it is gone, load is load again.
    plant.run(6, 300.0, 0.1);
    assert_eq!(plant.active, 1);
}

#[test]
fn a_backlog_that_does_not_fall_is_a_peak_after_the_window() {
    let mut plant = after_an_outage();
    // The worker was away for a minute.
    let up = (0..20).find(|_| plant.pass(300.0, 0.1).reason == Reason::PressureHigh);
    assert_eq!(up, Some(12));
}

#[test]
fn a_worker_that_restarts_in_a_peak_does_not_hold_the_climb_up() {
    let mut plant = plant("{}", r#"{"minReplicas": 4, "maxReplicas": 4}"#);
    plant.replicas = 4;
    plant.run(4, 100.0, 0.1);
    let restarting = |seen: &mut Observation| seen.workers[3] = Replica::Starting;
    for _ in 0..3 {
        assert_eq!(pass(&mut plant, 500.0, restarting).reason, Reason::Stabilizing);
    }
    let decision = pass(&mut plant, 500.0, restarting);
    assert_eq!((decision.reason, decision.rung), (Reason::PressureHigh, 1));
    // Nothing is taken away while it is not back.
    plant.active = 1;
    assert_eq!(pass(&mut plant, 4.0, restarting).reason, Reason::WaitingForEffect);
}

#[test]
fn a_worker_that_comes_and_goes_does_not_start_the_window_anew() {
    let mut plant = plant("{}", r#"{"minReplicas": 4, "maxReplicas": 4}"#);
    plant.replicas = 4;
    plant.run(4, 100.0, 0.1);
    let reasons = [true, false, true, false].map(|away| {
        pass(&mut plant, 500.0, |seen| {
            if away {
                seen.workers[3] = Replica::Starting;
            }
        })
        .reason
    });
    assert_eq!(reasons, [Reason::Stabilizing, Reason::Stabilizing, Reason::Stabilizing, Reason::PressureHigh]);
}

#[test]
fn workers_that_cannot_be_placed_are_given_up_one_by_one_after_the_window() {
    let mut plant = plant("{}", r#"{"maxReplicas": 4, "scaleDown": {"stabilizationWindowSeconds": 20}}"#);
    (plant.replicas, plant.unplaceable) = (3, 2);
    let mut seen = Vec::new();
    for _ in 0..12 {
        let decision = plant.pass(60.0, 0.1);
        if decision.action == Action::Scale {
            plant.unplaceable -= 1;
            seen.push(decision.message);
        }
    }
    let given_up =
        |count| format!("{count} workers could not be placed, and the load was below its target for 20 s without them");
    assert_eq!((seen, plant.replicas), (vec![given_up(2), given_up(1)], 1));
}

#[test]
fn metrics_that_are_missing_give_no_worker_up() {
    let mut plant = plant("{}", r#"{"maxReplicas": 4, "scaleDown": {"stabilizationWindowSeconds": 0}}"#);
    plant.replicas = 4;
    for _ in 0..20 {
        let decision = pass(&mut plant, 60.0, |seen| {
            seen.workers[2] = Replica::Ready(None);
            seen.workers[3] = Replica::Unavailable;
        });
        assert_eq!(decision.action, Action::Hold);
    }
}

#[test]
fn after_a_worker_could_not_be_placed_the_climb_comes_first_and_another_is_tried_ten_minutes_later() {
    let mut plant = plant(r#"{"prefer": "Scale"}"#, r#"{"maxReplicas": 8}"#);
    plant.run(4, 120.0, 0.1);
    assert_eq!((plant.replicas, plant.active), (2, 0));
    plant.unplaceable = 1;
    plant.run(4, 120.0, 0.1);
    assert_eq!((plant.replicas, plant.active), (2, 1), "climbed instead");
    plant.run(6, 500.0, 0.1);
    let stuck = plant.decisions.last().unwrap();
    assert_eq!(stuck.reason, Reason::AtLimit);
    assert!(stuck.message.contains("a worker could not be placed; another is tried in"), "{}", stuck.message);
    plant.run(120, 500.0, 0.1);
    assert!(plant.replicas > 2, "one that crash-loops stops no growth for good");
}

#[test]
fn a_clock_that_is_set_back_strands_no_peak() {
    let mut plant = plant("{}", "{}");
    plant.run(3, 110.0, 0.1);
    plant.now -= SignedDuration::from_hours(1);
    plant.run(4, 110.0, 0.1);
    assert_eq!(plant.active, 1);
    plant.now -= SignedDuration::from_hours(1);
    plant.run(70, 1.0, 0.1);
    assert_eq!(plant.active, 0, "and holds no return up");
}

#[test]
fn samples_from_before_the_clock_was_set_back_are_stale() {
    let mut plant = plant("{}", "{}");
    plant.age = SignedDuration::from_mins(-30);
    assert_eq!(plant.pass(110.0, 0.1).reason, Reason::MetricsUnavailable);
}
