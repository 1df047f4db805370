//! Logits of every format of weights and cache, on a model of each family, against the CPU's.

use std::ops::Range;

use modelprofile_engine::{
    Method, WeightFormat, ZeroPoint,
    artifact::Store,
    calibrate::kv_scales,
    checkpoint::Checkpoint,
    evaluate::Evaluator,
    model::{Model, ProfileWeights, StepWeights},
    quantize::{Calibration, Recipe},
};
use modelprofile_kernels::{Calibrate, HostTensor, KvFormat, KvScales, SequenceSpan, StepPlan};
use rstest::rstest;

use crate::{
    device::{alone, cpu, gpu},
    support,
    tiny::{Family, Shape, TINY, checkpoint, prompt},
};

/// Root mean square of the difference from the CPU's logits over that of the logits. Both sum in FP32 but in different orders;
/// then a value near the middle of two codes is rounded to the other one now and then: a step of BF16, of INT8, of E4M3's three
/// bits, which the next layers carry on. Budgets are about one and a half times what these models show.
const BF16: f32 = 0.01;
const INT8: f32 = 0.04;
const FP8: f32 = 0.1;

const TOKENS: usize = 40;

fn logits<B: Calibrate>(mut backend: B, checkpoint: &Checkpoint, recipe: Recipe, format: KvFormat) -> Vec<f32> {
    let config = checkpoint.config();
    let text = prompt(300, 9);
    let calibration = Calibration::new(&text, 256, 0).unwrap();
    // What is compared is how the same codes are computed with.
    let artifact = Store::new(&support::cache())
        .prepare_calibrated(&mut cpu(), 2, checkpoint, recipe, Some(&calibration), &mut |_| {})
        .unwrap();
    let layout = config.kv_layout(format);
    let scales = kv_scales(&mut backend, checkpoint, &support::cache(), &layout, &text, &mut |_| {}).unwrap();
    let mut evaluator = Evaluator::with_scales(backend, config, layout, &scales, TOKENS).unwrap();
    let weights = ProfileWeights::load(evaluator.backend(), config, &artifact).unwrap();
    evaluator.logits(&weights, &prompt(TOKENS, 1)).unwrap()
}

fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let size = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    assert_eq!(found.len(), expected.len());
    let error = size(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / size(&mut expected.iter().copied());
    if error.is_nan() { f32::INFINITY } else { error }
}

fn agrees(shape: Shape, recipe: Recipe, format: KvFormat, budget: f32) {
    let _alone = alone();
    let checkpoint = checkpoint(shape);
    let expected = logits(cpu(), &checkpoint, recipe, format);
    let found = logits(gpu(64 << 20), &checkpoint, recipe, format);
    let difference = difference(&found, &expected);
    println!("{:?} {} {format:?}: {difference:.5}", shape.family, recipe.canonical());
    assert!(difference < budget, "{:?} {}: {difference}, the budget is {budget}", shape.family, recipe.canonical());
}

const fn int4(group: u16, zero: ZeroPoint) -> WeightFormat {
    WeightFormat::Int4 { group, zero }
}

#[rstest]
#[case(WeightFormat::Bf16, Method::RoundToNearest, BF16)]
#[case(WeightFormat::Fp8, Method::RoundToNearest, FP8)]
#[case(WeightFormat::Fp8Tensor, Method::RoundToNearest, FP8)]
#[case(WeightFormat::Fp8Static, Method::RoundToNearest, FP8)]
#[case(WeightFormat::Fp8Block, Method::RoundToNearest, FP8)]
#[case(WeightFormat::Int8, Method::RoundToNearest, INT8)]
#[case(WeightFormat::Int8, Method::LlmInt8, INT8)]
#[case(int4(32, ZeroPoint::Symmetric), Method::RoundToNearest, BF16)]
#[case(int4(64, ZeroPoint::Integer), Method::RoundToNearest, BF16)]
#[case(int4(128, ZeroPoint::Minimum), Method::RoundToNearest, BF16)]
#[case(WeightFormat::Q8_0, Method::RoundToNearest, BF16)]
fn every_format_of_weights(#[case] format: WeightFormat, #[case] method: Method, #[case] budget: f32) {
    agrees(TINY, Recipe { format, method }, KvFormat::Bf16, budget);
}

#[rstest]
fn every_family_in_every_arithmetic(
    #[values(Family::Mistral, Family::Qwen2, Family::Qwen3)] family: Family,
    #[values((WeightFormat::Fp8, FP8), (WeightFormat::Int8, INT8), (int4(64, ZeroPoint::Minimum), BF16))]
    (format, budget): (WeightFormat, f32),
) {
    agrees(Shape::of(family), format.into(), KvFormat::Bf16, budget);
}

#[rstest]
#[case(KvFormat::Fp16, BF16)]
#[case(KvFormat::Fp8E4m3, INT8)]
#[case(KvFormat::Fp8E5m2, INT8)]
fn every_format_of_the_cache(#[case] format: KvFormat, #[case] budget: f32) {
    agrees(TINY, WeightFormat::Bf16.into(), format, budget);
}

/// A step with layers of two profiles, as they are while a switch goes on, on the device and on the CPU.
fn mixed<B: Calibrate>(mut backend: B, checkpoint: &Checkpoint, taken: usize) -> Vec<f32> {
    let config = checkpoint.config();
    let load = |backend: &B, format: WeightFormat| {
        let artifact = Store::new(&support::cache()).prepare(checkpoint, format, &mut |_| {}).unwrap();
        ProfileWeights::load(backend, config, &artifact).unwrap()
    };
    let (new, old) = (load(&backend, int4(32, ZeroPoint::Minimum)), load(&backend, WeightFormat::Bf16));
    let layout = config.kv_layout(KvFormat::Bf16);
    let mut kv = backend.kv(layout, &KvScales::unit(&layout), 4, 4).unwrap();
    let mut model = Model::new(&backend, config, TOKENS).unwrap();
    let plan = StepPlan {
        tokens: prompt(TOKENS, 1),
        sequences: vec![SequenceSpan { first_row: 0, rows: TOKENS, first_position: 0, blocks: vec![2, 0, 3] }],
        logit_rows: (0..TOKENS).collect(),
    };
    let weights = StepWeights::mixed(&new, &|part| part < taken, &old);
    let mut all = Vec::new();
    let mut take = |_: Range<usize>, host: &mut HostTensor| {
        all.extend_from_slice(&host.data);
        Ok(())
    };
    let mut ignore = |_: usize, _: &B, _: &B::Buffer| Ok(());
    model.step_observed(&mut backend, &weights, &[], &mut kv, &plan, &mut take, &mut ignore).unwrap();
    all
}

#[test]
fn steps_of_two_profiles() {
    let _alone = alone();
    let checkpoint = checkpoint(Shape::of(Family::Mistral));
    let steps: Vec<Vec<f32>> = (0..=4)
        .map(|taken| {
            let expected = mixed(cpu(), &checkpoint, taken);
            let difference = difference(&mixed(gpu(64 << 20), &checkpoint, taken), &expected);
            assert!(difference < BF16, "{taken} parts: {difference}");
            expected
        })
        .collect();
    // Each part of the other profile changes something.
    for pair in steps.windows(2) {
        assert!(difference(&pair[0], &pair[1]) > 1e-4);
    }
}
