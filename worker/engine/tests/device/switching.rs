//! The switch on the device, layer by layer: requests in flight go on, and the budget holds at every instant.

use std::{
    thread,
    time::{Duration, Instant},
};

use modelprofile_engine::{
    FinishReason, TokenEvent, WeightFormat, ZeroPoint,
    serve::{Engine, EngineConfig, EngineHandle, SHRINK_PATIENCE, SwitchEnd, TokenStream},
};
use modelprofile_kernels::BLOCK_TOKENS;
use rstest::rstest;

use crate::{
    device::{alone, engine, engine_on, has, watched, watched_on},
    sim::Sim,
    support::{self, gate::Gate},
    tiny::{PAIRED, Tiny, WIDE, checkpoint, prompt},
};

const INT4: WeightFormat = WeightFormat::Int4 { group: 128, zero: ZeroPoint::Minimum };
const CONTEXT: usize = 64;
/// Blocks of the cache beside the larger profile's weights: room for three of the longest requests.
const FEW: usize = 12;

fn roomy() -> EngineConfig {
    let ladder = vec![support::profile("quality", WeightFormat::Bf16), support::profile("density", INT4)];
    EngineConfig {
        max_context_tokens: Some(CONTEXT),
        max_batched_tokens: 32,
        max_running: 6,
        ..support::config(ladder, 64)
    }
}

/// A model for so many GPUs.
fn model(gpus: usize) -> Tiny {
    checkpoint(if gpus == 1 { WIDE } else { PAIRED })
}

/// A budget of each GPU that leaves the larger profile so few blocks; the smaller one has some hundred.
fn config(gpus: usize) -> EngineConfig {
    let engine = engine_on(gpus, &model(gpus), &roomy());
    let (plan, weights) = (engine.limits().memory, engine.snapshot().profiles[0].weight_bytes);
    drop(engine);
    crate::device::given_back();
    EngineConfig { memory_budget: plan.workspace + weights + FEW as u64 * plan.block_bytes, ..roomy() }
}

fn blocks_of(engine: &EngineHandle, profile: &str) -> usize {
    let snapshot = engine.snapshot();
    snapshot.profiles.iter().find(|p| &*p.name == profile).unwrap().kv_tokens as usize / BLOCK_TOKENS
}

/// Tokens by profile, in order: (profile, how many).
fn text(stream: &mut TokenStream) -> Vec<(String, usize)> {
    let mut runs: Vec<(String, usize)> = Vec::new();
    loop {
        match stream.blocking_next() {
            Some(TokenEvent::Token { profile, .. }) => match runs.last_mut() {
                Some((last, count)) if **last == *profile => *count += 1,
                _ => runs.push((profile.to_string(), 1)),
            },
            Some(TokenEvent::Finished { reason, error, .. }) => {
                assert_eq!(reason, FinishReason::Length, "{error:?}");
                return runs;
            }
            Some(TokenEvent::Prompt(_)) => {}
            None => panic!("the engine died"),
        }
    }
}

fn all(runs: &[(String, usize)]) -> usize {
    runs.iter().map(|(_, count)| count).sum()
}

fn within_budget(what: &str, gpus: usize, config: &EngineConfig) {
    let (Some(sim), budget) = (Sim::find(), config.memory_budget) else { return };
    for gpu in 0..gpus {
        let peak = sim.peak_of(gpu);
        assert!(peak <= budget, "{what}: {peak} bytes of {budget} on GPU {gpu}");
        assert!(peak > budget / 3, "{what}: a budget of which {peak} bytes of GPU {gpu} are used shows nothing");
    }
}

#[rstest]
fn requests_in_flight_go_on_through_switches_both_ways_within_the_budget(#[values(1, 2)] gpus: usize) {
    let _alone = alone();
    if !has(gpus) {
        return;
    }
    let checkpoint = model(gpus);
    let config = config(gpus);
    let engine = engine_on(gpus, &checkpoint, &config);
    let (few, many) = (blocks_of(&engine, "quality"), blocks_of(&engine, "density"));
    // On two GPUs half of each weight is rounded up to whole chunks.
    let times = if gpus == 1 { 10 } else { 8 };
    assert!(few == FEW && many > times * few, "{few} and {many} blocks");
    let mut streams: Vec<_> =
        (0..3).map(|i| engine.submit(support::greedy(&prompt(7 + i, i as u32), 24)).unwrap()).collect();
    for to in ["density", "quality", "density", "quality"] {
        let result = engine.switch(to).blocking_recv().unwrap();
        assert_eq!((result.outcome, result.preempted), (SwitchEnd::Completed, 0), "{result:?}");
        assert!(result.message.contains("modelled"), "{}", result.message);
        let snapshot = engine.snapshot();
        assert_eq!((&*snapshot.active, snapshot.target), (to, None));
        assert_eq!(snapshot.blocks_total, if to == "density" { many } else { few });
        let memory = snapshot.memory;
        assert!(memory.weights + memory.kv + memory.workspace <= memory.budget, "{memory:?}");
    }
    for stream in &mut streams {
        assert_eq!(all(&text(stream)), 24);
    }
    drop(engine);
    within_budget("start, traffic and four switches", gpus, &config);
}

#[test]
fn the_pool_is_filled_to_its_last_block_in_both_profiles() {
    let _alone = alone();
    let checkpoint = checkpoint(WIDE);
    let config = config(1);
    let engine = engine(&checkpoint, &config);
    for profile in ["quality", "density"] {
        let result = engine.switch(profile).blocking_recv().unwrap();
        assert_eq!(result.outcome, SwitchEnd::Completed, "{result:?}");
        // Cached blocks fill the pool, and are handed out again.
        let (mut index, mut seen) = (0, 0);
        while seen < 2 && index < 14 {
            let stream = &mut engine.submit(support::greedy(&prompt(CONTEXT - 2, 100 + index), 2)).unwrap();
            assert_eq!(all(&text(stream)), 2);
            let snapshot = engine.snapshot();
            seen += usize::from(snapshot.blocks_used + snapshot.blocks_cached + 1 >= snapshot.blocks_total);
            index += 1;
        }
        assert!(profile == "density" || seen == 2, "{:?}", engine.snapshot());
    }
    drop(engine);
    within_budget("a full pool", 1, &config);
}

#[test]
fn a_mixed_step_counts_as_the_less_precise_profiles_and_a_switch_back_waits_for_its_end() {
    let _alone = alone();
    let checkpoint = checkpoint(WIDE);
    let gate = Gate::closed_at(3);
    let config = config(1);
    let engine = watched(&checkpoint, &config, Box::new(gate.clone()));
    let mut stream = engine.submit(support::greedy(&prompt(5, 0), 30)).unwrap();
    gate.reached();
    let there = engine.switch("density");
    gate.one_more();
    gate.one_more();
    if Sim::find().is_some() {
        // The emulated device copies no faster than it is asked how far it is.
        let snapshot = engine.snapshot();
        assert_eq!((&*snapshot.active, snapshot.target.as_deref()), ("density", Some("density")), "{snapshot:?}");
    }
    let joined = engine.switch("density");
    let replaced = engine.switch("quality");
    let joined_too = engine.switch("density");
    let back = engine.switch("quality");
    gate.open();
    for reply in [there, joined, joined_too] {
        assert_eq!(reply.blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    }
    // The latest request wins: one that has not begun is replaced by one for the profile that is coming.
    for (reply, outcome) in [(replaced, SwitchEnd::Replaced), (back, SwitchEnd::Completed)] {
        let result = reply.blocking_recv().unwrap();
        assert_eq!((result.outcome, &*result.from, &*result.to), (outcome, "density", "quality"));
    }
    let runs = text(&mut stream);
    let names: Vec<&str> = runs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names, all(&runs)), (vec!["quality", "density", "quality"], 30), "{runs:?}");
    assert_eq!(runs[0].1, 3, "mixed steps are density's");
    drop(engine);
    within_budget("a switch there and back", 1, &config);
}

#[rstest]
fn a_shrinking_switch_preempts_and_all_requests_finish(#[values(1, 2)] gpus: usize) {
    let _alone = alone();
    if !has(gpus) {
        return;
    }
    let checkpoint = model(gpus);
    let mut config = config(gpus);
    config.start = Some("density".into());
    let gate = Gate::closed_at(8);
    let engine = watched_on(gpus, &checkpoint, &config, Box::new(gate.clone()));
    let few = blocks_of(&engine, "quality");
    let count = 6;
    let mut streams: Vec<_> =
        (0..count as u32).map(|i| engine.submit(support::greedy(&prompt(40, i), 24)).unwrap()).collect();
    gate.reached();
    for _ in 0..40 {
        if engine.snapshot().blocks_used > few {
            break;
        }
        gate.one_more();
    }
    assert!(engine.snapshot().blocks_used > few, "{:?}", engine.snapshot());
    let asked = Instant::now();
    let switched = engine.switch("quality");
    gate.one_more();
    while asked.elapsed() <= SHRINK_PATIENCE {
        thread::sleep(Duration::from_millis(5));
    }
    gate.open();
    let result = switched.blocking_recv().unwrap();
    assert_eq!(result.outcome, SwitchEnd::Completed, "{result:?}");
    assert!((1..count).contains(&result.preempted), "{result:?}");
    for stream in &mut streams {
        let runs = text(stream);
        assert_eq!(all(&runs), 24, "{runs:?}");
        assert_eq!(runs.last().unwrap().0, "quality");
    }
    assert_eq!(engine.snapshot().blocks_total, few);
    drop(engine);
    within_budget("a switch that preempts", gpus, &config);
}

#[rstest]
fn an_engine_without_requests_switches_and_serves(#[values(1, 2)] gpus: usize) {
    let _alone = alone();
    if !has(gpus) {
        return;
    }
    let checkpoint = model(gpus);
    let config = config(gpus);
    let engine = engine_on(gpus, &checkpoint, &config);
    for to in ["density", "quality"] {
        assert_eq!(engine.switch(to).blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    }
    assert_eq!(support::generate(&engine, &prompt(5, 0), 3).len(), 3);
    drop(engine);
    within_budget("switches without requests", gpus, &config);
}

#[rstest]
#[case("cuMemcpyHtoDAsync_v2")]
#[case("cuMemMap")]
#[case("cuEventRecord")]
fn a_failure_in_a_switch_leaves_an_engine_that_serves_and_switches(#[case] function: &str) {
    let _alone = alone();
    let Some(sim) = Sim::find() else { return };
    let checkpoint = checkpoint(WIDE);
    let gate = Gate::closed_at(2);
    let config = config(1);
    let engine = watched(&checkpoint, &config, Box::new(gate.clone()));
    let mut stream = engine.submit(support::greedy(&prompt(5, 0), 12)).unwrap();
    gate.reached();
    let switched = engine.switch("density");
    sim.fail(function, 2, 999);
    gate.open();
    let result = switched.blocking_recv().unwrap();
    sim.calm();
    assert_eq!(result.outcome, SwitchEnd::Completed, "{result:?}");
    // The request may have been in the step that failed.
    while let Some(event) = stream.blocking_next() {
        if matches!(event, TokenEvent::Finished { .. }) {
            break;
        }
    }
    let found = support::generate(&engine, &prompt(5, 1), 6);
    assert_eq!(engine.switch("quality").blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    assert_eq!(engine.switch("density").blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    assert_eq!(support::generate(&engine, &prompt(5, 1), 6), found, "{function}: the weights that came are whole");
}
