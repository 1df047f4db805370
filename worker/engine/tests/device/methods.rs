//! Artifacts that the device calibrated: as good as those of the CPU, and served.

use modelprofile_engine::{
    Method, ProfileSpec, WeightFormat, ZeroPoint,
    artifact::{Artifact, Store},
    checkpoint::Checkpoint,
    evaluate::Evaluator,
    model::ProfileWeights,
    quantize::{Calibration, Recipe},
    serve::EngineConfig,
};
use modelprofile_kernels::{Calibrate, KvFormat};
use rstest::rstest;

use crate::{
    device::{alone, cpu, engine, gpu},
    support,
    tiny::{SMALL, checkpoint, prompt},
};

const INT4: WeightFormat = WeightFormat::Int4 { group: 32, zero: ZeroPoint::Integer };
const BUDGET: u64 = 64 << 20;

fn calibration() -> Vec<u32> {
    prompt(256, 5)
}

fn made<B: Calibrate>(mut backend: B, checkpoint: &Checkpoint, recipe: Recipe, cache: &std::path::Path) -> Artifact {
    let calibration = Calibration::new(&calibration(), 256, 0).unwrap();
    Store::new(cache).prepare_calibrated(&mut backend, 2, checkpoint, recipe, Some(&calibration), &mut |_| {}).unwrap()
}

#[rstest]
#[case(INT4, Method::Awq)]
#[case(INT4, Method::Gptq)]
#[case(WeightFormat::Int8, Method::SmoothQuant)]
#[case(WeightFormat::Int8, Method::LlmInt8)]
#[case(WeightFormat::Fp8Static, Method::RoundToNearest)]
fn what_the_device_calibrates_is_as_good_as_the_cpus_and_serves(#[case] format: WeightFormat, #[case] method: Method) {
    let _alone = alone();
    let (checkpoint, recipe) = (checkpoint(SMALL), Recipe { format, method });
    let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let artifacts = [
        made(cpu(), &checkpoint, WeightFormat::Bf16.into(), theirs.path()),
        made(cpu(), &checkpoint, recipe, theirs.path()),
        made(gpu(BUDGET), &checkpoint, recipe, ours.path()),
    ];
    let mut evaluator = Evaluator::new(gpu(BUDGET), checkpoint.config(), KvFormat::Bf16, 64).unwrap();
    let load = |artifact| ProfileWeights::load(evaluator.backend(), checkpoint.config(), artifact).unwrap();
    let weights = artifacts.each_ref().map(load);
    let scores = evaluator.score(&weights.each_ref(), &prompt(128, 6), &mut |_, _| {}).unwrap();
    let [cpu, gpu] = [1, 2].map(|index| scores[index].mean_divergence());
    println!("{}: divergence {gpu:.5}, the CPU's {cpu:.5}", recipe.canonical());
    // Choices between near equals fall differently; a wrong statistic costs a multiple.
    assert!(gpu > 0.0 && gpu < 1.3 * cpu + 0.005, "{}: {gpu}, the CPU's {cpu}", recipe.canonical());
    drop((weights, evaluator));

    let profile = ProfileSpec { method, kv: KvFormat::Fp8E4m3, ..support::profile("one", format) };
    let config = EngineConfig {
        cache: ours.path().to_owned(),
        calibration: calibration(),
        max_context_tokens: Some(128),
        max_batched_tokens: 32,
        max_running: 4,
        ..support::config(vec![profile], BUDGET >> 20)
    };
    let engine = engine(&checkpoint, &config);
    assert_eq!(support::generate(&engine, &prompt(20, 7), 4).len(), 4);
}
