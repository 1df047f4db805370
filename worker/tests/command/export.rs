//! `export` and `evaluate` as a user runs them: models from a hub under the licence guard, and the card of what is made.

use std::{fs, path::Path};

use modelprofile_engine::checkpoint::{Checkpoint, SourceDtype, testing::tiny_llama};
use serde_json::json;

use crate::hub::{Hub, ID};
use crate::tiny::{self, artifacts, fail, run, worker};

const LICENSED: &str = "license: llama3.3\nbase_model: meta-llama/Llama-3.3-70B-Instruct\n";
const NOTE: &str = "note: publishing under llama3.3";

/// Each command that takes a model, with one of the hub.
fn commands(output: &Path) -> [Vec<String>; 3] {
    let output = output.display();
    [
        format!("export hub --format INT8 --layout compressed-tensors --output {output}/hub --model hf://{ID}"),
        // Of a directory it wants a vocabulary that GGUF has a name for.
        format!(
            "export gguf --type Q8_0 --output {output}/tiny.gguf \
             --model https://huggingface.co/{ID}/resolve/main/tiny.gguf"
        ),
        format!("evaluate --format BF16,INT8 --skip-generation --model hf://{ID}"),
    ]
    .map(|line| line.split(' ').map(str::to_owned).collect())
}

/// What the card of an artifact made of [`LICENSED`] says.
fn is_its_card(path: &Path, format: &str, method: &str) {
    let card = fs::read_to_string(path).unwrap();
    let (format, method) = (format!("| format | {format} |"), format!("| method | {method} |"));
    for part in [LICENSED, "base_model_relation: quantized\n", &format, &method] {
        assert!(card.contains(part), "{part} is missing from {}:\n{card}", path.display());
    }
    assert!(!card.contains("# The original"), "{card}");
}

#[test]
fn a_model_of_a_hub_is_taken_once_its_licence_is_accepted() {
    let (hub, folder) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.card(json!({"license": "llama3.3"}));
    for (name, mut bytes) in tiny::files() {
        if name == "tokenizer.json" {
            bytes = tiny::byte_tokenizer().into_bytes();
        }
        hub.file(&name, &bytes, name.ends_with(".safetensors"));
    }
    hub.file("tiny.gguf", &tiny_llama(SourceDtype::F16).build(), true);
    let cache = folder.path().join("cache");
    let command = |options: &[String], accepted: &[&str]| {
        let mut command = worker(&cache);
        command.env("HF_ENDPOINT", &hub.url).args(options).args(accepted);
        command
    };
    for options in commands(folder.path()) {
        let errors = fail(&mut command(&options, &[]));
        assert!(errors.contains("--accept-licence llama3.3"), "{options:?}: {errors}");
    }
    assert!(hub.hits("model.safetensors").is_empty() && !cache.join("artifacts").exists());
    for options in commands(folder.path()) {
        let printed = run(&mut command(&options, &["--accept-licence", "llama3.3"]));
        assert_eq!(printed.contains(NOTE), options[0] == "export", "{options:?}: {printed}");
    }
    assert!(folder.path().join("hub/model.safetensors").is_file() && folder.path().join("tiny.gguf").is_file());
}

#[test]
fn what_is_made_of_a_directory_has_a_card_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, out) = (folder.path().join("cache"), folder.path().join("out"));
    let model = tiny::model(folder.path(), LICENSED);
    fs::write(model.join("LICENSE"), "LLAMA 3.3 COMMUNITY LICENSE AGREEMENT").unwrap();
    let quantize = ["quantize", "--no-measure", "--format", "FP8,INT8:smoothquant", "--model"];
    run(worker(&cache).args(quantize).arg(&model));
    let [(_, fp8), (_, int8)] = &artifacts(&cache)[..] else { panic!("{:?}", artifacts(&cache)) };
    is_its_card(&fp8.join("README.md"), "fp8-e4m3-row", "RoundToNearest");
    is_its_card(&int8.join("README.md"), "int8-row", "SmoothQuant");
    assert!(int8.join("LICENSE").is_file());

    let export = |model: &Path, output: &Path, options: &[&str]| {
        let layout = ["export", "hub", "--layout", "compressed-tensors", "--output"];
        run(worker(&cache).args(layout).arg(output).arg("--model").arg(model).args(options))
    };
    let printed = export(int8, &out, &[]);
    assert!(printed.contains(NOTE), "{printed}");
    is_its_card(&out.join("README.md"), "int8-row", "SmoothQuant");
    // Of an original, what is exported was never an artifact before.
    let out = folder.path().join("direct");
    export(&model, &out, &["--format", "INT4:g32:symmetric:gptq"]);
    is_its_card(&out.join("README.md"), "int4-g32-symmetric", "GPTQ");
}

#[test]
fn an_evaluated_artifact_can_be_published_with_its_card() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), tiny::model(folder.path(), LICENSED));
    run(worker(&cache).args(["evaluate", "--format", "BF16,INT8", "--skip-generation", "--model"]).arg(&model));
    let [(_, bf16), (_, int8)] = &artifacts(&cache)[..] else { panic!("{:?}", artifacts(&cache)) };
    is_its_card(&int8.join("README.md"), "int8-row", "RoundToNearest");
    assert!(!bf16.join("README.md").exists(), "the reference is there to be measured with");
}

/// Scales of the KV cache in an exported directory: name, value.
fn kv_scales(directory: &Path) -> Vec<(String, f32)> {
    let checkpoint = Checkpoint::open(directory).unwrap();
    assert!(checkpoint.quantization().unwrap().fp8_kv_cache, "the configuration asks for an FP8 cache");
    let scales = checkpoint.tensors().filter(|tensor| tensor.name.ends_with("_scale") && tensor.cols == 1);
    let scales = scales.filter(|tensor| [".k_scale", ".v_scale"].iter().any(|end| tensor.name.ends_with(end)));
    scales.map(|tensor| (tensor.name.to_owned(), tensor.to_f32().unwrap()[0])).collect()
}

#[test]
fn an_export_has_the_kv_scales_that_a_worker_calibrates() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), tiny::model(folder.path(), "license: mit\n"));
    let export = |model: &Path, output: &Path, options: &[&str]| {
        run(worker(&cache)
            .args(["export", "hub", "--kv-cache", "fp8", "--output"])
            .arg(output)
            .arg("--model")
            .arg(model)
            .args(options))
    };
    let direct = folder.path().join("direct");
    export(&model, &direct, &["--layout", "compressed-tensors", "--format", "FP8"]);
    let scales = kv_scales(&direct);
    // Two layers.
    assert_eq!(scales.len(), 4);
    assert!(scales.iter().all(|(_, scale)| *scale > 0.0 && (*scale - 1.0).abs() > 1e-3), "{scales:?}");
    let formats = || artifacts(&cache).into_iter().map(|(format, _)| format).collect::<Vec<_>>();
    assert_eq!(formats(), ["fp8-e4m3-row"], "the reference of the calibration is gone");

    // A worker finds them, and has measured the same.
    let files = || fs::read_dir(cache.join("kv-scales")).unwrap().count();
    tiny::serve(&cache, &model, &["{name: a, weights: {format: FP8}, kvCache: {format: FP8E4M3}}"], "ready");
    assert_eq!(files(), 1);
    let stored = fs::read_dir(cache.join("kv-scales")).unwrap().next().unwrap().unwrap().path();
    let stored: serde_json::Value = serde_json::from_slice(&fs::read(stored).unwrap()).unwrap();
    let largest = |name: &str, layer: usize| {
        let heads = &stored[name].as_array().unwrap()[layer * 2..layer * 2 + 2];
        heads.iter().map(|scale| scale.as_f64().unwrap() as f32).fold(0.0, f32::max)
    };
    let expected = [("k", 0), ("v", 0), ("k", 1), ("v", 1)]
        .map(|(name, layer)| (format!("model.layers.{layer}.self_attn.{name}_scale"), largest(name, layer)));
    assert_eq!(scales, expected);

    // So has an artifact, whatever it was rounded to.
    run(worker(&cache).args(["quantize", "--no-measure", "--format", "INT8", "--model"]).arg(&model));
    let int8 = artifacts(&cache).into_iter().find(|(format, _)| format == "int8-row").unwrap().1;
    let indirect = folder.path().join("indirect");
    export(&int8, &indirect, &["--layout", "compressed-tensors"]);
    assert_eq!((kv_scales(&indirect), files()), (scales, 1));
}

#[test]
fn a_layout_without_kv_scales_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), tiny::model(folder.path(), "license: mit\n"));
    let options =
        ["export", "hub", "--kv-cache", "fp8", "--layout", "gptq", "--format", "INT4:g32:symmetric", "--output"];
    let errors = fail(worker(&cache).args(options).arg(folder.path().join("out")).arg("--model").arg(&model));
    assert!(errors.contains("compressed-tensors and modelopt have"), "{errors}");
    assert!(!cache.exists());
}
