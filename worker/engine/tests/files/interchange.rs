//! Quantized checkpoints in every layout: written from our artifacts, opened again, and taken over bit for bit.

use std::path::{Path, PathBuf};

use modelprofile_engine::{
    Method, WeightFormat, ZeroPoint,
    artifact::Store,
    checkpoint::{
        Checkpoint, Role, SourceDtype, StoredWeight,
        quantized::{Layout, Zeros},
    },
    evaluate::Evaluator,
    interchange::{export, export_with_kv_scales},
    model::ProfileWeights,
    quantize::{Calibration, Recipe},
};
use modelprofile_kernels::{KvFormat, KvScales};
use rstest::rstest;
use serde_json::Value;

use crate::support;

const SYMMETRIC: WeightFormat = WeightFormat::Int4 { group: 32, zero: ZeroPoint::Symmetric };
const INTEGER: WeightFormat = WeightFormat::Int4 { group: 32, zero: ZeroPoint::Integer };
const MINIMUM: WeightFormat = WeightFormat::Int4 { group: 32, zero: ZeroPoint::Minimum };

fn source(name: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

/// The directory of the artifact of a checkpoint in a format.
fn artifact(checkpoint: &Checkpoint, format: WeightFormat, cache: &Path) -> PathBuf {
    let artifact = Store::new(cache).prepare(checkpoint, format, &mut |_| {}).unwrap();
    cache.join("artifacts").join(&artifact.manifest().key)
}

fn logits(checkpoint: &Checkpoint, format: WeightFormat, cache: &Path) -> Vec<f32> {
    let artifact = Store::new(cache).prepare(checkpoint, format, &mut |_| {}).unwrap();
    let mut evaluator = Evaluator::new(support::cpu(), checkpoint.config(), KvFormat::Bf16, 32).unwrap();
    let weights = ProfileWeights::load(evaluator.backend(), checkpoint.config(), &artifact).unwrap();
    evaluator.logits(&weights, &(1..20).collect::<Vec<u32>>()).unwrap()
}

/// The quantized weights of a checkpoint by role. A grid with integer zero points that are all 8 is called symmetric, as
/// AutoAWQ cannot tell the two apart.
fn stored(checkpoint: &Checkpoint) -> Vec<(Role, StoredWeight)> {
    let weight = |role: Role| {
        let mut weight = checkpoint.quantized(role).unwrap()?;
        if let StoredWeight::Grouped(affine) = &mut weight
            && matches!(&affine.zeros, Zeros::Integer(zeros) if zeros.iter().all(|z| *z == 8))
        {
            affine.zeros = Zeros::Middle;
        }
        Some((role, weight))
    };
    Role::all(checkpoint.config()).into_iter().filter_map(weight).collect()
}

fn config(directory: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(directory.join("config.json")).unwrap()).unwrap()
}

#[rstest]
#[case::fp8("qwen2-tiny", WeightFormat::Fp8, &[Layout::CompressedTensors, Layout::ModelOpt])]
#[case::fp8_of_tensors("qwen2-tiny", WeightFormat::Fp8Tensor, &[Layout::CompressedTensors])]
#[case::int8("mistral-tiny", WeightFormat::Int8, &[Layout::CompressedTensors])]
#[case::symmetric("llama3-tiny", SYMMETRIC, &[Layout::CompressedTensors, Layout::Gptq, Layout::AutoAwq, Layout::ModelOpt])]
#[case::integer("qwen3-tiny", INTEGER, &[Layout::CompressedTensors, Layout::AutoAwq, Layout::Gptq])]
#[case::eight_bits("llama3-tiny", WeightFormat::Q8_0, &[Layout::CompressedTensors, Layout::Gptq])]
fn every_layout_gives_back_the_artifacts_codes_and_logits(
    #[case] name: &str,
    #[case] format: WeightFormat,
    #[case] layouts: &[Layout],
) {
    let cache = tempfile::tempdir().unwrap();
    let original = source(name);
    let own = Checkpoint::open(&artifact(&original, format, cache.path())).unwrap();
    let expected = logits(&own, format, cache.path());
    // Files for other tools have the embedding in BF16: the same model wherever the source has it so, too.
    if original.require(Role::Embedding).unwrap().dtype == SourceDtype::Bf16 {
        assert!(logits(&original, format, cache.path()) == expected, "{name}: the artifact gives other logits");
    }
    assert_eq!(own.quantization().unwrap().format(), Some(format));
    let weights = stored(&own);
    assert_eq!(weights.len(), 7 * original.config().layers);

    // From the artifact into each layout, and from the first layout into each.
    let first = cache.path().join("first");
    export(&own, layouts[0], &first, &mut |_| {}).unwrap();
    for (from, source) in [("own", &own), ("first", &Checkpoint::open(&first).unwrap())] {
        for layout in layouts {
            let output = cache.path().join(format!("{from}-{}", layout.name()));
            export(source, *layout, &output, &mut |_| {}).unwrap();
            let read = Checkpoint::open(&output).unwrap();
            assert_eq!(read.quantization().unwrap().layout, *layout);
            assert!(stored(&read) == weights, "{name} {} from {from}: codes or scales changed", layout.name());
            let own_format = read.quantization().unwrap().format().unwrap();
            assert_eq!(own_format.kind(), format.kind());
            // AutoAWQ's zero points make the format another one, which has another grid for the embedding.
            if own_format == format {
                let found = logits(&read, own_format, cache.path());
                assert!(found == expected, "{name} {} from {from}: other logits", layout.name());
            }
        }
    }
}

#[test]
fn an_artifact_with_a_free_minimum_is_read_back_and_refused_elsewhere() {
    let cache = tempfile::tempdir().unwrap();
    let original = source("llama3-tiny");
    let directory = artifact(&original, MINIMUM, cache.path());
    assert_eq!(config(&directory)["quantization_config"]["quant_method"], "modelprofile-affine");
    let own = Checkpoint::open(&directory).unwrap();
    assert_eq!(own.quantization().unwrap().format(), Some(MINIMUM));
    assert!(logits(&own, MINIMUM, cache.path()) == logits(&original, MINIMUM, cache.path()));
    for layout in [Layout::CompressedTensors, Layout::AutoAwq, Layout::Gptq, Layout::ModelOpt] {
        let error = export(&own, layout, &cache.path().join("x"), &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("free minimum") && error.contains("`integer`"), "{error}");
        assert!(!cache.path().join("x").exists());
    }
}

/// ModelOpt has no scale per tensor without one for activations: there each row gets the tensor's.
#[test]
fn a_scale_of_a_tensor_is_written_once_where_the_layout_can_say_it() {
    let cache = tempfile::tempdir().unwrap();
    let directory = artifact(&source("llama3-tiny"), WeightFormat::Fp8Tensor, cache.path());
    let own = Checkpoint::open(&directory).unwrap();
    let [compressed, modelopt] = [Layout::CompressedTensors, Layout::ModelOpt].map(|layout| {
        let output = cache.path().join(layout.name());
        let notes = export(&own, layout, &output, &mut |_| {}).unwrap().notes.join(" ");
        assert_eq!(notes.contains("vLLM joins query, key and value"), layout == Layout::CompressedTensors, "{notes}");
        output
    });
    for (directory, shape) in [(&directory, [1]), (&compressed, [1]), (&modelopt, [96])] {
        let bytes = std::fs::read(directory.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("model.layers.0.mlp.up_proj.weight_scale").unwrap().shape(), shape);
    }
    for directory in [&directory, &compressed] {
        let group = &config(directory)["quantization_config"]["config_groups"]["group_0"];
        assert_eq!(
            (&group["weights"]["strategy"], &group["input_activations"]["strategy"]),
            (&"tensor".into(), &"token".into())
        );
    }
    let values =
        |directory: &Path| Checkpoint::open(directory).unwrap().quantized(Role::Up(0)).unwrap().unwrap().dequantize();
    assert!(values(&compressed) == values(&directory) && values(&modelopt) == values(&directory));
}

#[test]
fn an_artifact_with_outlier_columns_is_read_back_and_refused_elsewhere() {
    let cache = tempfile::tempdir().unwrap();
    let (original, store) = (source("llama3-tiny"), Store::new(cache.path()));
    let recipe = Recipe { format: WeightFormat::Int8, method: Method::LlmInt8 };
    let tokens: Vec<u32> = (0..200u32).map(|i| i.wrapping_mul(2_654_435_761) >> 25).collect();
    let text = Calibration::new(&tokens, 64, 0).unwrap();
    let prepare = |checkpoint: &Checkpoint, recipe, text: Option<&Calibration>| {
        store.prepare_calibrated(&mut support::cpu(), 1, checkpoint, recipe, text, &mut |_| {})
    };
    let made = prepare(&original, recipe, Some(&text)).unwrap();
    let own = Checkpoint::open(made.directory()).unwrap();
    assert_eq!(own.quantization().unwrap().recipe(), Some(recipe));
    // The columns come with it: no text is asked for.
    let again = prepare(&own, recipe, None).unwrap();
    assert_eq!(again.manifest().sha256, made.manifest().sha256);

    let dequantized = prepare(&own, WeightFormat::Bf16.into(), None).unwrap();
    let mut rows = [vec![0.0; 64], vec![0.0; 64]];
    made.weight("layers.1.qkv").unwrap().dequantize_row(40, &mut rows[0]).unwrap();
    dequantized.weight("layers.1.qkv").unwrap().dequantize_row(40, &mut rows[1]).unwrap();
    let rounded: Vec<f32> = rows[0].iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
    assert_eq!(rounded, rows[1]);

    for other in [Recipe::from(WeightFormat::Int8), Recipe { method: Method::Gptq, ..recipe }] {
        let error = prepare(&own, other, Some(&text)).unwrap_err().to_string();
        assert!(error.contains("not quantized again") && error.contains("INT8:llm-int8"), "{error}");
    }
    for layout in [Layout::CompressedTensors, Layout::AutoAwq, Layout::Gptq, Layout::ModelOpt] {
        let error = export(&own, layout, &cache.path().join("x"), &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("columns in 16 bits") && error.contains("`smoothquant`"), "{error}");
    }
}

#[test]
fn a_quantized_checkpoint_is_never_quantized_again() {
    let cache = tempfile::tempdir().unwrap();
    let own = Checkpoint::open(&artifact(&source("llama3-tiny"), INTEGER, cache.path())).unwrap();
    for format in [WeightFormat::Fp8, WeightFormat::Int8, SYMMETRIC, MINIMUM, WeightFormat::Q4_1] {
        let error = Store::new(cache.path()).prepare(&own, format, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("not quantized again") && error.contains("INT4:g32:integer"), "{error}");
    }
}

#[test]
fn bf16_is_the_dequantized_checkpoint() {
    let cache = tempfile::tempdir().unwrap();
    let original = source("llama3-tiny");
    let own = Checkpoint::open(&artifact(&original, INTEGER, cache.path())).unwrap();
    let artifact = Store::new(cache.path()).prepare(&own, WeightFormat::Bf16, &mut |_| {}).unwrap();
    let packed = artifact.weight("layers.0.down").unwrap();
    let expected = own.quantized(Role::Down(0)).unwrap().unwrap().dequantize();
    let mut row = vec![0.0; packed.spec.k];
    for (at, expected) in expected.chunks_exact(packed.spec.k).enumerate() {
        packed.dequantize_row(at, &mut row).unwrap();
        let rounded = expected.iter().map(|v| half::bf16::from_f32(*v).to_f32());
        assert!(row.iter().copied().eq(rounded), "row {at}");
    }
}

#[rstest]
#[case(WeightFormat::Fp8, Layout::AutoAwq, "compressed-tensors")]
#[case(WeightFormat::Fp8, Layout::Gptq, "compressed-tensors")]
#[case(WeightFormat::Int8, Layout::ModelOpt, "compressed-tensors")]
#[case(INTEGER, Layout::ModelOpt, "compressed-tensors")]
#[case(WeightFormat::Bf16, Layout::CompressedTensors, "name with --format")]
fn what_a_layout_cannot_say_is_refused_with_what_can(
    #[case] format: WeightFormat,
    #[case] layout: Layout,
    #[case] instead: &str,
) {
    let cache = tempfile::tempdir().unwrap();
    let own = Checkpoint::open(&artifact(&source("llama3-tiny"), format, cache.path())).unwrap();
    let error = export(&own, layout, &cache.path().join("x"), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains(instead), "{error}");
}

#[rstest]
#[case(Layout::CompressedTensors, ["k_scale", "v_scale"])]
#[case(Layout::ModelOpt, ["k_proj.k_scale", "v_proj.v_scale"])]
fn calibrated_scales_of_the_kv_cache_are_written_for_each_layer(#[case] layout: Layout, #[case] names: [&str; 2]) {
    let cache = tempfile::tempdir().unwrap();
    let own = Checkpoint::open(&artifact(&source("llama3-tiny"), WeightFormat::Fp8, cache.path())).unwrap();
    assert_eq!((own.config().layers, own.config().kv_heads), (2, 2));
    let scales = KvScales { k: vec![0.5, 0.25, 0.125, 1.0], v: vec![2.0, 3.0, 5.0, 4.0] };
    let output = cache.path().join("out");
    export_with_kv_scales(&own, layout, Some(&scales), &output, &mut |_| {}).unwrap();
    let written = Checkpoint::open(&output).unwrap();
    assert!(written.quantization().unwrap().fp8_kv_cache, "the configuration asks for the cache");
    let scale = |layer: usize, name: &str| {
        let name = format!("model.layers.{layer}.self_attn.{name}");
        written.tensors().find(|tensor| tensor.name == name).unwrap().to_f32().unwrap()
    };
    let found = [0, 1].map(|layer| names.map(|name| scale(layer, name)));
    // The largest of a layer's heads: none of them saturates.
    assert_eq!(found, [[[0.5], [3.0]], [[1.0], [5.0]]]);
}

#[test]
fn a_layout_without_scales_of_the_kv_cache_says_which_have_them() {
    let cache = tempfile::tempdir().unwrap();
    let own = Checkpoint::open(&artifact(&source("llama3-tiny"), SYMMETRIC, cache.path())).unwrap();
    let scales = KvScales { k: vec![1.0; 4], v: vec![1.0; 4] };
    let error = export_with_kv_scales(&own, Layout::Gptq, Some(&scales), &cache.path().join("x"), &mut |_| {});
    assert!(error.unwrap_err().to_string().contains("compressed-tensors and modelopt have"));
}

#[test]
fn the_files_beside_the_weights_come_along() {
    let cache = tempfile::tempdir().unwrap();
    let copy = cache.path().join("source");
    std::fs::create_dir(&copy).unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama3-tiny");
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(data.join(name), copy.join(name)).unwrap();
    }
    for name in ["tokenizer.json", "chat_template.jinja", "README.md"] {
        std::fs::write(copy.join(name), name).unwrap();
    }
    let own = artifact(&Checkpoint::open(&copy).unwrap(), SYMMETRIC, cache.path());
    assert!(!own.join("README.md").exists(), "the original's card speaks of other weights");
    std::fs::write(own.join("README.md"), "README.md").unwrap();
    let output = cache.path().join("awq");
    export(&Checkpoint::open(&own).unwrap(), Layout::AutoAwq, &output, &mut |_| {}).unwrap();
    for directory in [&own, &output] {
        for name in ["tokenizer.json", "chat_template.jinja", "README.md"] {
            assert_eq!(std::fs::read_to_string(directory.join(name)).unwrap(), name);
        }
        assert!(directory.join("generation_config.json").is_file());
    }
    // An existing directory is left alone.
    let error = export(&Checkpoint::open(&own).unwrap(), Layout::Gptq, &output, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("exists"), "{error}");
}

#[test]
fn an_artifact_whose_weights_were_changed_is_not_exported() {
    let cache = tempfile::tempdir().unwrap();
    let own = artifact(&source("llama3-tiny"), SYMMETRIC, cache.path());
    let path = own.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = export(&Checkpoint::open(&own).unwrap(), Layout::Gptq, &cache.path().join("x"), &mut |_| {});
    let error = error.unwrap_err().to_string();
    assert!(error.contains("model.safetensors has checksum"), "{error}");
}
