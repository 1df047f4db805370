//! Calibrated methods on the real model: what each saves of the perplexity that rounding to the nearest costs.
//!
//! SmolLM2's file lies on a grid of 32 weights with a free minimum, so groups of 64 with integer zeros are hard on it. The
//! artifacts are kept between runs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

mod support;

use std::path::Path;

use modelprofile_engine::{
    Method, WeightFormat, ZeroPoint,
    artifact::Store,
    evaluate::{Evaluator, Score},
    model::ProfileWeights,
    quantize::{Calibration, Recipe},
    text::Text,
};
use modelprofile_kernels::{
    GroupedActivations, KvFormat,
    cpu::{Cpu, CpuOptions},
};

const WINDOW: usize = 512;
const CALIBRATION_TOKENS: usize = 4096;

/// Text to score and text to calibrate with: WikiText-2's validation text, two pieces far apart.
fn texts() -> Option<(String, String)> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let shared = std::env::var_os("MODELPROFILE_SHARED").map_or_else(beside, Into::into);
    let text = std::fs::read_to_string(shared.join("text/wikitext-2-valid.txt")).ok()?;
    let piece = |from: usize, len: usize| text.chars().skip(from).take(len).collect();
    Some((piece(0, 20_000), piece(300_000, 40_000)))
}

#[test]
fn calibrated_methods_lose_less_than_rounding_to_the_nearest() {
    let Some((text, calibration)) = texts() else {
        eprintln!("not checked: ../shared/text/wikitext-2-valid.txt is not there");
        return;
    };
    let checkpoint = support::smollm2();
    let tokenizer = Text::load(&checkpoint).unwrap().tokenizer;
    let tokens = tokenizer.encode(&text, false).unwrap();
    let calibration = tokenizer.encode(&calibration, false).unwrap();
    let calibration = Calibration::new(&calibration, CALIBRATION_TOKENS, 0).unwrap();
    let int4 = WeightFormat::Int4 { group: 64, zero: ZeroPoint::Integer };
    let recipes = [
        WeightFormat::Bf16.into(),
        int4.into(),
        Recipe { format: int4, method: Method::Gptq },
        Recipe { format: int4, method: Method::Awq },
        WeightFormat::Int8.into(),
        Recipe { format: WeightFormat::Int8, method: Method::SmoothQuant },
    ];
    let store = Store::new(&support::cache());
    let options = CpuOptions { threads: 2, isa: None, grouped_activations: GroupedActivations::Bf16 };
    let mut backend = Cpu::new(options.clone()).unwrap();
    let artifacts = recipes.map(|recipe| {
        store.prepare_calibrated(&mut backend, 2, &checkpoint, recipe, Some(&calibration), &mut |_| {}).unwrap()
    });
    let mut evaluator = Evaluator::new(Cpu::new(options).unwrap(), checkpoint.config(), KvFormat::Bf16, WINDOW).unwrap();
    let load = |artifact| ProfileWeights::load(evaluator.backend(), checkpoint.config(), artifact).unwrap();
    let weights: Vec<_> = artifacts.iter().map(load).collect();
    let scores = evaluator.score(&weights.iter().collect::<Vec<_>>(), &tokens, &mut |_, _| {}).unwrap();
    let base = scores[0].perplexity();
    let rise = |score: &Score| (score.perplexity() / base - 1.0) * 100.0;
    for (recipe, score) in recipes.iter().zip(&scores) {
        println!("{:<24} {:+.2} % KL {:.5}", recipe.canonical(), rise(score), score.mean_divergence());
    }
    let [_, nearest, gptq, awq, int8, smooth] = scores.as_slice() else { panic!("{} scores", scores.len()) };
    assert!(rise(gptq) < 0.6 * rise(nearest), "GPTQ {} %, nearest {} %", rise(gptq), rise(nearest));
    assert!(rise(awq) < 0.8 * rise(nearest), "AWQ {} %, nearest {} %", rise(awq), rise(nearest));
    assert!(rise(smooth) < 1.0 && rise(smooth) < rise(int8), "SmoothQuant {} %, INT8 {} %", rise(smooth), rise(int8));
}
