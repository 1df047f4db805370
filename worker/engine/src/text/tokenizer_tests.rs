use rstest::rstest;
use serde_json::json;

use super::*;
use crate::text::fixtures::{byte_level, sentencepiece, spaces, words};

fn texts(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, false).unwrap();
    ids.iter().map(|&id| String::from_utf8(tokenizer.token_bytes(id)).unwrap()).collect()
}

#[test]
fn byte_level_merges_and_decodes() {
    let tokenizer = words();
    assert_eq!(texts(&tokenizer, "hello world"), ["hello", " w", "o", "r", "l", "d"]);
    let ids = tokenizer.encode("é\u{1F600}\0", false).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "é\u{1F600}\0");
}

#[test]
fn special_tokens_are_found_in_text_and_left_out_on_request() {
    let tokenizer = words();
    let ids = tokenizer.encode("hello<|end|><tool>", false).unwrap();
    assert_eq!(ids, [261, 256, 257]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello<tool>");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "hello<|end|><tool>");
    assert_eq!((tokenizer.eos(), tokenizer.bos(), tokenizer.vocab()), (Some(256), None, 264));
}

/// The pre-tokenizer decides what may merge: here every pair of these digits and letters could.
#[rstest]
#[case::gpt2(None, "a1234", &["a", "1234"])]
#[case::smollm(Some("smollm"), "a1234", &["a", "1", "2", "3", "4"])]
#[case::llama3(Some("llama-bpe"), "a1234", &["a", "123", "4"])]
#[case::qwen2(Some("qwen2"), "a1234", &["a", "1", "2", "3", "4"])]
fn digits_split_as_the_file_says(#[case] pre: Option<&str>, #[case] text: &str, #[case] expected: &[&str]) {
    let merges = [("1", "2"), ("12", "3"), ("123", "4"), ("a", "1")];
    let tokenizer = Tokenizer::from_gguf(&byte_level(pre, &merges), "digits.gguf").unwrap();
    assert_eq!(texts(&tokenizer, text), expected);
}

#[test]
fn llama3_takes_whole_words_that_no_merge_builds_and_adds_bos() {
    let mut vocab = byte_level(Some("llama-bpe"), &[("x", "y")]);
    vocab.tokens.push("word".into());
    vocab.token_types.push(1);
    vocab.bos = Some(256);
    let tokenizer = Tokenizer::from_gguf(&vocab, "llama3.gguf").unwrap();
    assert_eq!(tokenizer.encode("word", true).unwrap(), [256, 259]);
    assert_eq!(tokenizer.encode("word", false).unwrap(), [259]);
}

#[test]
fn sentencepiece_merges_by_score_with_byte_fallback() {
    let tokenizer = spaces();
    // "▁the" is built from "▁t" (best score) and "he"; the newline and the emoji fall back to bytes.
    assert_eq!(texts(&tokenizer, "the cat\n"), [" the", " ", "c", "a", "t", "\n"]);
    let text = "the é\u{1F600} cat";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(ids[0], 1);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), format!("<s> {text}"));
}

#[test]
fn sentencepiece_without_space_prefix_keeps_spaces() {
    let mut vocab = sentencepiece(&["▁t", "he", "▁the", "t", "h", "e", "▁"]);
    vocab.add_space_prefix = Some(false);
    vocab.add_bos = Some(false);
    let tokenizer = Tokenizer::from_gguf(&vocab, "gemma.gguf").unwrap();
    assert_eq!(texts(&tokenizer, "the the"), ["t", "he", " the"]);
    let ids = tokenizer.encode(" the", true).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), " the");
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let error = words().decode(&[1, 99_999], false).unwrap_err();
    assert_eq!(error.to_string(), "token 99999 is outside the vocabulary of 264");
    assert_eq!(words().token_bytes(99_999), b"");
}

fn broken(change: impl FnOnce(&mut GgufVocab)) -> String {
    let mut vocab = byte_level(Some("smollm"), &[("a", "b")]);
    change(&mut vocab);
    Tokenizer::from_gguf(&vocab, "m.gguf").unwrap_err().to_string()
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let error = broken(|v| v.pre = Some("tekken".into()));
    assert!(error.contains("tokenizer.ggml.pre = tekken"), "{error}");
    let error = broken(|v| v.model = "t5".into());
    assert!(error.contains("tokenizer.ggml.model = t5"), "{error}");
}

#[test]
fn malformed_vocabularies_name_the_field() {
    for (error, expected) in [
        (broken(|v| v.tokens.clear()), "m.gguf: tokenizer.ggml.tokens is missing or empty"),
        (broken(|v| v.token_types.truncate(3)), "m.gguf: tokenizer.ggml.token_type has 3 entries for 259 tokens"),
        (broken(|v| v.merges.clear()), "m.gguf: tokenizer.ggml.merges is missing or empty"),
        (
            broken(|v| v.merges[0] = "ab".into()),
            "m.gguf: tokenizer.ggml.merges[0]: \"ab\" is not two tokens with a space between",
        ),
        (broken(|v| v.bos = Some(999)), "m.gguf: tokenizer.ggml.bos_token_id = 999 is outside the vocabulary of 259"),
    ] {
        assert_eq!(error, expected);
    }
    let error = broken(|v| v.merges[0] = "a zzz".into());
    assert!(error.starts_with("m.gguf: not a tokenizer"), "{error}");
    let mut vocab = sentencepiece(&["a"]);
    vocab.scores.pop();
    let error = Tokenizer::from_gguf(&vocab, "m.gguf").unwrap_err().to_string();
    assert_eq!(error, "m.gguf: tokenizer.ggml.scores has 259 entries for 260 tokens");
}

#[test]
fn reads_a_hugging_face_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut tokenizer = byte_level(Some("smollm"), &[("a", "b")]).to_tokenizer_json("made here").unwrap();
    tokenizer["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"bos_token": null, "eos_token": {"content": "<|end|>", "special": true}});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::from_hf_dir(dir.path()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (None, Some(256)));
    assert_eq!(texts(&tokenizer, "ab12"), ["ab", "1", "2"], "not truncated");
}

#[test]
fn broken_hugging_face_directories_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let message = |dir: &std::path::Path| Tokenizer::from_hf_dir(dir).unwrap_err().to_string();
    assert!(message(dir.path()).contains("tokenizer.json"));
    std::fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
    assert!(message(dir.path()).contains("no tokenizer.json"));
    for content in ["", "{}", "[1]", r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}"#] {
        std::fs::write(dir.path().join("tokenizer.json"), content).unwrap();
        assert!(message(dir.path()).contains("tokenizer.json"), "{content}");
    }
    let far = json!({
        "version": "1.0", "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": {"a": 4_000_000_000_u32}, "merges": []},
    });
    std::fs::write(dir.path().join("tokenizer.json"), far.to_string()).unwrap();
    assert!(message(dir.path()).contains("above the limit"), "{}", message(dir.path()));
}

/// Decoders that are not incremental are refused when the model is loaded, not found wrong while it answers.
#[test]
fn other_decoders_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let word_piece = json!({
        "version": "1.0", "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    });
    std::fs::write(dir.path().join("tokenizer.json"), word_piece.to_string()).unwrap();
    let error = Tokenizer::from_hf_dir(dir.path()).unwrap_err();
    assert!(error.to_string().contains("decoder WordPiece"), "{error}");
}

#[test]
fn long_input_of_one_kind_is_tokenized() {
    let tokenizer = words();
    for unit in [" ", "a", "1", "\n", "é", "\u{1F600}"] {
        let text = format!("{}x", unit.repeat(20_000));
        let ids = tokenizer.encode(&text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}
