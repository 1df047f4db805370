//! Calibrated methods: on a small model of each architecture, cut and gone on with; and on the real model, what each saves of
//! the perplexity that rounding to the nearest costs.
//!
//! SmolLM2's file lies on a grid of 32 weights with a free minimum, so groups of 64 with integer zeros are hard on it. The
//! artifacts are kept between runs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

mod support;

use std::{panic::AssertUnwindSafe, path::Path};

use modelprofile_engine::{
    Method, WeightFormat, ZeroPoint,
    artifact::{Artifact, Progress, Store},
    checkpoint::Checkpoint,
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

const INT4: WeightFormat = WeightFormat::Int4 { group: 32, zero: ZeroPoint::Integer };
const RECIPES: [Recipe; 6] = [
    Recipe { format: INT4, method: Method::Gptq },
    Recipe { format: INT4, method: Method::Awq },
    Recipe { format: WeightFormat::Int8, method: Method::Gptq },
    Recipe { format: WeightFormat::Int8, method: Method::SmoothQuant },
    Recipe { format: WeightFormat::Int8, method: Method::LlmInt8 },
    Recipe { format: WeightFormat::Fp8Static, method: Method::RoundToNearest },
];

fn tiny(name: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

fn noise() -> Calibration {
    let tokens: Vec<u32> = (0..600u32).map(|i| i.wrapping_mul(2_654_435_761) >> 25).collect();
    Calibration::new(&tokens, 256, 0).unwrap()
}

/// Checksum of what a recipe makes of a checkpoint in an empty cache.
fn built(checkpoint: &Checkpoint, recipe: Recipe, threads: usize) -> String {
    let cache = tempfile::tempdir().unwrap();
    let artifact = prepare(cache.path(), checkpoint, recipe, threads, &mut |_| {});
    artifact.manifest().sha256.clone()
}

fn prepare(
    cache: &Path,
    checkpoint: &Checkpoint,
    recipe: Recipe,
    threads: usize,
    progress: &mut dyn FnMut(Progress),
) -> Artifact {
    let options = CpuOptions { threads, isa: None, grouped_activations: GroupedActivations::Bf16 };
    let mut cpu = Cpu::new(options).unwrap();
    Store::new(cache).prepare_calibrated(&mut cpu, threads, checkpoint, recipe, Some(&noise()), progress).unwrap()
}

#[test]
fn every_method_quantizes_every_architecture_with_biases_and_norms() {
    for name in ["llama3-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny"] {
        let checkpoint = tiny(name);
        for recipe in RECIPES {
            let cache = tempfile::tempdir().unwrap();
            let artifact = prepare(cache.path(), &checkpoint, recipe, 2, &mut |_| {});
            assert_eq!(artifact.manifest().format, recipe.canonical(), "{name}");
            let options = |format| prepare(cache.path(), &checkpoint, format, 2, &mut |_| {});
            let base = options(WeightFormat::Bf16.into());
            // One scale for all inputs has no plain form without the text; FP8 with a scale per row is its neighbour.
            let plain = if recipe.format == WeightFormat::Fp8Static { WeightFormat::Fp8 } else { recipe.format };
            let nearest = options(plain.into());
            let cpu = Cpu::new(CpuOptions { threads: 2, isa: None, grouped_activations: GroupedActivations::Bf16 });
            let mut evaluator = Evaluator::new(cpu.unwrap(), checkpoint.config(), KvFormat::Bf16, 64).unwrap();
            let load = |artifact| ProfileWeights::load(evaluator.backend(), checkpoint.config(), artifact).unwrap();
            let (base, nearest, weights) = (load(&base), load(&nearest), load(&artifact));
            let scores = evaluator.score(&[&base, &nearest, &weights], noise().tokens(), &mut |_, _| {}).unwrap();
            let (nearest, found) = (scores[1].mean_divergence(), scores[2].mean_divergence());
            // Random weights lose much whatever is done; a scale that is folded wrongly would lose far more.
            assert!(
                found > 0.0 && found < 1.5 * nearest + 0.01,
                "{name} {}: {found}, round to nearest {nearest}",
                recipe.canonical()
            );
            println!("{name} {}: {found:.5}, round to nearest {nearest:.5}", recipe.canonical());
        }
    }
}

#[test]
fn a_build_that_was_cut_in_a_later_layer_goes_on_to_the_same_bytes() {
    let checkpoint = tiny("llama3-tiny");
    for recipe in RECIPES {
        let cache = tempfile::tempdir().unwrap();
        let cut = std::panic::catch_unwind(AssertUnwindSafe(|| {
            prepare(cache.path(), &checkpoint, recipe, 2, &mut |progress: Progress| {
                assert!(!progress.activity.contains("layer 2"), "cut here");
            });
        }));
        assert!(cut.is_err());
        let mut seen = Vec::new();
        let artifact =
            prepare(cache.path(), &checkpoint, recipe, 2, &mut |progress: Progress| seen.push(progress.activity));
        assert!(!seen.iter().any(|activity| activity.contains("layer 1")), "{seen:?}");
        assert_eq!(artifact.manifest().sha256, built(&checkpoint, recipe, 2), "{}", recipe.canonical());
        let left: Vec<_> = std::fs::read_dir(artifact.directory()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("state-")), "{left:?}");
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_byte_and_the_seed_does() {
    let checkpoint = tiny("qwen3-tiny");
    for recipe in RECIPES {
        assert_eq!(built(&checkpoint, recipe, 1), built(&checkpoint, recipe, 3), "{}", recipe.canonical());
    }
    let tokens: Vec<u32> = (0..1500u32).map(|i| i.wrapping_mul(2_654_435_761) >> 25).collect();
    let [a, b] = [0, 1].map(|seed| Calibration::new(&tokens, 512, seed).unwrap());
    let key = |calibration| Store::key(&checkpoint, RECIPES[0], Some(calibration));
    assert_ne!(key(&a), key(&b));
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
    let mut backend = Cpu::new(options).unwrap();
    let artifacts = recipes.map(|recipe| {
        store.prepare_calibrated(&mut backend, 2, &checkpoint, recipe, Some(&calibration), &mut |_| {}).unwrap()
    });
    let mut evaluator =
        Evaluator::new(Cpu::new(options).unwrap(), checkpoint.config(), KvFormat::Bf16, WINDOW).unwrap();
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
