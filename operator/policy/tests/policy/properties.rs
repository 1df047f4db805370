//! What holds for any load.

use jiff::SignedDuration;
use modelprofile_api::{OnFailure, Verdict};
use modelprofile_policy::{Action, Reason, Replica, Rung, decide};
use proptest::prelude::*;

use crate::support::{INTERVAL, Plant, beyond, rules};

const LONG: usize = 1200; // passes: an hour and forty minutes

fn ladder() -> impl Strategy<Value = (Vec<f64>, Vec<f64>)> {
    prop::collection::vec((1.0f64..12.0, 0.3f64..2.0), 1..=4).prop_map(|rungs| {
        let mut capacity = 100.0;
        let mut all = (Vec::new(), Vec::new());
        for (i, (factor, step)) in rungs.into_iter().enumerate() {
            capacity *= if i == 0 { 1.0 } else { factor };
            all.0.push(capacity);
            all.1.push(if i == 0 { 1.0 } else { step });
        }
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn constant_load_causes_at_most_one_switch(
        (capacity, step) in ladder(), blocks in 0.0f64..2000.0, ttft in 0.0f64..20.0, known in any::<bool>(),
    ) {
        let n = capacity.len();
        let mut plant = Plant::new(rules(n, "{}", "{}"), &capacity, &step);
        if !known {
            plant.rungs = vec![Rung::default(); n];
        }
        let mut last = 0;
        for _ in 0..LONG {
            plant.pass(blocks, ttft);
            prop_assert!(plant.active >= last, "came down under constant load");
            last = plant.active;
        }
        prop_assert!(plant.switches <= 1, "{} switches", plant.switches);
    }

    #[test]
    fn constant_load_settles_where_workers_can_be_added(
        (capacity, step) in ladder(), blocks in 0.0f64..2000.0, ttft in 0.0f64..20.0, most in 2u32..6,
        prefer in prop::sample::select(vec!["Switch", "Scale"]),
    ) {
        let scaling = format!(r#"{{"maxReplicas": {most}}}"#);
        let mut plant = Plant::new(rules(capacity.len(), &format!(r#"{{"prefer": "{prefer}"}}"#), &scaling), &capacity, &step);
        plant.run(LONG, blocks, ttft);
        // Up where it helps; down again, rung by rung, where the workers that came later made room for quality. A rung that
        // was never seen may turn out too slow, which is learned once.
        prop_assert!(plant.switches <= 2 * (capacity.len() - 1), "{} switches", plant.switches);
        let late = plant.decisions[LONG / 2..].iter().filter(|decision| decision.action != Action::Hold).count();
        prop_assert_eq!(late, 0, "it still changes after {} passes", LONG / 2);
    }

    #[test]
    fn load_that_oscillates_faster_than_the_windows_causes_none_after_the_first(
        low in 0.0f64..85.0, high in 85.0f64..400.0, up in 1usize..60, down in 1usize..55, factor in 1.0f64..8.0,
    ) {
        let mut plant = Plant::new(rules(2, r#"{"minDwellSeconds": 0, "maxSwitchesPerHour": 240}"#, "{}"), &[100.0, 100.0 * factor], &[1.0, 1.0]);
        // The window toward quality is 300 s = 60 passes: no quiet time is as long.
        for _ in 0..12 {
            plant.run(up, high, 0.1);
            plant.run(down, low, 0.1);
        }
        prop_assert!(plant.switches <= 1, "{} switches", plant.switches);
    }

    #[test]
    fn stale_metrics_change_nothing(
        (capacity, step) in ladder(), blocks in 0.0f64..2000.0, active in 0usize..4, replicas in 1u32..5, age in 16i64..10_000,
        before in 0usize..4, loss in 0usize..3,
    ) {
        let n = capacity.len();
        let mut plant = Plant::new(rules(n, "{}", r#"{"minReplicas": 1, "maxReplicas": 5}"#), &capacity, &step);
        plant.active = active.min(n - 1);
        plant.replicas = replicas;
        // A window that is nearly over when the metrics go.
        for _ in 0..before.min(3) {
            let seen = plant.observe(blocks, 9.0);
            plant.history.record(&plant.rules, &seen, plant.now);
            plant.now += SignedDuration::from_secs(INTERVAL);
        }
        for _ in 0..200 {
            let mut seen = plant.observe(blocks, 9.0);
            for worker in &mut seen.workers {
                let Replica::Ready(sample) = worker else { continue };
                match (loss, sample.as_mut()) {
                    (0, Some(sample)) => sample.at -= SignedDuration::from_secs(age),
                    (1, Some(sample)) => sample.kv = None,
                    _ => *sample = None,
                }
            }
            plant.history.record(&plant.rules, &seen, plant.now);
            let decision = decide(&plant.rules, &seen, &plant.history, plant.now);
            plant.now += SignedDuration::from_secs(INTERVAL);
            prop_assert_eq!(decision.action, Action::Hold);
            prop_assert_eq!(decision.reason, Reason::MetricsUnavailable);
            prop_assert_eq!(decision.pressure, None);
        }
    }

    #[test]
    fn bounds_hold_and_there_is_one_action_at_a_time(
        (capacity, step) in ladder(), loads in prop::collection::vec((0.0f64..3000.0, 0.0f64..30.0, 1usize..100), 1..12),
        min in 1u32..4, more in 0u32..8, prefer in prop::sample::select(vec!["Switch", "Scale"]),
    ) {
        let n = capacity.len();
        let scaling = format!(r#"{{"minReplicas": {min}, "maxReplicas": {}}}"#, min + more);
        let mut plant = Plant::new(rules(n, &format!(r#"{{"prefer": "{prefer}"}}"#), &scaling), &capacity, &step);
        plant.replicas = min;
        // `pass` asserts both for each decision.
        for (blocks, ttft, passes) in loads {
            plant.run(passes, blocks, ttft);
        }
    }

    #[test]
    fn the_same_history_gives_the_same_decision((capacity, step) in ladder(), loads in prop::collection::vec((0.0f64..3000.0, 1usize..40), 1..6)) {
        let n = capacity.len();
        let day = || {
            let mut plant = Plant::new(rules(n, "{}", r#"{"maxReplicas": 4}"#), &capacity, &step);
            for (blocks, passes) in &loads {
                plant.run(*passes, *blocks, 1.0);
            }
            (plant.decisions, plant.history)
        };
        prop_assert_eq!(day(), day());
    }

    #[test]
    fn compute_bound_overload_never_climbs(blocks in 0.0f64..4000.0, ttft in 4.0f64..60.0, factor in 1.0f64..9.0, tokens in 130.0f64..4000.0, reported in any::<bool>()) {
        let mut plant = Plant::new(rules(2, "{}", "{}"), &[100.0, 100.0 * factor], &[1.0, 1.2]);
        plant.compute_bound_tokens = Some(130.0);
        plant.tokens_per_step = Some(tokens);
        let weights = |bytes| Rung { weight_bytes: Some(bytes), ..Rung::default() };
        if !reported {
            plant.rungs = vec![weights(70 << 30), weights(38 << 30)];
        }
        plant.run(300, blocks, ttft);
        prop_assert_eq!(plant.switches, 0);
    }

    #[test]
    fn an_exhausted_switch_budget_never_strands_a_peak_in_quality(factor in 1.5f64..9.0, earlier in 1usize..240) {
        let switching = r#"{"maxSwitchesPerHour": 1, "minDwellSeconds": 86400}"#;
        let mut plant = Plant::new(rules(2, switching, "{}"), &[100.0, 100.0 * factor], &[1.0, 1.0]);
        let now = plant.now;
        plant.history = modelprofile_policy::History::with_switches((0..earlier).map(|i| now - SignedDuration::from_secs(i as i64)).collect::<Vec<_>>().into_iter().rev());
        plant.run(5, 120.0, 0.1);
        prop_assert_eq!(plant.active, 1);
    }

    #[test]
    fn a_replica_that_stays_pending_never_blocks_the_climb(
        factor in 1.5f64..9.0, prefer in prop::sample::select(vec!["Switch", "Scale"]), starting in 0usize..40,
    ) {
        let mut plant = Plant::new(rules(2, &format!(r#"{{"prefer": "{prefer}"}}"#), r#"{"maxReplicas": 8}"#), &[100.0, 100.0 * factor], &[1.0, 1.0]);
        plant.replicas = 2;
        plant.unplaceable = 1;
        // It is starting until its start-up limit, then it counts as one that does not come.
        for _ in 0..starting {
            let mut seen = plant.observe(120.0, 0.1);
            seen.workers[1] = Replica::Starting;
            plant.history.record(&plant.rules, &seen, plant.now);
            plant.now += SignedDuration::from_secs(INTERVAL);
        }
        plant.run(5, 120.0, 0.1);
        prop_assert_eq!(plant.active, 1);
    }

    #[test]
    fn a_blocked_rung_is_never_chosen_whatever_the_load(
        (capacity, step) in ladder(), loads in prop::collection::vec((0.0f64..3000.0, 0.0f64..30.0, 1usize..60), 1..8),
        blocked in prop::collection::vec(prop::option::of(any::<bool>()), 4), active in 0usize..4,
        mode in prop::sample::select(vec!["{}", r#"{"mode": "Pinned", "pinnedProfile": "PIN"}"#, r#"{"mode": "Recommend"}"#]), pin in 0usize..4,
    ) {
        let n = capacity.len();
        let names = rules(n, "{}", "{}").names;
        let switching = mode.replace("PIN", &names[pin.min(n - 1)]);
        let mut plant = Plant::new(rules(n, &switching, "{}"), &capacity, &step);
        plant.active = active.min(n - 1);
        for (rung, blocked) in plant.rungs.iter_mut().zip(&blocked) {
            rung.verdict = blocked.map_or(Verdict::Passed, |figure| if figure { beyond() } else { Verdict::NotMeasured });
        }
        let may_serve: Vec<bool> = plant.rungs.iter().map(|rung| rung.verdict == Verdict::Passed).collect();
        for (blocks, ttft, passes) in loads {
            for _ in 0..passes {
                let before = plant.active;
                let decision = plant.pass(blocks, ttft);
                if may_serve.contains(&true) {
                    prop_assert!(may_serve[decision.rung], "{:?} of {:?}", decision, may_serve);
                } else {
                    prop_assert_eq!((decision.rung, decision.action == Action::Switch), (before, false));
                }
                if let Some(rung) = decision.recommended {
                    prop_assert!(may_serve[rung], "recommended {:?} of {:?}", decision, may_serve);
                }
            }
        }
    }

    #[test]
    fn a_gate_that_warns_changes_no_decision(
        (capacity, step) in ladder(), loads in prop::collection::vec((0.0f64..3000.0, 0.0f64..30.0, 1usize..60), 1..6),
        failed in prop::collection::vec(any::<bool>(), 4),
    ) {
        let day = |failed: &[bool]| {
            let mut rules = rules(capacity.len(), "{}", r#"{"maxReplicas": 4}"#);
            rules.quality.on_failure = OnFailure::Warn;
            let mut plant = Plant::new(rules, &capacity, &step);
            for (rung, failed) in plant.rungs.iter_mut().zip(failed) {
                rung.verdict = if *failed { beyond() } else { Verdict::Passed };
            }
            for (blocks, ttft, passes) in &loads {
                plant.run(*passes, *blocks, *ttft);
            }
            plant.decisions
        };
        prop_assert_eq!(day(&failed), day(&[]));
    }
}
