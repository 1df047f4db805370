//! What fuzzing found, one test each.

use std::{fs, time::Instant};

use modelprofile_engine::{
    WeightFormat,
    artifact::{Artifact, Store},
    checkpoint::{Checkpoint, SourceDtype, Value, testing::tiny_llama},
    text::Tokenizer,
};
use rstest::rstest;
use serde_json::{Value as Json, json};

use super::corpus;

/// An artifact with one number of one entry of its manifest replaced.
fn artifact_with(kind: &str, field: &str, value: u64) -> (tempfile::TempDir, Artifact, String) {
    let cache = tempfile::tempdir().unwrap();
    let built =
        Store::new(cache.path()).prepare(&corpus::open("llama3-tiny"), WeightFormat::Bf16, &mut |_| {}).unwrap();
    let path = built.directory().join("manifest.json");
    let mut manifest: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let entries = manifest["entries"].as_array_mut().unwrap();
    let entry = entries.iter_mut().find(|entry| entry["kind"] == kind).unwrap();
    entry[field] = json!(value);
    if value == 1 << 62 {
        // The product with the size of a value wraps to this.
        entry["len"] = json!(0);
    }
    let name = entry["name"].as_str().unwrap().to_owned();
    fs::write(&path, manifest.to_string()).unwrap();
    let artifact = Artifact::open(built.directory()).unwrap();
    (cache, artifact, name)
}

#[rstest]
#[case(1 << 62)]
#[case(u64::MAX)]
fn a_vector_whose_length_overflows_in_bytes(#[case] k: u64) {
    let (_cache, artifact, name) = artifact_with("f32", "k", k);
    assert!(artifact.vector(&name).unwrap_err().to_string().contains("is not a vector"));
}

#[rstest]
#[case("n", 1 << 62)]
#[case("k", 1 << 62)]
#[case("k", u64::MAX)]
fn a_weight_whose_packed_length_overflows(#[case] field: &str, #[case] value: u64) {
    let (_cache, artifact, name) = artifact_with("bf16", field, value);
    assert!(artifact.weight(&name).unwrap_err().to_string().contains("larger than any model's"));
}

/// Parts that the library takes without a look, and panics over when it uses them.
#[rstest]
#[case::pieces_of_no_length("pre_tokenizer", json!({"type": "FixedLength", "length": 0}))]
#[case::an_empty_character_map("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}))]
#[case::a_template_of_the_second_text("post_processor", json!({
    "type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {},
}))]
fn tokenizer_parts_that_panic_in_use_are_errors(#[case] part: &str, #[case] value: Json) {
    let sample = corpus::tokenizers().remove(0);
    let mut tokenizer: Json = serde_json::from_slice(&sample.files["tokenizer.json"]).unwrap();
    tokenizer[part] = value;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let encoded = Tokenizer::from_hf_dir(folder.path()).and_then(|tokenizer| tokenizer.encode("hello world", true));
    let error = encoded.unwrap_err().to_string();
    assert!(error.contains("do not fit together") || error.contains("not a tokenizer"), "{error}");
}

/// Found by reading what the fuzzer was to find: duplicates were looked for in a list.
#[test]
fn a_vocabulary_of_nothing_but_ends_opens_at_once() {
    let count = 1_000_000;
    let bytes = tiny_llama(SourceDtype::Q8_0)
        .entry("tokenizer.ggml.tokens", Value::Texts(vec!["<|im_end|>".to_owned(); count]))
        .entry("tokenizer.ggml.token_type", Value::Integers(vec![3; count]))
        .build();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ends.gguf");
    fs::write(&path, bytes).unwrap();
    let begun = Instant::now();
    assert_eq!(Checkpoint::open(&path).unwrap().config().eos_tokens.len(), count);
    assert!(begun.elapsed().as_secs() < 5, "{:.1?}", begun.elapsed());
}
