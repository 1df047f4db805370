//! Calibrated scales of an FP8 E4M3 KV cache: measured once for all profiles, found again at the next start.

use std::{collections::BTreeSet, fs, path::Path, time::SystemTime};

use modelprofile_engine::{ProfileSpec, WeightFormat, checkpoint::Checkpoint, serve::EngineConfig};
use modelprofile_kernels::KvFormat;

use crate::support;

fn files(cache: &Path) -> BTreeSet<(String, SystemTime)> {
    let entries = fs::read_dir(cache.join("kv-scales")).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().modified().unwrap())).collect()
}

#[test]
fn scales_are_measured_once_for_both_profiles_and_again_for_another_text() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama3-tiny");
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let profile = |name, weights| ProfileSpec { kv: KvFormat::Fp8E4m3, ..support::profile(name, weights) };
    let config = |calibration| EngineConfig {
        cache: cache.path().to_owned(),
        calibration,
        max_context_tokens: Some(128),
        ..support::config(vec![profile("a", WeightFormat::Bf16), profile("b", WeightFormat::Int8)], 64)
    };
    let run = |calibration| {
        let engine = support::engine(&checkpoint, &config(calibration));
        assert_eq!(support::generate(&engine, &[5, 6, 7], 8).len(), 8);
        files(cache.path())
    };
    let first = run((0..64).collect());
    assert_eq!(first.len(), 1, "one file for both profiles");
    assert_eq!(run((0..64).collect()), first, "the second start rewrote the scales");
    let other = run((1..65).collect());
    assert_eq!(other.len(), 2, "another text has another key");
    assert!(other.is_superset(&first));
    // A start does not wait for a long text: its beginning is enough.
    let text = |last: u32| -> Vec<u32> { (0..1024).map(|i| i % 100).chain([last]).collect() };
    assert_eq!(run(text(3)), run(text(4)));
}
