//! Small vocabularies for the tests of this module.

use std::sync::Arc;

use super::pieces::BYTE_CHARS;
use super::{GgufVocab, Tokenizer};

/// All bytes as tokens 0..256, then `<|end|>` (control, 256), `<tool>` (user-defined, 257), then one token per merge.
pub(crate) fn byte_level(pre: Option<&str>, merges: &[(&str, &str)]) -> GgufVocab {
    let mut tokens: Vec<String> = BYTE_CHARS.iter().map(char::to_string).collect();
    let mut token_types = vec![1; 256];
    tokens.extend(["<|end|>".into(), "<tool>".into()]);
    token_types.extend([3, 4]);
    for (left, right) in merges {
        tokens.push(format!("{left}{right}"));
        token_types.push(1);
    }
    GgufVocab {
        model: "gpt2".into(),
        pre: pre.map(Into::into),
        tokens,
        token_types,
        merges: merges.iter().map(|(left, right)| format!("{left} {right}")).collect(),
        eos: Some(256),
        ..GgufVocab::default()
    }
}

/// `<unk>`, `<s>`, `</s>`, the 256 byte tokens (3..259), then `words` in order of falling score.
pub(crate) fn sentencepiece(words: &[&str]) -> GgufVocab {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(Into::into).to_vec();
    let mut token_types = vec![2, 3, 3];
    for byte in 0..=255_u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        token_types.push(6);
    }
    let mut scores = vec![0.0; tokens.len()];
    for (rank, word) in words.iter().enumerate() {
        tokens.push((*word).into());
        token_types.push(1);
        scores.push(-(rank as f32));
    }
    GgufVocab { model: "llama".into(), tokens, token_types, scores, bos: Some(1), eos: Some(2), ..GgufVocab::default() }
}

/// Bytes and a few words, as most current models have.
pub(super) fn words() -> Arc<Tokenizer> {
    let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("Ã", "©")];
    Arc::new(Tokenizer::from_gguf(&byte_level(None, &merges), "words.gguf").unwrap())
}

/// A small Llama 2 style vocabulary.
pub(super) fn spaces() -> Arc<Tokenizer> {
    let words = ["▁t", "he", "▁the", "▁", "c", "a", "t", "h", "e", "é"];
    Arc::new(Tokenizer::from_gguf(&sentencepiece(&words), "spaces.gguf").unwrap())
}
