//! `evaluate` as a user runs it, on the real model: results and reports, blind sheets, and a quality that is measured once.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, MutexGuard, PoisonError},
};

use modelprofile_engine::{
    WeightFormat,
    artifact::{Artifact, Store},
    checkpoint::Checkpoint,
};
use modelprofile_kernels::{
    GroupedActivations,
    cpu::{Cpu, CpuOptions},
};
use modelprofile_worker::quality::{self, Dataset};
use serde_json::Value;

const PROMPTS: &str = r#"
{"id":"a","topic":"chat","language":"en","messages":[{"role":"user","content":"Count from one to five."}]}
{"id":"b","topic":"chat","language":"fr","messages":[{"role":"user","content":"Bonjour !"},{"role":"assistant","content":"Bonjour, que puis-je faire ?"},{"role":"user","content":"Dis au revoir."}]}
"#;

/// One at a time: they share a cache, and two would halve each other's cores.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn model() -> PathBuf {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/SmolLM2-135M-Instruct-Q4_1.gguf");
    assert!(model.exists(), "{} is missing: run `make model` first", model.display());
    model
}

/// Artifacts stay from run to run: what is tested here is what is measured on them.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("artifacts")
}

fn evaluate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_modelprofile-worker")).arg("evaluate").args(arguments).output().unwrap()
}

fn evaluate_model(arguments: &[&str]) -> String {
    let (model, cache) = (model(), cache());
    let common = ["--model", model.to_str().unwrap(), "--cache", cache.to_str().unwrap(), "--threads", "2"];
    let output = evaluate(&[&common, arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn directory(format: WeightFormat) -> PathBuf {
    let checkpoint = Checkpoint::open(&model()).unwrap();
    Store::new(&cache()).prepare(&checkpoint, format, &mut |_| {}).unwrap().directory().to_owned()
}

#[test]
fn an_evaluation_is_kept_beside_its_artifact_and_reported() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("prompts.jsonl"), PROMPTS).unwrap();
    let (prompts, html, markdown) = (at("prompts.jsonl"), at("report.html"), at("report.md"));
    let printed = evaluate_model(&[
        "--format",
        "BF16,Q4_1",
        "--characters",
        "2000",
        "--window",
        "128",
        "--prompts",
        &prompts,
        "--max-tokens",
        "12",
        "--needle",
        "256,1000000",
        "--report",
        &html,
        "--report",
        &markdown,
    ]);
    assert!(printed.contains("q4_1") && printed.contains("limits"), "{printed}");
    let result = fs::read_to_string(directory(WeightFormat::Q4_1).join("evaluation.json")).unwrap();
    let result: Value = serde_json::from_str(&result).unwrap();
    let [reference, profile] = result["profiles"].as_array().unwrap().as_slice() else { panic!("{result}") };
    assert_eq!((&reference["name"], &profile["name"]), (&"bf16".into(), &"q4_1".into()));
    let comparison = &profile["comparison"];
    assert_eq!(comparison["referencePerplexity"], reference["comparison"]["perplexity"]);
    assert!(comparison["divergence"]["value"].as_f64().unwrap() > 0.0);
    assert_eq!(reference["comparison"]["divergence"]["value"].as_f64(), Some(0.0));
    let generation = &profile["generation"];
    assert_eq!(generation["greedy"]["answers"], 2);
    let needles = generation["needles"].as_array().unwrap();
    assert_eq!(needles.len(), 3, "the length beyond the model's is left out");
    assert!(needles.iter().all(|n| (150..=256).contains(&n["tokens"].as_u64().unwrap())), "{needles:?}");
    let html = fs::read_to_string(html).unwrap();
    let perplexity = format!("{:.4}", comparison["perplexity"]["value"].as_f64().unwrap());
    assert!(html.contains(&perplexity) && fs::read_to_string(markdown).unwrap().contains(&perplexity));
}

#[test]
fn a_blind_sheet_is_written_filled_and_counted() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("prompts.jsonl"), PROMPTS).unwrap();
    let (prompts, sheets, sheet, key) = (at("prompts.jsonl"), at("s"), at("s/sheet.csv"), at("s/key.json"));
    let printed =
        evaluate_model(&["--format", "BF16,Q4_1", "--prompts", &prompts, "--max-tokens", "8", "--sheets", &sheets]);
    let csv = fs::read_to_string(&sheet).unwrap();
    let commitment = printed.split("commitment ").nth(1).unwrap().lines().next().unwrap();
    assert!(csv.starts_with("\"# ModelProfile blind sheet, commitment ") || csv.starts_with("# ModelProfile"), "{csv}");
    assert!(csv.contains(commitment) && !csv.contains("q4_1") && fs::read_to_string(at("s/sheet.md")).is_ok());
    // Each record ends in an empty judgement.
    fs::write(&sheet, csv.replace(",\r\n", ",=\r\n")).unwrap();
    let counted = evaluate(&["--score", &sheet, "--key", &key]);
    let counted = String::from_utf8_lossy(&counted.stdout).into_owned();
    assert!(counted.contains("ties: 2") && counted.contains("p = 1.0000"), "{counted}");
    fs::write(&sheet, csv.replacen("Count from one", "Count from two", 1)).unwrap();
    let refused = evaluate(&["--score", &sheet, "--key", &key]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("row 1 was changed"));
}

#[test]
fn a_quality_is_measured_once_for_an_artifact_and_text() {
    let _alone = alone();
    let checkpoint = Checkpoint::open(&model()).unwrap();
    let artifact = Store::new(&cache()).prepare(&checkpoint, WeightFormat::Q4_1, &mut |_| {}).unwrap();
    let text: String = Dataset::built_in().text().chars().take(1500).collect();
    let dataset = Dataset::new("a test's text", text).with_window(64).with_most_tokens(Some(200));
    let base = Store::new(&cache()).prepare(&checkpoint, WeightFormat::Bf16, &mut |_| {}).unwrap();
    // The artifacts stay from run to run, and with them what was measured on the built-in text, which has another name.
    let remove = || {
        let files = [&artifact, &base].into_iter().flat_map(|artifact| fs::read_dir(artifact.directory()).unwrap());
        let files = files.map(|file| file.unwrap().path());
        let measured = files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("quality-"));
        measured.for_each(|path| fs::remove_file(path).unwrap());
    };
    remove();
    let measure_all = |artifacts: &[&Artifact], dataset: &Dataset| {
        let cpu = || Ok(Cpu::new(CpuOptions { threads: 2, isa: None, grouped_activations: GroupedActivations::Int8 })?);
        let mut windows = 0;
        let found = quality::measure_or_load(cpu, &cache(), &checkpoint, artifacts, dataset, &mut |progress| {
            windows += usize::from(progress.activity.starts_with("measuring"));
        });
        (found.unwrap(), windows)
    };
    let measure = |dataset: &Dataset| {
        let (found, windows) = measure_all(&[&artifact], dataset);
        (found[0].clone(), windows)
    };
    let (first, windows) = measure(&dataset);
    assert_eq!((windows, first.tokens), (3, 3 * 31));
    assert!(first.mean_kl_divergence > 0.0 && first.p99_kl_divergence > first.mean_kl_divergence);
    assert!(first.perplexity > 1.0 && (50.0..100.0).contains(&first.top1_agreement_percent));
    assert_eq!(measure(&dataset), (first.clone(), 0));
    let (other, windows) = measure(&dataset.clone().with_most_tokens(Some(130)));
    assert_eq!(windows, 2);
    assert_ne!(other.dataset, first.dataset);
    // Each has a file of its own.
    assert_eq!(measure(&dataset), (first.clone(), 0));
    remove();
    // Together, in one pass over the windows, each gives what it gives alone; the reference has lost nothing.
    let (together, windows) = measure_all(&[&artifact, &base, &artifact], &dataset);
    assert_eq!(windows, 3);
    assert_eq!(together[0].perplexity.to_bits(), first.perplexity.to_bits());
    assert_eq!(together[0].p99_kl_divergence.to_bits(), first.p99_kl_divergence.to_bits());
    assert_eq!(together[2], together[0]);
    assert_eq!((together[1].mean_kl_divergence, together[1].perplexity), (0.0, first.reference_perplexity));
    remove();
}

#[test]
fn a_text_shorter_than_a_window_is_refused_with_both_lengths() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.txt");
    fs::write(&path, "Too short.").unwrap();
    let (model, cache) = (model(), cache());
    let output = evaluate(&[
        "--model",
        model.to_str().unwrap(),
        "--cache",
        cache.to_str().unwrap(),
        "--text",
        path.to_str().unwrap(),
    ]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("fewer than one window of 512"), "{error}");
}
