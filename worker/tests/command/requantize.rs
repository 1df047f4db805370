//! A GGUF file's weights that are rounded a second time: said before it is done, kept with the artifact, shown by `inspect`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use modelprofile_engine::artifact::Manifest;

/// The tensors of SmolLM2's file: seven matrices of each of 30 layers; its embedding is Q8_0, which every format keeps.
const AGAIN: &str = "Q4_1 (210 tensors)";

fn worker(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_modelprofile-worker")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn model() -> PathBuf {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/SmolLM2-135M-Instruct-Q4_1.gguf");
    assert!(model.exists(), "{} is missing: run `make model` first", model.display());
    model
}

/// What `quantize` warns of, and the artifact's directory.
fn quantize(cache: &Path, format: &str) -> (String, PathBuf) {
    let (model, at) = (model(), cache.to_str().unwrap());
    let output =
        worker(&["quantize", "--model", model.to_str().unwrap(), "--no-measure", "--format", format, "--cache", at]);
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let key = stdout.split("  ").nth(2).unwrap().to_owned();
    let warnings = stderr.lines().filter(|line| line.contains("WARN"));
    (warnings.collect(), cache.join("artifacts").join(key))
}

#[test]
fn a_second_rounding_is_warned_about_and_kept_with_the_artifact() {
    let cache = tempfile::tempdir().unwrap();
    let (warning, directory) = quantize(cache.path(), "FP8");
    for part in [AGAIN, "fp8-e4m3-row rounds these weights a second time", "give the original checkpoint"] {
        assert!(warning.contains(part), "{part} is missing: {warning}");
    }
    let manifest = Manifest::read(&directory).unwrap().unwrap();
    assert_eq!(manifest.source_quantization.to_string(), AGAIN);
    let card = std::fs::read_to_string(directory.join("README.md")).unwrap();
    assert!(card.contains(&format!("| source quantization | {AGAIN}, rounded a second time |")), "{card}");
    let shown = String::from_utf8(worker(&["inspect", directory.to_str().unwrap()]).stdout).unwrap();
    assert!(shown.contains(&format!("quantized already: {AGAIN}; rounded a second time here")), "{shown}");
    // Found again, it is said again.
    assert_eq!(quantize(cache.path(), "FP8").0.matches("a second time").count(), 1);
}

#[test]
fn what_is_taken_over_bit_for_bit_is_not_warned_about() {
    let cache = tempfile::tempdir().unwrap();
    let (warning, directory) = quantize(cache.path(), "Q4_1");
    assert_eq!(warning, "");
    assert!(Manifest::read(&directory).unwrap().unwrap().source_quantization.is_empty());
    let card = std::fs::read_to_string(directory.join("README.md")).unwrap();
    assert!(!card.contains("source quantization"), "{card}");
    let model = model();
    let shown = String::from_utf8(worker(&["inspect", model.to_str().unwrap()]).stdout).unwrap();
    assert!(shown.contains("taken over by Q4_1, bit for bit; other formats but BF16 round a second time"), "{shown}");
}
