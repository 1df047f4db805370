//! Calibrated methods: on a small model of each architecture, cut and gone on with; and on the real model, what each saves of
//! the divergence that rounding to the nearest costs.
//!
//! SmolLM2's file lies on a grid of 32 weights with a free minimum, so groups of 64 with integer zeros are hard on it. The
//! artifacts are kept between runs.

use std::{panic::AssertUnwindSafe, path::Path};

use half::bf16;
use modelprofile_engine::{
    Method, WeightFormat, ZeroPoint,
    artifact::{Artifact, Progress, Store},
    checkpoint::{Checkpoint, Role, StoredWeight},
    evaluate::{Evaluator, Score},
    model::ProfileWeights,
    quantize::{Calibration, Recipe},
    text::Text,
};
use modelprofile_kernels::{
    GroupedActivations, KvFormat,
    cpu::{Cpu, CpuOptions},
};

use crate::support;

/// Tokens of a window that is scored, and of those that calibrate: what tells the methods apart in seconds.
const WINDOW: usize = 256;
const SCORED_TOKENS: usize = 4 * WINDOW;
const CALIBRATION_TOKENS: usize = 2048;

/// A text that comes with the worker.
fn text(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/texts").join(name)).unwrap()
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

fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads, isa: None, grouped_activations: GroupedActivations::Bf16 }).unwrap()
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
    Store::new(cache)
        .prepare_calibrated(&mut cpu(threads), threads, checkpoint, recipe, Some(&noise()), progress)
        .unwrap()
}

#[test]
fn every_method_quantizes_every_architecture_with_biases_and_norms() {
    for name in ["llama3-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny"] {
        let checkpoint = tiny(name);
        // What the recipes are compared with is made once.
        let cache = tempfile::tempdir().unwrap();
        for recipe in RECIPES {
            let artifact = prepare(cache.path(), &checkpoint, recipe, 2, &mut |_| {});
            assert_eq!(artifact.manifest().format, recipe.canonical(), "{name}");
            let options = |format| prepare(cache.path(), &checkpoint, format, 2, &mut |_| {});
            let base = options(WeightFormat::Bf16.into());
            // One scale for all inputs has no plain form without the text; FP8 with a scale per row is its neighbour.
            let plain = if recipe.format == WeightFormat::Fp8Static { WeightFormat::Fp8 } else { recipe.format };
            let nearest = options(plain.into());
            let mut evaluator = Evaluator::new(cpu(2), checkpoint.config(), KvFormat::Bf16, 64).unwrap();
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
fn a_group_that_does_not_divide_is_refused_before_anything_is_computed() {
    // 64 divides the hidden size, and not the MLP's width of 96.
    let checkpoint = tiny("llama3-tiny");
    let format = WeightFormat::Int4 { group: 64, zero: ZeroPoint::Integer };
    for method in [Method::RoundToNearest, Method::Gptq, Method::Awq] {
        let cache = tempfile::tempdir().unwrap();
        let error = Store::new(cache.path())
            .prepare_calibrated(
                &mut cpu(1),
                1,
                &checkpoint,
                Recipe { format, method },
                Some(&noise()),
                &mut |progress| {
                    panic!("{}", progress.activity);
                },
            )
            .unwrap_err()
            .to_string();
        assert!(error.contains("96 inputs of the down layers") && error.contains("all layers: 32"), "{error}");
        assert!(!cache.path().join("artifacts").exists());
    }
}

#[test]
fn a_build_that_cannot_be_gone_on_with_says_to_start_again_and_then_does() {
    let (checkpoint, recipe) = (tiny("llama3-tiny"), RECIPES[0]);
    let cache = tempfile::tempdir().unwrap();
    let cut = std::panic::catch_unwind(AssertUnwindSafe(|| {
        prepare(cache.path(), &checkpoint, recipe, 2, &mut |progress: Progress| {
            assert!(!progress.activity.contains("layer 2"), "cut here");
        });
    }));
    assert!(cut.is_err());
    let half = cache.path().join("artifacts").join(format!("{}.tmp", Store::key(&checkpoint, recipe, Some(&noise()))));
    std::fs::File::options().write(true).open(half.join("model.safetensors")).unwrap().set_len(10_000).unwrap();
    let again = || {
        Store::new(cache.path()).prepare_calibrated(&mut cpu(2), 2, &checkpoint, recipe, Some(&noise()), &mut |_| {})
    };
    let error = again().unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("is removed: start again"), "{error}");
    assert!(!half.exists());
    assert_eq!(again().unwrap().manifest().sha256, built(&checkpoint, recipe, 2));
}

/// Gains of the first norm 64 times as large in eight of the 64 columns: only the text's activations show it.
#[test]
fn the_outlier_columns_are_those_that_the_calibration_text_fills() {
    let largest = [2usize, 9, 17, 18, 33, 41, 56, 63];
    let folder = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama3-tiny");
    std::fs::copy(data.join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes = std::fs::read(data.join("model.safetensors")).unwrap();
    let gain = "model.layers.0.input_layernorm.weight";
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let pairs = read.tensor(gain).unwrap().data().chunks_exact(2);
    let mut values: Vec<bf16> = pairs.map(|pair| bf16::from_le_bytes([pair[0], pair[1]])).collect();
    for column in largest {
        values[column] = bf16::from_f32(values[column].to_f32() * 64.0);
    }
    let (shape, gains) = (vec![values.len()], bytemuck::cast_slice::<_, u8>(&values));
    let tensors = read.iter().map(|(name, tensor)| {
        let bf16 = safetensors::Dtype::BF16;
        let gains = || safetensors::tensor::TensorView::new(bf16, shape.clone(), gains).unwrap();
        (name, if name == gain { gains() } else { tensor })
    });
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();

    let recipe = Recipe { format: WeightFormat::Int8, method: Method::LlmInt8 };
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let artifact = prepare(&folder.path().join("cache"), &checkpoint, recipe, 1, &mut |_| {});
    let read = Checkpoint::open(artifact.directory()).unwrap();
    let Some(StoredWeight::Int8Outliers { columns, .. }) = read.quantized(Role::Query(0)).unwrap() else { panic!() };
    assert_eq!(columns, largest.map(|column| column as u32));
}

/// Layers of the real model that methods are compared on, of 30: AWQ's search alone takes four minutes for all of them on two
/// cores with AVX2, and what a method saves shows in the first as in all.
const COMPARED_LAYERS: u32 = 8;

/// The real model's first layers, embedding and output.
fn first_layers(folder: &Path, layers: u32) -> Checkpoint {
    let whole = Store::new(&support::cache()).prepare(&support::smollm2(), WeightFormat::Bf16, &mut |_| {}).unwrap();
    let config = std::fs::read(whole.directory().join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert!(u64::from(layers) < config["num_hidden_layers"].as_u64().unwrap());
    config["num_hidden_layers"] = layers.into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(whole.directory().join("model.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let layer = |name: &str| name.strip_prefix("model.layers.")?.split('.').next()?.parse::<u32>().ok();
    let kept = read.iter().filter(|(name, _)| layer(name).is_none_or(|layer| layer < layers));
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(kept, None).unwrap()).unwrap();
    Checkpoint::open(folder).unwrap()
}

/// On layers of the real model, against the original: AWQ and GPTQ in 4 bits, SmoothQuant in 8.
#[test]
fn calibrated_methods_lose_less_than_rounding_to_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = first_layers(folder.path(), COMPARED_LAYERS);
    let tokenizer = Text::load(&support::smollm2()).unwrap().tokenizer;
    let mut tokens = tokenizer.encode(&text("evaluation.txt"), false).unwrap();
    tokens.truncate(SCORED_TOKENS);
    let calibration = tokenizer.encode(&text("calibration.txt"), false).unwrap();
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
    let artifacts = recipes.map(|recipe| {
        store.prepare_calibrated(&mut cpu(2), 2, &checkpoint, recipe, Some(&calibration), &mut |_| {}).unwrap()
    });
    let mut evaluator = Evaluator::new(cpu(2), checkpoint.config(), KvFormat::Bf16, WINDOW).unwrap();
    let load = |artifact| ProfileWeights::load(evaluator.backend(), checkpoint.config(), artifact).unwrap();
    let weights: Vec<_> = artifacts.iter().map(load).collect();
    let scores = evaluator.score(&weights.iter().collect::<Vec<_>>(), &tokens, &mut |_, _| {}).unwrap();
    let divergences: Vec<f64> = scores.iter().map(Score::mean_divergence).collect();
    for (recipe, divergence) in recipes.iter().zip(&divergences) {
        println!("{:<24} {divergence:.5}", recipe.canonical());
    }
    let [_, nearest, gptq, awq, int8, smooth] = divergences[..] else { panic!("{divergences:?}") };
    assert!(gptq < 0.8 * nearest, "GPTQ {gptq}, nearest {nearest}");
    assert!(awq < 0.9 * nearest, "AWQ {awq}, nearest {nearest}");
    assert!(smooth < int8, "SmoothQuant {smooth}, INT8 {int8}");
}
