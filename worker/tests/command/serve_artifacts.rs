//! Which artifacts a worker serves from: those that `quantize` has made, in the formats that checkpoints come in.

use rstest::rstest;

use crate::tiny::{self, artifacts, run, serve, worker};

#[test]
fn a_worker_serves_the_calibrated_artifact_that_quantize_made() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), tiny::model(folder.path(), "license: mit\n"));
    let quantize = ["quantize", "--no-measure", "--format", "INT8:smoothquant", "--model"];
    run(worker(&cache).args(quantize).arg(&model));
    let log = serve(&cache, &model, &["{name: a, weights: {format: INT8, method: SmoothQuant}}"], "ready");
    let formats: Vec<String> = artifacts(&cache).into_iter().map(|(format, _)| format).collect();
    assert_eq!(formats, ["bf16", "int8-row-smoothquant"], "{log}");
}

#[rstest]
fn a_checkpoint_of_any_kind_of_fp8_is_served_as_fp8(#[values("tensor", "static", "row")] kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), tiny::model(folder.path(), "license: mit\n"));
    let published = folder.path().join("published");
    let format = format!("FP8:{kind}");
    let export = ["export", "hub", "--layout", "compressed-tensors", "--format", &format, "--output"];
    run(worker(&folder.path().join("other")).args(export).arg(&published).arg("--model").arg(&model));
    serve(&cache, &published, &["{name: a, weights: {format: FP8}}"], "ready");
    let formats: Vec<String> = artifacts(&cache).into_iter().map(|(format, _)| format).collect();
    assert_eq!(formats, ["bf16".to_owned(), format!("fp8-e4m3-{kind}")]);
    // Another format is refused with what the manifest takes.
    let log = serve(&cache, &published, &["{name: a, weights: {format: INT8}}"], "error: ");
    assert!(log.contains(if kind == "row" { "Write FP8, which" } else { "(in a manifest {format: FP8})" }), "{log}");
}
