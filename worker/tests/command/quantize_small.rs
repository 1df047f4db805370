//! `quantize` on a small model: what a plan looks at, what a measurement leaves and is kept under.

use crate::hub::{Hub, ID};
use crate::tiny::{self, artifacts, fail, run, worker};

const WEIGHTS: &str = "model.safetensors";

#[test]
fn a_plan_fetches_no_weights_and_leaves_nothing_that_passes_for_a_model() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    for (name, bytes) in tiny::files() {
        hub.file(&name, &bytes, name == WEIGHTS);
    }
    let quantize = |options: &[&str]| {
        let mut command = worker(cache.path());
        command.env("HF_ENDPOINT", &hub.url).args(["quantize", "--format", "FP8,INT8:smoothquant", "--model"]);
        command.arg(format!("hf://{ID}")).args(options);
        command
    };
    let printed = run(&mut quantize(&["--plan"]));
    assert!(printed.contains(ID) && printed.contains("int8-row-smoothquant"), "{printed}");
    assert!(hub.hits(WEIGHTS).is_empty() && !cache.path().join("artifacts").exists());
    // With the weights in the cache, the plan is the same.
    run(&mut quantize(&["--no-measure"]));
    assert!(!hub.hits(WEIGHTS).is_empty());
    assert!(run(&mut quantize(&["--plan"])).contains(ID));
}

#[test]
fn a_plan_of_a_licence_that_was_not_accepted_is_refused() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.card(serde_json::json!({"license": "gemma"}));
    for (name, bytes) in tiny::files() {
        hub.file(&name, &bytes, name == WEIGHTS);
    }
    let mut command = worker(cache.path());
    command.env("HF_ENDPOINT", &hub.url).args(["quantize", "--plan", "--format", "FP8", "--model"]);
    let errors = fail(command.arg(format!("hf://{ID}")));
    assert!(errors.contains("--accept-licence gemma"), "{errors}");
}

#[test]
fn the_reference_of_a_measurement_goes_unless_it_was_asked_for_or_there_before() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), tiny::model(folder.path(), "license: mit\n"));
    let quantize = |format: &str| {
        let printed = run(worker(&cache).args(["quantize", "--format", format, "--model"]).arg(&model));
        assert!(printed.contains("perplexity"), "{printed}");
        artifacts(&cache).into_iter().map(|(format, _)| format).collect::<Vec<_>>()
    };
    assert_eq!(quantize("INT8,FP8"), ["fp8-e4m3-row", "int8-row"]);
    assert_eq!(quantize("BF16"), ["bf16", "fp8-e4m3-row", "int8-row"]);
    // As an evaluation of BF16 leaves it, without a card.
    for name in ["README.md", "quality.json"] {
        std::fs::remove_file(artifacts(&cache)[0].1.join(name)).unwrap();
    }
    assert_eq!(quantize("Q8_0"), ["bf16", "fp8-e4m3-row", "int8-row", "q8_0"]);
}

#[test]
fn a_quality_with_other_activations_is_not_taken_for_the_served_one() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), tiny::model(folder.path(), "license: mit\n"));
    let quantize = |options: &[&str]| {
        run(worker(&cache).args(["quantize", "--format", "INT4:g32", "--model"]).arg(&model).args(options))
    };
    assert!(quantize(&["--activations", "bf16"]).contains("BF16 activations"));
    let served = artifacts(&cache)[0].1.join("quality.json");
    assert!(!served.exists(), "a worker computes with INT8 activations unless it is told otherwise");
    let printed = quantize(&[]);
    assert!(served.exists() && !printed.contains("BF16 activations"), "{printed}");
}
