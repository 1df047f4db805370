//! Which artifacts a worker serves from: those that `quantize` has made, in the formats that checkpoints come in.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

#[allow(dead_code, reason = "each test binary uses its part")]
mod tiny;

use tiny::{artifacts, run, serve, worker};

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
