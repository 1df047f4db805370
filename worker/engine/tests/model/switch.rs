//! The in-place switch on the real model: requests in flight go on, the pool follows the budget.

use modelprofile_engine::{
    TokenEvent, WeightFormat,
    serve::{Engine, SwitchEnd},
};

use crate::support;

fn ladder() -> Vec<modelprofile_engine::ProfileSpec> {
    vec![support::profile("quality", WeightFormat::Fp8), support::profile("density", WeightFormat::Q4_1)]
}

const PROMPT: [u32; 5] = [504, 3575, 282, 4649, 314];

#[test]
fn the_density_profile_has_more_kv_blocks_within_the_same_budget() {
    let engine = support::engine(&support::smollm2(), &support::config(ladder(), 400));
    let quality = engine.snapshot();
    assert_eq!(engine.switch("density").blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    let density = engine.snapshot();
    assert!(density.blocks_total > quality.blocks_total, "{density:?} {quality:?}");
    for snapshot in [&quality, &density] {
        let memory = snapshot.memory;
        assert!(memory.weights + memory.kv + memory.workspace <= memory.budget, "{snapshot:?}");
    }
    assert_eq!(engine.switch("quality").blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    assert_eq!(engine.snapshot().blocks_total, quality.blocks_total);
}

#[test]
fn requests_in_flight_go_on_through_twenty_switches() {
    let engine = support::engine(&support::smollm2(), &support::config(ladder(), 400));
    let mut streams: Vec<_> = (0..8).map(|_| engine.submit(support::greedy(&PROMPT, 200)).unwrap()).collect();
    for round in 0..20 {
        let to = ["density", "quality"][round % 2];
        let result = engine.switch(to).blocking_recv().unwrap();
        assert_eq!(result.outcome, SwitchEnd::Completed, "{result:?}");
        assert_eq!(result.preempted, 0, "{result:?}");
    }
    for stream in &mut streams {
        assert_eq!(support::tokens(stream).len(), 200);
    }
}

#[test]
fn each_token_names_the_profile_that_computed_it() {
    let engine = support::engine(&support::smollm2(), &support::config(ladder(), 400));
    let mut stream = engine.submit(support::greedy(&PROMPT, 64)).unwrap();
    let mut seen = Vec::new();
    while let Some(event) = stream.blocking_next() {
        if let TokenEvent::Token { profile, .. } = event {
            if seen.is_empty() {
                drop(engine.switch("density"));
            }
            seen.push(profile.to_string());
        }
    }
    assert_eq!(seen.first().map(String::as_str), Some("quality"));
    assert_eq!(seen.last().map(String::as_str), Some("density"));
}

#[test]
fn an_unknown_profile_is_refused_and_the_engine_serves_on() {
    let engine = support::engine(&support::smollm2(), &support::config(ladder(), 400));
    let result = engine.switch("turbo").blocking_recv().unwrap();
    assert_eq!(result.outcome, SwitchEnd::Unknown);
    assert!(result.message.contains("quality, density"), "{}", result.message);
    assert_eq!(support::generate(&engine, &PROMPT, 4).len(), 4);
}

#[test]
fn a_seed_gives_the_same_text_whatever_else_is_in_the_batch() {
    let engine = support::engine(&support::smollm2(), &support::config(ladder(), 400));
    let mut request = support::greedy(&PROMPT, 48);
    request.sampling.temperature = 0.9;
    request.sampling.seed = Some(7);
    let alone = support::tokens(&mut engine.submit(request.clone()).unwrap());
    let others: Vec<_> = (0..9u32)
        .map(|i| {
            let prompt: Vec<u32> = (0..40 + i * 17).map(|t| 1000 + (t * 31 + i) % 5000).collect();
            engine.submit(support::greedy(&prompt, 60)).unwrap()
        })
        .collect();
    let together = support::tokens(&mut engine.submit(request).unwrap());
    assert_eq!(alone, together);
    drop(others);
}

#[test]
fn a_cancelled_request_frees_its_blocks() {
    let engine = support::engine(&support::smollm2(), &support::config(ladder(), 400));
    let mut stream = engine.submit(support::greedy(&PROMPT, 900)).unwrap();
    assert!(matches!(stream.blocking_next(), Some(TokenEvent::Token { .. })));
    drop(stream);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while engine.snapshot().blocks_used > 0 {
        assert!(std::time::Instant::now() < deadline, "{:?}", engine.snapshot());
        std::thread::yield_now();
    }
}

#[test]
fn a_target_that_was_damaged_on_disk_is_refused_and_the_engine_serves_on() {
    let cache = tempfile::tempdir().unwrap();
    let config =
        modelprofile_engine::serve::EngineConfig { cache: cache.path().to_owned(), ..support::config(ladder(), 400) };
    let engine = support::engine(&support::smollm2(), &config);
    let snapshot = engine.snapshot();
    let key = &snapshot.profiles.iter().find(|p| &*p.name == "density").unwrap().artifact_key;
    let packed = cache.path().join("artifacts").join(key).join("packed-cpu.bin");
    let file = std::fs::OpenOptions::new().write(true).open(&packed).unwrap();
    file.set_len(packed.metadata().unwrap().len() - 4096).unwrap();
    let result = engine.switch("density").blocking_recv().unwrap();
    assert_eq!(result.outcome, SwitchEnd::Refused, "{result:?}");
    assert!(result.message.contains("packed-cpu.bin") && result.message.contains("restart"), "{}", result.message);
    assert_eq!(engine.snapshot().last_switch, Some(result));
    assert_eq!(engine.snapshot().active.as_ref(), "quality");
    assert_eq!(support::generate(&engine, &PROMPT, 4).len(), 4);
    // The next start finds the damage and builds the artifact anew.
    drop(engine);
    let engine = support::engine(&support::smollm2(), &config);
    assert_eq!(engine.switch("density").blocking_recv().unwrap().outcome, SwitchEnd::Completed);
}

#[test]
fn a_file_that_is_replaced_under_its_name_does_no_harm() {
    let cache = tempfile::tempdir().unwrap();
    let config =
        modelprofile_engine::serve::EngineConfig { cache: cache.path().to_owned(), ..support::config(ladder(), 400) };
    let engine = support::engine(&support::smollm2(), &config);
    std::fs::remove_dir_all(cache.path().join("artifacts")).unwrap();
    let expected = support::generate(&engine, &PROMPT, 8);
    for to in ["density", "quality"] {
        assert_eq!(engine.switch(to).blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    }
    assert_eq!(support::generate(&engine, &PROMPT, 8), expected);
}
