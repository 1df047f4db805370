//! The licence of the manifest against the one of the real model, by the command itself.

use std::{path::Path, process::Command};

const MODEL: &str = "models/SmolLM2-135M-Instruct-Q4_1.gguf";

#[test]
fn a_licence_that_was_not_accepted_ends_the_worker_before_it_writes_anything() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    assert!(root.join(MODEL).exists(), "{MODEL} is missing: run `make model` first");
    let folder = tempfile::tempdir().unwrap();
    let (manifest, cache) = (folder.path().join("profile.yaml"), folder.path().join("cache"));
    let text = format!(
        "apiVersion: modelprofile.dev/v1alpha1
kind: ModelProfile
metadata: {{name: demo}}
spec:
  model: {{uri: 'file://./{MODEL}', license: {{accepted: llama3.3}}}}
  profiles:
  - {{name: quality, weights: {{format: FP8}}, kvCache: {{format: BF16}}}}
"
    );
    std::fs::write(&manifest, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_modelprofile-worker"))
        .current_dir(root)
        .args(["serve", "--port", "0", "--admin-port", "0"])
        .arg("--config")
        .arg(&manifest)
        .arg("--cache")
        .arg(&cache)
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let sentence = "error: the checkpoint declares the licence apache-2.0, but spec.model.license.accepted is llama3.3: \
                    read the checkpoint's licence and, if you accept it, write apache-2.0 there; nothing was quantized";
    assert_eq!(errors.lines().last(), Some(sentence), "{errors}");
    assert!(!cache.exists(), "the cache was written to");
}
