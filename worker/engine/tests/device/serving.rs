//! An engine on the device: texts, the prefix cache, cancellation, another ladder, failures of the driver.

use std::{
    thread,
    time::{Duration, Instant},
};

use modelprofile_engine::{
    FinishReason, GenerateRequest, ProfileSpec, TokenEvent, WeightFormat, ZeroPoint,
    artifact::Artifact,
    checkpoint::Checkpoint,
    serve::{Engine, EngineConfig, EngineHandle, SwitchEnd, prepare, start},
};
use modelprofile_kernels::{
    BLOCK_TOKENS, KvFormat,
    cuda::{Cuda, CudaOptions},
};
use rstest::rstest;

use crate::{
    device::{alone, cpu, engine, engine_on, gpu, has, noted, reference, watched},
    sim::{self, Sim},
    support::{self, gate::Gate},
    tiny::{PAIRED, Shape, TINY, checkpoint, prompt},
};

const INT4: WeightFormat = WeightFormat::Int4 { group: 32, zero: ZeroPoint::Minimum };

/// A ladder of these formats, with names from quality to density.
fn config(formats: &[(&str, WeightFormat)]) -> EngineConfig {
    EngineConfig {
        max_context_tokens: Some(256),
        max_batched_tokens: 64,
        max_running: 8,
        ..support::config(formats.iter().map(|(name, format)| support::profile(name, *format)).collect(), 64)
    }
}

fn two() -> EngineConfig {
    config(&[("quality", WeightFormat::Bf16), ("density", INT4)])
}

/// A greedy text, with how far ahead of the next each token was.
fn text(engine: &EngineHandle, prompt: &[u32], tokens: usize) -> Vec<(u32, f32)> {
    let request = GenerateRequest { logprobs: Some(2), ..support::greedy(prompt, tokens) };
    let mut stream = engine.submit(request).unwrap();
    let mut text = Vec::new();
    loop {
        match stream.blocking_next().unwrap() {
            TokenEvent::Token { token, logprob: Some(logprob), .. } => {
                text.push((token, logprob.top[0].1 - logprob.top[1].1));
            }
            TokenEvent::Finished { reason, error, .. } => {
                assert_ne!(reason, FinishReason::Error, "{error:?}");
                return text;
            }
            _ => {}
        }
    }
}

/// A lead below which another order of sums may choose the other token.
const NEAR_TIE: f32 = 0.2;

#[rstest]
#[case(1, TINY, WeightFormat::Bf16, KvFormat::Bf16)]
#[case(1, TINY, INT4, KvFormat::Fp8E5m2)]
#[case(2, PAIRED, WeightFormat::Bf16, KvFormat::Bf16)]
#[case(2, PAIRED, INT4, KvFormat::Fp8E5m2)]
fn texts_are_the_cpus_but_for_near_ties(
    #[case] gpus: usize,
    #[case] shape: Shape,
    #[case] format: WeightFormat,
    #[case] kv: KvFormat,
) {
    let _alone = alone();
    if !has(gpus) {
        return;
    }
    let checkpoint = checkpoint(shape);
    let profile = ProfileSpec { kv, ..support::profile("one", format) };
    let config = EngineConfig { profiles: vec![profile], ..two() };
    let (found, expected) = (engine_on(gpus, &checkpoint, &config), reference(&checkpoint, &config));
    let mut equal = 0;
    for index in 0..4 {
        let prompt = prompt(7 + 13 * index as usize, index);
        let [found, expected] = [&found, &expected].map(|engine| text(engine, &prompt, 20));
        match found.iter().zip(&expected).position(|(a, b)| a.0 != b.0) {
            None => equal += 1,
            Some(at) => assert!(expected[at].1 < NEAR_TIE, "text {index}, token {at}: {:?}", expected[at]),
        }
    }
    assert!(equal >= 2, "only {equal} of 4 texts are equal");
}

#[test]
fn a_seed_gives_the_same_text_whatever_else_is_in_the_batch_when_deterministic() {
    let _alone = alone();
    let (checkpoint, config) = (checkpoint(TINY), two());
    let options = CudaOptions { deterministic: true, budget: Some(config.memory_budget as usize), ..sim::options() };
    let gpu = Cuda::new(options).unwrap();
    let engine = noted(start(gpu, &checkpoint, &config, Box::new(support::Ignore), &mut |_, _| {}).unwrap());
    let mut request = support::greedy(&prompt(9, 0), 16);
    request.sampling.temperature = 0.9;
    request.sampling.seed = Some(7);
    let alone = support::tokens(&mut engine.submit(request.clone()).unwrap());
    let others: Vec<_> =
        (1..5).map(|i| engine.submit(support::greedy(&prompt(10 + 9 * i as usize, i), 20)).unwrap()).collect();
    assert_eq!(support::tokens(&mut engine.submit(request).unwrap()), alone);
    drop(others);
}

fn cached(engine: &EngineHandle, prompt: &[u32]) -> usize {
    let mut stream = engine.submit(support::greedy(prompt, 1)).unwrap();
    loop {
        if let TokenEvent::Finished { cached_tokens, error, .. } = stream.blocking_next().unwrap() {
            assert_eq!(error, None);
            return cached_tokens;
        }
    }
}

fn switch(engine: &EngineHandle, to: &str) {
    let result = engine.switch(to).blocking_recv().unwrap();
    assert_eq!(result.outcome, SwitchEnd::Completed, "{result:?}");
}

#[rstest]
#[case(1, TINY)]
#[case(2, PAIRED)]
fn quality_reuses_no_block_of_density_but_density_those_of_quality(#[case] gpus: usize, #[case] shape: Shape) {
    let _alone = alone();
    if !has(gpus) {
        return;
    }
    let engine = engine_on(gpus, &checkpoint(shape), &two());
    let (one, other) = (prompt(3 * BLOCK_TOKENS, 0), prompt(3 * BLOCK_TOKENS, 1));
    // The last token is always computed, and its block with it.
    let whole = 2 * BLOCK_TOKENS;
    switch(&engine, "density");
    assert_eq!((cached(&engine, &one), cached(&engine, &one)), (0, whole));
    switch(&engine, "quality");
    assert_eq!((cached(&engine, &one), cached(&engine, &one)), (0, whole), "quality after density");
    assert_eq!(cached(&engine, &other), 0);
    switch(&engine, "density");
    assert_eq!(cached(&engine, &other), whole, "density after quality");
}

#[test]
fn a_cancelled_request_frees_its_blocks() {
    let _alone = alone();
    let engine = engine(&checkpoint(TINY), &two());
    let mut stream = engine.submit(support::greedy(&prompt(20, 0), 200)).unwrap();
    assert!(matches!(stream.blocking_next(), Some(TokenEvent::Token { .. })));
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.snapshot().blocks_used > 0 {
        assert!(Instant::now() < deadline, "{:?}", engine.snapshot());
        thread::yield_now();
    }
}

fn artifacts(checkpoint: &Checkpoint, config: &EngineConfig) -> Vec<(String, Artifact)> {
    let artifacts = prepare(&mut cpu(), checkpoint, config, &mut |_, _| {}).unwrap();
    config.profiles.iter().map(|profile| profile.name.clone()).zip(artifacts).collect()
}

#[test]
fn rungs_join_leave_and_move_under_a_request_that_goes_on() {
    let _alone = alone();
    let checkpoint = checkpoint(TINY);
    let all = config(&[("quality", WeightFormat::Bf16), ("middle", WeightFormat::Fp8), ("density", INT4)]);
    let artifacts = artifacts(&checkpoint, &all);
    let ladder = |names: &[&str]| -> Vec<(String, Artifact)> {
        names.iter().map(|name| artifacts.iter().find(|(known, _)| known == name).unwrap().clone()).collect()
    };
    let engine = engine(&checkpoint, &EngineConfig { profiles: all.profiles[1..2].to_vec(), ..all });
    let set = |names: &[&str]| assert_eq!(engine.set_ladder(ladder(names)).blocking_recv().unwrap(), []);
    let names = || engine.snapshot().profiles.iter().map(|p| p.name.to_string()).collect::<Vec<_>>().join(" ");

    let mut stream = engine.submit(support::greedy(&prompt(5, 0), 60)).unwrap();
    let mut profiles = Vec::new();
    while let Some(event) = stream.blocking_next() {
        match event {
            TokenEvent::Token { profile, .. } => profiles.push(profile),
            TokenEvent::Finished { error, .. } => assert_eq!(error, None),
            TokenEvent::Prompt(_) => {}
        }
        if profiles.len() == 1 {
            set(&["quality", "middle", "density"]);
            switch(&engine, "density");
            // What is being left has gone when the answer comes.
            set(&["density", "quality"]);
            assert_eq!(names(), "density quality");
            switch(&engine, "quality");
            profiles.push("".into());
        }
    }
    assert_eq!(profiles.len(), 61);
    assert_eq!(&**profiles.last().unwrap(), "quality");
}

#[test]
fn a_rung_that_leaves_the_ladder_while_it_is_switched_to_is_switched_to_and_stays() {
    let _alone = alone();
    let (checkpoint, config) = (checkpoint(TINY), two());
    let artifacts = artifacts(&checkpoint, &config);
    let gate = Gate::closed_at(3);
    let engine = watched(&checkpoint, &config, Box::new(gate.clone()));
    let mut stream = engine.submit(support::greedy(&prompt(5, 0), 30)).unwrap();
    gate.reached();
    let switched = engine.switch("density");
    let declined = engine.set_ladder(artifacts[..1].to_vec());
    gate.open();
    assert_eq!(declined.blocking_recv().unwrap(), []);
    let result = switched.blocking_recv().unwrap();
    // Asked for before the ladder changed; whether it had begun by then decides.
    assert!(matches!(result.outcome, SwitchEnd::Completed | SwitchEnd::Refused), "{result:?}");
    assert_eq!(support::tokens(&mut stream).len(), 30);
    switch(&engine, "quality");
    assert_eq!(support::generate(&engine, &prompt(4, 1), 4).len(), 4);
}

/// What ends a request early, if something does.
fn error(engine: &EngineHandle, tokens: usize) -> Option<String> {
    let mut stream = engine.submit(support::greedy(&prompt(21, 2), tokens)).unwrap();
    loop {
        if let TokenEvent::Finished { error, .. } = stream.blocking_next().unwrap() {
            return error;
        }
    }
}

#[rstest]
#[case("cuLaunchKernelEx", true)]
#[case("cuMemcpyHtoDAsync_v2", true)]
#[case("cuMemcpyDtoHAsync_v2", true)]
#[case("cuStreamSynchronize", true)]
#[case("cuGraphLaunch", false)]
fn a_failure_of_the_driver_in_a_step_ends_its_requests_and_no_others(#[case] function: &str, #[case] fatal: bool) {
    let _alone = alone();
    let Some(sim) = Sim::find() else { return };
    let checkpoint = checkpoint(TINY);
    let engine = engine(&checkpoint, &two());
    let expected = support::generate(&engine, &prompt(9, 1), 8);
    for nth in [1, 5] {
        sim.fail(function, nth, 999);
        let error = error(&engine, 8);
        sim.calm();
        assert_eq!(error.is_some(), fatal, "{function}, call {nth}: {error:?}");
        assert!(error.is_none_or(|error| !error.is_empty()));
        assert_eq!(support::generate(&engine, &prompt(9, 1), 8), expected, "{function}, call {nth}");
    }
    // The last token is sent before the state is told.
    let asked = Instant::now();
    loop {
        let snapshot = engine.snapshot();
        if (snapshot.running, snapshot.waiting) == (0, 0) {
            break;
        }
        assert!(asked.elapsed() < Duration::from_secs(30), "{snapshot:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_one_that_serves() {
    let _alone = alone();
    let checkpoint = checkpoint(TINY);
    let with = |mib: u64| EngineConfig { memory_budget: mib << 20, ..two() };
    let refused = start(gpu(19 << 20), &checkpoint, &with(19), Box::new(support::Ignore), &mut |_, _| {});
    let text = refused.err().unwrap().to_string();
    let least: u64 = text.split("at least ").nth(1).unwrap().split("Mi").next().unwrap().parse().unwrap();
    let engine = engine(&checkpoint, &with(least));
    let full = 256 - 20;
    assert_eq!(support::generate(&engine, &prompt(20, 0), full).len(), full, "a request of the longest context");
    switch(&engine, "density");
    assert_eq!(support::generate(&engine, &prompt(20, 1), 20).len(), 20);
}
