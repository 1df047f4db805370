//! Another ladder while the engine serves: rungs join, leave and move, and requests in flight go on.

use std::path::Path;

use modelprofile_engine::{
    ProfileSpec, TokenEvent, WeightFormat,
    artifact::{Artifact, Finder},
    checkpoint::Checkpoint,
    serve::{Engine, EngineConfig, EngineHandle, SwitchEnd, prepare},
};
use modelprofile_kernels::BLOCK_TOKENS;
use tempfile::TempDir;

use crate::support;

/// A small model, with the artifacts of three profiles.
struct Setup {
    _cache: TempDir,
    checkpoint: Checkpoint,
    config: EngineConfig,
    artifacts: Vec<(String, Artifact)>,
}

impl Setup {
    fn new() -> Self {
        let cache = tempfile::tempdir().unwrap();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama3-tiny");
        let checkpoint = Checkpoint::open(&data).unwrap();
        let config = EngineConfig {
            cache: cache.path().to_owned(),
            max_context_tokens: Some(256),
            ..support::config(ladder(&["quality", "middle", "density"]), 64)
        };
        let artifacts = prepare(&mut support::cpu(), &checkpoint, &config, &mut |_, _| {}).unwrap();
        let names = config.profiles.iter().map(|profile| profile.name.clone());
        let artifacts = names.zip(artifacts).collect();
        Self { _cache: cache, checkpoint, config, artifacts }
    }

    /// An engine with these profiles.
    fn engine(&self, names: &[&str]) -> EngineHandle {
        support::engine(&self.checkpoint, &EngineConfig { profiles: ladder(names), ..self.config.clone() })
    }

    /// Gives it these instead.
    fn set(&self, engine: &EngineHandle, names: &[&str]) {
        let artifact = |name: &&str| self.artifacts.iter().find(|(known, _)| known == name).unwrap().clone();
        let declined = engine.set_ladder(names.iter().map(artifact).collect()).blocking_recv().unwrap();
        assert_eq!(declined, []);
    }
}

fn ladder(names: &[&str]) -> Vec<ProfileSpec> {
    let format = |name: &str| match name {
        "quality" => WeightFormat::Bf16,
        "middle" => WeightFormat::Fp8,
        _ => WeightFormat::Int8,
    };
    names.iter().map(|name| support::profile(name, format(name))).collect()
}

fn names(engine: &EngineHandle) -> Vec<String> {
    engine.snapshot().profiles.iter().map(|profile| profile.name.to_string()).collect()
}

fn switch(engine: &EngineHandle, to: &str) -> SwitchEnd {
    engine.switch(to).blocking_recv().unwrap().outcome
}

#[test]
fn a_rung_joins_leaves_and_moves_under_a_request_that_goes_on() {
    let setup = Setup::new();
    let engine = setup.engine(&["middle"]);
    assert_eq!(switch(&engine, "density"), SwitchEnd::Unknown);
    let mut stream = engine.submit(support::greedy(&[5, 7, 9], 200)).unwrap();
    let mut profiles = Vec::new();
    while let Some(event) = stream.blocking_next() {
        let TokenEvent::Token { profile, .. } = event else { continue };
        if profiles.is_empty() {
            setup.set(&engine, &["quality", "middle", "density"]);
            assert_eq!(
                (names(&engine).join(" "), &*engine.snapshot().active),
                ("quality middle density".into(), "middle")
            );
            assert_eq!(switch(&engine, "density"), SwitchEnd::Completed);
            setup.set(&engine, &["density", "quality"]);
            assert_eq!((names(&engine).join(" "), &*engine.snapshot().active), ("density quality".into(), "density"));
            assert_eq!(switch(&engine, "middle"), SwitchEnd::Unknown);
            assert_eq!(switch(&engine, "quality"), SwitchEnd::Completed);
        }
        profiles.push(profile);
    }
    assert_eq!(profiles.len(), 200);
    let snapshot = engine.snapshot();
    assert_eq!(&*snapshot.active, "quality");
    let memory = snapshot.memory;
    assert!(memory.weights + memory.kv + memory.workspace <= memory.budget, "{memory:?}");
}

#[test]
fn the_text_of_a_rung_that_joined_is_that_of_an_engine_that_started_with_it() {
    let setup = Setup::new();
    let prompt = [5, 7, 9, 11];
    let started = setup.engine(&["density"]);
    let joined = setup.engine(&["quality"]);
    setup.set(&joined, &["quality", "density"]);
    assert_eq!(switch(&joined, "density"), SwitchEnd::Completed);
    assert_eq!(support::generate(&joined, &prompt, 64), support::generate(&started, &prompt, 64));
    let [one, other] = [&started, &joined].map(|engine| {
        let snapshot = engine.snapshot();
        (snapshot.blocks_total, snapshot.profiles.into_iter().find(|profile| &*profile.name == "density").unwrap())
    });
    assert_eq!(one, other, "a pool as large, though no rung of the start had one");
}

#[test]
fn a_rung_that_leaves_while_it_computes_stays_until_another_one_does() {
    let setup = Setup::new();
    let engine = setup.engine(&["quality", "density"]);
    setup.set(&engine, &["density"]);
    assert_eq!(names(&engine), ["quality", "density"]);
    assert_eq!(support::generate(&engine, &[5, 7], 8).len(), 8);
    assert_eq!(switch(&engine, "quality"), SwitchEnd::Completed, "it is active already");
    // Brought back, it is a rung like any other.
    setup.set(&engine, &["quality", "density"]);
    assert_eq!(switch(&engine, "density"), SwitchEnd::Completed);
    assert_eq!(switch(&engine, "quality"), SwitchEnd::Completed);

    setup.set(&engine, &["density"]);
    let mut stream = engine.submit(support::greedy(&[5, 7, 9], 150)).unwrap();
    assert!(matches!(stream.blocking_next(), Some(TokenEvent::Token { .. })));
    assert_eq!(switch(&engine, "density"), SwitchEnd::Completed);
    assert_eq!(support::tokens(&mut stream).len(), 149);
    assert_eq!(names(&engine), ["density"]);
    let result = engine.switch("quality").blocking_recv().unwrap();
    assert_eq!(
        (result.outcome, result.message.as_str()),
        (SwitchEnd::Unknown, "no profile is named quality; there are density")
    );

    // The same without a request that would have a next step.
    setup.set(&engine, &["quality"]);
    assert_eq!(switch(&engine, "quality"), SwitchEnd::Completed);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while names(&engine) != ["quality"] {
        assert!(std::time::Instant::now() < end, "{:?}", names(&engine));
        std::thread::yield_now();
    }
}

#[test]
fn cached_blocks_are_not_lent_to_a_rung_that_is_more_precise_than_what_computed_them() {
    let setup = Setup::new();
    let prompt: Vec<u32> = (3..3 + 4 * BLOCK_TOKENS as u32).map(|token| token % 120).collect();
    let cached = |engine: &EngineHandle| {
        let mut stream = engine.submit(support::greedy(&prompt, 2)).unwrap();
        loop {
            if let TokenEvent::Finished { cached_tokens, .. } = stream.blocking_next().unwrap() {
                return cached_tokens;
            }
        }
    };
    let engine = setup.engine(&["middle"]);
    assert_eq!(cached(&engine), 0);
    setup.set(&engine, &["quality", "middle", "density"]);
    assert_eq!(cached(&engine), 3 * BLOCK_TOKENS, "the same rung has another place");
    assert_eq!(switch(&engine, "density"), SwitchEnd::Completed);
    assert_eq!(cached(&engine), 3 * BLOCK_TOKENS, "a denser one may use them");
    assert_eq!(switch(&engine, "quality"), SwitchEnd::Completed);
    assert_eq!(cached(&engine), 0, "what FP8 computed is not for BF16");
}

#[test]
fn a_rung_without_room_for_the_longest_request_is_declined_and_the_rest_is_taken() {
    let setup = Setup::new();
    let limits = setup.engine(&["density"]).limits();
    let bytes = |name: &str| setup.artifacts.iter().find(|(known, _)| known == name).unwrap().1.weight_bytes();
    assert!(bytes("quality") > bytes("density"));
    // Room for 128 tokens beside the smallest weights, and for fewer beside larger ones.
    let room = 128 / BLOCK_TOKENS as u64 * limits.memory.block_bytes;
    let config = EngineConfig {
        profiles: ladder(&["density"]),
        memory_budget: limits.memory.workspace + bytes("density") + room,
        max_context_tokens: Some(128),
        ..setup.config.clone()
    };
    let engine = support::engine(&setup.checkpoint, &config);
    let declined = engine.set_ladder(setup.artifacts.clone()).blocking_recv().unwrap();
    let told: Vec<&str> = declined.iter().map(|declined| declined.name.as_str()).collect();
    assert_eq!(
        told,
        ["quality", "middle"]
            .iter()
            .copied()
            .filter(|name| bytes(name) >= bytes("density") + limits.memory.block_bytes)
            .collect::<Vec<_>>()
    );
    assert!(told.contains(&"quality") && declined[0].message.contains("a request may have 128"), "{declined:?}");
    assert_eq!(names(&engine).last().map(String::as_str), Some("density"));
    assert_eq!(support::generate(&engine, &[5, 7], 8).len(), 8);
}

#[test]
fn an_artifact_is_found_by_its_key_without_its_checkpoint() {
    let setup = Setup::new();
    let finder = Finder::new(&setup.config.cache, &setup.checkpoint, &setup.config.calibration);
    for (profile, (_, artifact)) in setup.config.profiles.iter().zip(&setup.artifacts) {
        let found = finder.find(profile).unwrap();
        assert_eq!((&found.key, found.directory.as_path()), (&artifact.manifest().key, artifact.directory()));
        assert_eq!(found.open().unwrap().unwrap().manifest(), artifact.manifest());
    }
    let other = finder.find(&support::profile("other", WeightFormat::Q8_0)).unwrap();
    assert!(other.open().unwrap().is_none());
    std::fs::write(setup.artifacts[0].1.directory().join("packed-cpu.bin"), "damaged").unwrap();
    assert!(finder.find(&setup.config.profiles[0]).unwrap().open().is_err());
}
