//! Tokenizers, vocabularies and chat templates out of damaged files: an error or something usable, never a panic.

use proptest::prelude::*;
use serde_json::json;

use super::{
    ChatTemplate, GgufVocab, Tokenizer,
    fixtures::{byte_level, sentencepiece},
};

const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}\
    {% if loop.last %}{{ '<|im_end|>' | trim }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ bos_token }}{% endif %}";

/// Places (as a share of the length) and the bytes put there; an odd byte also cuts what follows it out.
fn damage() -> impl Strategy<Value = Vec<(f64, u8)>> {
    proptest::collection::vec((0.0..1.0, any::<u8>()), 1..6)
}

fn apply(bytes: &mut Vec<u8>, damage: &[(f64, u8)]) {
    for (place, value) in damage {
        let at = (place * bytes.len() as f64) as usize;
        if at >= bytes.len() {
            continue;
        }
        bytes[at] = *value;
        if value % 7 == 1 {
            bytes.drain(at..bytes.len().min(at + usize::from(*value)));
        }
    }
}

/// Uses a tokenizer as requests do.
fn exercise(tokenizer: &Tokenizer) {
    let _ = tokenizer.encode("hello world é 1234 <|end|> \u{1F600}", true);
    let ids: Vec<u32> = (0..300).chain([u32::MAX]).collect();
    let _ = tokenizer.decode(&ids, true);
    for id in ids {
        let _ = tokenizer.token_bytes(id);
    }
}

fn vocabularies() -> [GgufVocab; 2] {
    let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")];
    [byte_level(Some("smollm"), &merges), sentencepiece(&["▁t", "he", "▁the", "▁", "c", "a"])]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_damaged_tokenizer_file_never_panics(damage in damage(), which in 0usize..2) {
        let json = vocabularies()[which].to_tokenizer_json("sound.gguf").unwrap();
        let mut bytes = serde_json::to_vec(&json).unwrap();
        apply(&mut bytes, &damage);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tokenizer.json"), bytes).unwrap();
        if let Ok(tokenizer) = Tokenizer::from_hf_dir(directory.path()) {
            exercise(&tokenizer);
        }
    }

    #[test]
    fn a_vocabulary_that_lies_never_panics(
        which in 0usize..2,
        texts in proptest::collection::vec((0usize..300, "\\PC{0,6}"), 0..4),
        kinds in proptest::collection::vec((0usize..300, -2i32..9), 0..4),
        lengths in (0usize..400, 0usize..400, 0usize..8),
        score in any::<f32>(),
        ids in (any::<u32>(), any::<u32>()),
        merge in "\\PC{0,8}",
    ) {
        let mut vocab = vocabularies()[which].clone();
        for (at, text) in texts {
            if let Some(token) = vocab.tokens.get_mut(at) {
                *token = text;
            }
        }
        for (at, kind) in kinds {
            if let Some(place) = vocab.token_types.get_mut(at) {
                *place = kind;
            }
        }
        vocab.token_types.truncate(lengths.0);
        vocab.scores.truncate(lengths.1);
        vocab.merges.truncate(lengths.2);
        vocab.merges.push(merge);
        if let Some(place) = vocab.scores.last_mut() {
            *place = score;
        }
        (vocab.bos, vocab.eos) = (Some(ids.0), Some(ids.1));
        if let Ok(tokenizer) = Tokenizer::from_gguf(&vocab, "hostile.gguf") {
            exercise(&tokenizer);
        }
    }

    #[test]
    fn a_damaged_chat_template_never_panics(damage in damage()) {
        let mut bytes = TEMPLATE.as_bytes().to_vec();
        apply(&mut bytes, &damage);
        let source = String::from_utf8_lossy(&bytes);
        if let Ok(template) = ChatTemplate::new(&source, Some("<s>"), Some("</s>")) {
            let _ = template.render(&json!([{"role": "user", "content": "hello"}]), None, true);
        }
    }
}

#[test]
fn one_huge_token_does_not_take_for_ever() {
    let huge = "a".repeat(4 << 20);
    let tokenizer = Tokenizer::from_gguf(&sentencepiece(&["a", "aa", &huge]), "hostile.gguf");
    if let Ok(tokenizer) = tokenizer {
        exercise(&tokenizer);
    }
}
