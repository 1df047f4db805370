//! Tokenizers of directories against the GGUF vocabularies that they come from.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use std::path::Path;

use rstest::rstest;
use serde_json::json;

use super::*;
use crate::text::{
    fixtures::{byte_level, sentencepiece},
    load,
};

const MERGES: [(&str, &str); 4] = [("h", "e"), ("3", "4"), ("Ġ", "Ġ"), ("Ã", "¯")];
const ROWS: usize = 264;

/// A vocabulary of the fixtures, and the `tokenizer.json` that says the same.
fn pair(pre: &str) -> (GgufVocab, Value) {
    let vocab = byte_level(Some(pre), &MERGES);
    let json = vocab.to_tokenizer_json("fixture").unwrap();
    (vocab, json)
}

#[rstest]
#[case("smollm")]
#[case("qwen2")]
#[case("llama-bpe")]
#[case("gpt-2")]
fn a_known_split_is_recognized_and_the_vocabulary_is_the_same(#[case] pre: &str) {
    let (mut expected, mut json) = pair(pre);
    // Two rows of the embedding have no token.
    for id in [262, 263] {
        expected.tokens.push(format!("[PAD{id}]"));
        expected.token_types.push(UNUSED);
    }
    let found = vocabulary(&json, ROWS, "t").unwrap();
    assert_eq!(found, GgufVocab { eos: None, add_bos: Some(false), ..expected.clone() });

    // The older spelling of merges, and fields without effect.
    json["model"]["merges"] = expected.merges.iter().map(|merge| json!(merge)).collect();
    if let Some(fields) = json["pre_tokenizer"].as_object_mut() {
        fields.shift_remove("trim_offsets");
    }
    assert_eq!(vocabulary(&json, ROWS, "t").unwrap(), found);
}

#[test]
fn a_bos_is_added_where_the_post_processor_adds_one() {
    let (vocab, mut json) = pair("llama-bpe");
    let with_bos = GgufVocab { bos: Some(256), add_bos: Some(true), ..vocab };
    let post = with_bos.to_tokenizer_json("fixture").unwrap()["post_processor"].clone();
    json["post_processor"] = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, post]});
    assert_eq!(vocabulary(&json, ROWS, "t").unwrap().add_bos, Some(true));
}

#[test]
fn what_the_format_has_no_name_for_is_refused_by_name() {
    let refused = |json: &Value| vocabulary(json, ROWS, "t").unwrap_err().to_string();
    let (_, mut json) = pair("llama-bpe");
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("\\p{L}+|\\d{3}");
    let error = refused(&json);
    assert!(error.contains("Split \"\\\\p{L}+|\\\\d{3}\" + ByteLevel") && error.contains("smollm"), "{error}");
    // Llama 3's split with merges applied inside of known words would be another tokenizer.
    let (_, mut json) = pair("llama-bpe");
    json["model"]["ignore_merges"] = json!(false);
    assert!(refused(&json).contains("Split"));
    let llama2 = sentencepiece(&["▁", "a"]).to_tokenizer_json("fixture").unwrap();
    assert!(refused(&llama2).contains("SentencePiece"));
    let (_, json) = pair("gpt-2");
    assert!(vocabulary(&json, 100, "t").unwrap_err().to_string().contains("no id below 100"));
}

#[test]
fn a_vocabulary_that_would_cut_texts_otherwise_is_refused() {
    let (vocab, json) = pair("gpt-2");
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), json.to_string()).unwrap();
    let reference = Tokenizer::from_hf_dir(directory.path()).unwrap();
    check(&vocab, &reference, "t").unwrap();
    for pre in ["smollm", "qwen2", "llama-bpe"] {
        let other = GgufVocab { pre: Some(pre.to_owned()), ..vocab.clone() };
        assert!(check(&other, &reference, "t").is_err(), "{pre} passes for gpt-2");
    }
}

/// 49 thousand tokens and their merges, there and back.
#[test]
fn smollm2_keeps_its_vocabulary() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/SmolLM2-135M-Instruct-Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run `make model` first", path.display());
    let checkpoint = Checkpoint::open(&path).unwrap();
    let vocab = load::vocab(checkpoint.gguf_metadata().unwrap()).unwrap();
    let json = vocab.to_tokenizer_json("SmolLM2").unwrap();
    let found = vocabulary(&json, vocab.tokens.len(), "SmolLM2").unwrap();
    let (bos, eos, add_space_prefix) = (vocab.bos, vocab.eos, vocab.add_space_prefix);
    assert!(GgufVocab { bos, eos, add_space_prefix, ..found } == vocab);
}
