//! The simulation's laws, with random traffic.

use modelprofile_api::{KvCacheFormat, Manifest, ModelProfileSpec, Strategy as Carry, SwitchingMode, WeightFormat};
use proptest::prelude::*;

use super::*;
use crate::traces::Arrival;
use modelprofile_roofline::published::{h100, llama_70b};

const MANIFEST: &str = include_str!("../../../deploy/examples/llama-70b.yaml");

fn spec() -> ModelProfileSpec {
    let mut spec = Manifest::from_yaml(MANIFEST).unwrap().spec;
    spec.switching.schedule = None;
    spec
}

/// Llama 70B on one GPU, with an FP8 and an INT4 rung.
fn scenario(replicas: u32, spec: ModelProfileSpec) -> Scenario {
    let rung = |weights| {
        let precision = Precision { weights, group: 128, kv: KvCacheFormat::Fp8E4m3, tensor_parallel: 1 };
        let roofline = Roofline::new(&h100(), &llama_70b(), precision, Constants::default());
        RungModel::new(roofline, roofline.kv_capacity(76.0 * f64::from(1 << 30), 1.0), h100().host_link)
    };
    let rungs = vec![rung(WeightFormat::Fp8), rung(WeightFormat::Int4)];
    Scenario {
        name: "test".to_owned(),
        spec,
        compute_bound_tokens: rungs[0].roofline.crossover(&rungs[1].roofline),
        rungs,
        memory_bytes: 76 << 30,
        rung: 0,
        replicas,
        load_seconds: vec![60.0, 40.0],
        interval: 5.0,
        start: "2026-01-05T00:00:00Z".parse().unwrap(),
        slo_seconds: 4.0,
        seed: 1,
    }
}

/// `count` requests at a steady rate.
fn steady(from: f64, per_second: f64, count: u32, prompt: u32, output: u32) -> Vec<Arrival> {
    (0..count)
        .map(|i| Arrival { at: from + f64::from(i) / per_second, prompt_tokens: prompt, output_tokens: output })
        .collect()
}

fn pinned(profile: &str) -> ModelProfileSpec {
    let mut spec = spec();
    spec.switching.mode = SwitchingMode::Pinned;
    spec.switching.pinned_profile = Some(profile.to_owned());
    spec
}

#[test]
fn a_request_alone_takes_its_prefill_and_its_steps() {
    let scenario = scenario(1, pinned("quality"));
    let outcome = simulate(&scenario, &[Arrival { at: 1.0, prompt_tokens: 1000, output_tokens: 101 }]).unwrap();
    let roofline = scenario.rungs[0].roofline;
    let prefill = roofline.step_seconds(Batch { prefill: 1000.0, prefill_context: 500_000.0, ..Batch::default() });
    let decode =
        |context: f64| roofline.step_seconds(Batch { decode: 1.0, decode_context: context, ..Batch::default() });
    let expected: f64 = prefill + (0..100).map(|i| decode(f64::from(1001 + i))).sum::<f64>();
    assert_eq!((outcome.completed, outcome.tokens), (1, [101, 0, 0, 0]));
    assert!((outcome.seconds - 1.0 - expected).abs() < 1e-6, "{} {expected}", outcome.seconds);
}

#[test]
fn a_peak_makes_it_switch_in_place_and_quiet_makes_it_return() {
    let mut requests = steady(0.0, 0.2, 60, 500, 200);
    requests.extend(steady(300.0, 2.5, 750, 200, 800));
    requests.extend(steady(620.0, 0.2, 300, 500, 200));
    let mut switching = spec();
    switching.scaling.max_replicas = 1;
    let with = simulate(&scenario(1, switching), &requests).unwrap();
    let without = simulate(&scenario(1, pinned("quality")), &requests).unwrap();
    assert_eq!(with.completed, requests.len() as u64);
    assert_eq!(with.switches, 2, "there and back");
    assert!(with.tokens[0] > 0 && with.tokens[1] > 0, "{:?}", with.tokens);
    let p95 = |outcome: &Outcome| outcome.time_to_first_token.quantile(0.95);
    assert!(p95(&with) < 0.67 * p95(&without), "{} {}", p95(&with), p95(&without));
}

#[test]
fn a_peak_of_long_prompts_does_not_make_it_switch_where_density_computes_slower() {
    let mut requests = steady(0.0, 0.2, 60, 500, 200);
    // Of many lengths: equal ones end together, and then whole intervals have no prompt in them.
    requests.extend((0..900).map(|i| Arrival {
        at: 300.0 + f64::from(i) / 3.0,
        prompt_tokens: 1500,
        output_tokens: 100 + i * 97 % 400,
    }));
    let mut switching = spec();
    switching.scaling.max_replicas = 1;
    let outcome = simulate(&scenario(1, switching), &requests).unwrap();
    assert_eq!((outcome.completed, outcome.changes), (960, vec![]));
}

#[test]
fn intervals_without_prompts_do_not_hide_that_compute_is_the_bound() {
    // Requests of equal length end together, so that they are also admitted together.
    let mut requests = steady(0.0, 0.2, 60, 500, 200);
    requests.extend(steady(300.0, 3.0, 900, 1500, 300));
    let mut switching = spec();
    switching.scaling.max_replicas = 1;
    let outcome = simulate(&scenario(1, switching), &requests).unwrap();
    assert_eq!((outcome.completed, outcome.changes), (960, vec![]));
}

#[test]
fn more_workers_come_when_only_they_help() {
    let mut spec = pinned("quality");
    spec.scaling.max_replicas = 4;
    let outcome = simulate(&scenario(1, spec), &steady(0.0, 3.0, 1500, 1500, 300)).unwrap();
    assert_eq!(outcome.completed, 1500);
    assert_eq!(outcome.switches, 0);
    assert!(outcome.scalings > 0 && outcome.gpu_seconds > 1.2 * outcome.seconds);
}

#[test]
fn every_strategy_carries_a_switch_out_and_loses_nothing() {
    for strategy in [Carry::InPlace, Carry::Surge, Carry::Recreate] {
        let mut spec = spec();
        spec.switching.strategy = strategy;
        spec.scaling.max_replicas = 2;
        spec.scaling.min_replicas = 2;
        // Long answers fill the cache before they fill the arithmetic: the load that density is for.
        let outcome = simulate(&scenario(2, spec), &steady(0.0, 5.0, 2500, 200, 800)).unwrap();
        assert_eq!(outcome.completed, 2500, "{strategy:?}");
        assert!(outcome.switches >= 1 && outcome.tokens[1] > 0, "{strategy:?}");
        assert_eq!(outcome.tokens.iter().sum::<u64>(), 2500 * 800, "{strategy:?}");
    }
}

#[test]
fn a_hundred_thousand_requests_over_a_hundred_workers_take_seconds() {
    let mut spec = spec();
    spec.scaling.min_replicas = 100;
    spec.scaling.max_replicas = 100;
    let requests = steady(0.0, 60.0, 100_000, 1000, 200);
    let start = std::time::Instant::now();
    let outcome = simulate(&scenario(100, spec), &requests).unwrap();
    assert_eq!(outcome.completed, 100_000);
    let took = start.elapsed().as_secs_f64();
    println!("{:.0} requests per second", 100_000.0 / took);
    assert!(took < 30.0, "{took}");
}

#[test]
fn a_saturated_worker_reaches_what_the_formula_says() {
    let scenario = scenario(1, pinned("density"));
    let requests: Vec<_> = (0..600).map(|_| Arrival { at: 0.0, prompt_tokens: 500, output_tokens: 500 }).collect();
    let mut dense = scenario.clone();
    dense.rung = 1;
    let outcome = simulate(&dense, &requests).unwrap();
    let rate = outcome.tokens[1] as f64 / outcome.seconds;
    let running = 222_000.0 / 750.0;
    let batch =
        Batch { decode: running, decode_context: running * 750.0, prefill: running, prefill_context: running * 250.0 };
    let expected = running / dense.rungs[1].roofline.step_seconds(batch);
    assert!((0.6..1.3).contains(&(rate / expected)), "{rate} {expected}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn tokens_are_conserved_and_the_cache_is_never_overfull(
        gaps in prop::collection::vec((0.0f64..3.0, 1u32..6000, 1u32..1500), 1..150),
        replicas in 1u32..4,
        strategy in prop::sample::select(vec![Carry::InPlace, Carry::Surge, Carry::Recreate]),
        seed: u64,
    ) {
        let mut at = 0.0;
        let requests: Vec<_> = gaps.iter().map(|&(gap, prompt, output)| {
            at += gap;
            Arrival { at, prompt_tokens: prompt, output_tokens: output }
        }).collect();
        let mut spec = spec();
        spec.switching.strategy = strategy;
        spec.switching.to_density.stabilization_window_seconds = 5;
        spec.switching.to_quality.stabilization_window_seconds = 20;
        spec.switching.min_dwell_seconds = 10;
        spec.scaling.min_replicas = replicas;
        let scenario = Scenario { seed, ..scenario(replicas, spec) };
        let outcome = simulate(&scenario, &requests).unwrap();
        let asked: u64 = requests.iter().map(|request| u64::from(request.output_tokens)).sum();
        prop_assert_eq!(outcome.completed, requests.len() as u64);
        prop_assert_eq!(outcome.tokens.iter().sum::<u64>(), asked);
        prop_assert!(outcome.worst_use <= 1.0, "{}", outcome.worst_use);
        prop_assert_eq!(simulate(&scenario, &requests).unwrap(), outcome, "the same seed gives the same outcome");
    }
}
