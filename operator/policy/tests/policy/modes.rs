//! Who decides: pins, gates, recommendations.

use jiff::SignedDuration;
use modelprofile_policy::{Action, Reason, decide};

use crate::support::{INTERVAL, Plant, beyond, rules};

fn plant(rungs: usize, switching: &str, scaling: &str) -> Plant {
    Plant::new(rules(rungs, switching, scaling), &[100.0, 200.0, 400.0][..rungs], &[1.0; 3][..rungs])
}

const ALL_DAY: &str =
    r#""schedule": {"windows": [{"name": "always", "profile": "density", "start": "00:00", "end": "24:00"}]}"#;

#[test]
fn a_recommendation_does_not_keep_the_number_of_workers_from_following_the_load() {
    let switching = format!(r#"{{"mode": "Recommend", {ALL_DAY}}}"#);
    let scaling = r#"{"maxReplicas": 4, "scaleDown": {"stabilizationWindowSeconds": 10}}"#;
    let mut plant = plant(2, &switching, scaling);
    plant.run(8, 190.0, 0.1);
    assert_eq!((plant.active, plant.replicas), (0, 3));
    let out = plant.decisions.iter().find(|decision| decision.action == Action::Scale).unwrap();
    assert_eq!((out.recommended, out.reason), (Some(1), Reason::PressureHigh));
    plant.run(20, 10.0, 0.1);
    assert_eq!((plant.active, plant.replicas), (0, 1));
    plant.age = jiff::SignedDuration::from_mins(5);
    let blind = plant.pass(10.0, 0.1);
    assert_eq!((blind.reason, blind.recommended), (Reason::Scheduled, Some(1)));
    assert_eq!(blind.message, "recommended, not done: density. the window always prefers density");
}

#[test]
fn a_way_down_that_is_only_recommended_holds_no_worker() {
    let scaling = r#"{"maxReplicas": 4, "scaleDown": {"stabilizationWindowSeconds": 10}}"#;
    let mut plant = plant(2, r#"{"mode": "Recommend", "prefer": "Scale"}"#, scaling);
    (plant.active, plant.replicas) = (1, 4);
    plant.run(30, 10.0, 0.1);
    assert_eq!((plant.active, plant.replicas), (1, 1));
}

#[test]
fn a_pinned_profile_that_failed_its_gate_is_left_and_the_workers_follow_the_load() {
    let scaling = r#"{"maxReplicas": 4}"#;
    let mut plant = plant(3, r#"{"mode": "Pinned", "pinnedProfile": "middle"}"#, scaling);
    plant.active = 1;
    plant.rungs[1].verdict = beyond();
    let left = plant.pass(10.0, 0.1);
    assert_eq!((left.action, left.reason, left.rung), (Action::Switch, Reason::QualityGateFailed, 0));
    let stays = plant.pass(10.0, 0.1);
    assert_eq!((stays.action, stays.reason), (Action::Hold, Reason::QualityGateFailed));
    assert_eq!(
        stays.message,
        "middle is beyond the quality limits: its perplexity is 12.50 % above the original's, the limit is 10 % \
         (spec.quality.maxPerplexityIncreasePercent), so its pin is not followed and quality serves; pin another profile, or raise \
         the limit, give it another method or format, or set spec.quality.onFailure: Warn"
    );
    plant.run(8, 190.0, 0.1);
    assert_eq!((plant.active, plant.replicas), (0, 3));
}

#[test]
fn a_rung_that_no_worker_has_holds_up_nothing_and_a_pin_to_it_waits() {
    let scaling = r#"{"maxReplicas": 4}"#;
    let mut plant = plant(2, "{}", scaling);
    plant.rungs[1].awaited = true;
    plant.run(8, 190.0, 0.1);
    assert_eq!((plant.active, plant.replicas), (0, 3), "workers are added instead");
    plant.rungs[1].awaited = false;
    plant.run(8, 290.0, 0.1);
    assert_eq!(plant.active, 1, "it is a rung once a worker has it");

    let mut pinned = self::plant(2, r#"{"mode": "Pinned", "pinnedProfile": "density"}"#, scaling);
    pinned.rungs[1].awaited = true;
    // The profile stays whatever is wanted, for nobody can change to it.
    let pass = |plant: &mut Plant, blocks: f64| {
        let seen = plant.observe(blocks, 0.1);
        plant.history.record(&plant.rules, &seen, plant.now);
        let decision = decide(&plant.rules, &seen, &plant.history, plant.now);
        plant.now += SignedDuration::from_secs(INTERVAL);
        plant.replicas = decision.replicas;
        decision
    };
    let waits = pass(&mut pinned, 10.0);
    assert_eq!((waits.action, waits.reason, waits.rung), (Action::Hold, Reason::WaitingForEffect, 1));
    assert_eq!(waits.message, "no worker has density yet, so its pin waits and quality serves");
    for _ in 0..8 {
        pass(&mut pinned, 190.0);
    }
    assert_eq!(pinned.replicas, 3, "the number of workers follows the load meanwhile");
    pinned.rungs[1].awaited = false;
    let followed = pass(&mut pinned, 10.0);
    assert_eq!((followed.action, followed.rung, followed.reason), (Action::Switch, 1, Reason::Pinned));
}

#[test]
fn a_failed_gate_does_not_redirect_a_switch_that_leaves_its_profile() {
    let plant = {
        let mut plant = plant(3, r#"{"mode": "Pinned", "pinnedProfile": "dense"}"#, "{}");
        plant.rungs[0].verdict = beyond();
        plant
    };
    let mut seen = plant.observe(10.0, 0.1);
    seen.target = Some(2);
    let decision = decide(&plant.rules, &seen, &plant.history, plant.now);
    assert_eq!((decision.action, decision.reason, decision.rung), (Action::Hold, Reason::WaitingForEffect, 2));
}

#[test]
fn a_peak_climbs_to_the_rung_that_ends_it() {
    let ladder = |capacities: [f64; 3], blocks| {
        let mut plant = Plant::new(rules(3, "{}", "{}"), &capacities, &[1.0; 3]);
        plant.run(40, blocks, 0.1);
        (plant.active, plant.switches)
    };
    assert_eq!(ladder([100.0, 120.0, 400.0], 95.0), (1, 1), "the first that does");
    assert_eq!(ladder([100.0, 120.0, 400.0], 150.0), (2, 1), "not by way of one that does not");
    assert_eq!(ladder([100.0, 120.0, 140.0], 300.0), (2, 1), "where none does, the one that helps most");
}

#[test]
fn the_sentence_says_what_would_bring_quality_back() {
    let mut plant = plant(2, "{}", "{}");
    plant.active = 1;
    plant.run(3, 80.0, 0.1);
    assert_eq!(
        plant.decisions[2].message,
        "KV demand is 40 % (target 85 %): pressure 47 %, density stays; quality is predicted at 94 % of the target, it comes \
         below 70 % for 300 s"
    );
}

#[test]
fn a_limit_seen_under_long_contexts_says_nothing_about_short_ones() {
    let mut plant = plant(2, r#"{"minDwellSeconds": 0}"#, "{}");
    // Long contexts fill the cache at a low rate.
    plant.tokens_per_block = 0.5;
    plant.run(10, 110.0, 0.1);
    assert_eq!(plant.active, 1);
    plant.run(10, 110.0, 0.1);
    // Short ones bring more tokens and leave it nearly empty.
    plant.tokens_per_block = 50.0;
    plant.run(70, 20.0, 0.1);
    assert_eq!(plant.active, 0);
}
