//! The tokenizer of a Hugging Face directory as `tokenizer.ggml.*`.
//!
//! A GGUF file names its pre-tokenizer instead of describing it. A wrong name gives fluent but wrong tokens, so the name is
//! taken only where `tokenizer.json` describes exactly that split, and the result is tried: both forms must cut a probe
//! text the same way.

use serde_json::Value;

use super::writer::Entry;
use crate::{
    EngineError, Result,
    checkpoint::{Checkpoint, gguf_config::END_TEXTS},
    text::{
        ChatTemplate, GgufVocab, Tokenizer,
        gguf_vocab::{CONTROL, NORMAL, UNUSED, USER_DEFINED, byte_level_split},
        tokenizer::{read_bounded, special_token},
    },
};

/// Pre-tokenizers that are recognized.
const PRE: [&str; 4] = ["smollm", "qwen2", "llama-bpe", "gpt-2"];
/// What pre-tokenizers treat differently: case of contractions, digits, marks, spaces, line ends, scripts, composed
/// characters.
const PROBE: &str = "I'll we'RE they've 1234567 3.14159 v2.0  two   spaces\n\n\ttab\r\n x=(a+b)*c; // 'quoted' \u{201c}q\u{201d}\n\
     na\u{ef}ve nai\u{308}ve \u{4f60}\u{597d}\u{ff0c}\u{4e16}\u{754c} \u{41f}\u{440}\u{438}\u{432}\u{435}\u{442} \
     \u{645}\u{631}\u{62d}\u{628}\u{627} \u{1f600}\u{1f44d}\u{1f3fd} \u{bd} \u{2167}   ";

/// The tokenizer's entries. A directory without a tokenizer gives a file without one, which engines can load but not
/// talk to.
pub(super) fn entries(checkpoint: &Checkpoint) -> Result<Vec<(String, Entry)>> {
    let directory = checkpoint.directory();
    let config = checkpoint.config();
    let mut entries = Vec::new();
    let mut add = |key: &str, entry| entries.push((format!("tokenizer.{key}"), entry));
    let path = directory.join("tokenizer.json");
    let (mut bos, mut eos) = (config.bos_token, config.eos_tokens.first().copied());
    let mut ends = config.eos_tokens.clone();
    if path.exists() || directory.join("tokenizer.model").exists() {
        let file = path.display().to_string();
        let reference = Tokenizer::from_hf_dir(directory)?;
        (bos, eos) = (reference.bos().or(bos), reference.eos().or(eos));
        let json: Value = serde_json::from_slice(&read_bounded(&path)?)
            .map_err(|error| EngineError::checkpoint(&file, error.to_string()))?;
        let vocab = GgufVocab { bos, eos, ..vocabulary(&json, config.vocab, &file)? };
        check(&vocab, &reference, &file)?;
        let control = |id: u32| vocab.token_types.get(id as usize) == Some(&CONTROL);
        let text = |id: u32| vocab.tokens.get(id as usize).map_or("", String::as_str);
        // Readers find these by their text.
        ends.retain(|id| !(control(*id) && END_TEXTS.contains(&text(*id))));

        add("ggml.model", Entry::text(&vocab.model));
        add("ggml.pre", Entry::text(vocab.pre.as_deref().unwrap_or("default")));
        add("ggml.tokens", Entry::texts(vocab.tokens.iter().map(String::as_str)));
        add("ggml.token_type", Entry::integers(&vocab.token_types));
        add("ggml.merges", Entry::texts(vocab.merges.iter().map(String::as_str)));
        add("ggml.add_bos_token", Entry::flag(vocab.add_bos == Some(true)));
        let (templates, config) = ChatTemplate::sources(directory)?;
        for (name, source) in &templates {
            let key = if name == "default" { "chat_template".to_owned() } else { format!("chat_template.{name}") };
            add(&key, Entry::text(source));
        }
        if let Some(pad) = special_token(&config, "pad_token").and_then(|token| reference.token_id(token)) {
            add("ggml.padding_token_id", Entry::unsigned(pad));
        }
    } else {
        add("ggml.model", Entry::text("none"));
    }
    if let Some(bos) = bos {
        add("ggml.bos_token_id", Entry::unsigned(bos));
    }
    if let Some(eos) = eos {
        add("ggml.eos_token_id", Entry::unsigned(eos));
    }
    // The format has a place for two more tokens that end a generation: end of turn, end of message.
    ends.retain(|id| Some(*id) != eos);
    for (key, end) in ["ggml.eot_token_id", "ggml.eom_token_id"].into_iter().zip(ends) {
        add(key, Entry::unsigned(end));
    }
    Ok(entries)
}

/// A byte-level BPE tokenizer as GGUF metadata, one token per row of the embedding.
fn vocabulary(json: &Value, rows: usize, file: &str) -> Result<GgufVocab> {
    let pre = pre_tokenizer(json, file)?;
    let wrong = |message: String| EngineError::checkpoint(file, message);
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; rows];
    let mut place = |text: &str, id: Option<u64>, kind: i32| {
        let id = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < rows);
        let id =
            id.ok_or_else(|| wrong(format!("token {text:?} has no id below {rows}, the rows of the embedding")))?;
        tokens[id] = Some((text.to_owned(), kind));
        Ok::<_, EngineError>(())
    };
    let vocab = json.pointer("/model/vocab").and_then(Value::as_object);
    for (text, id) in vocab.ok_or_else(|| wrong("model.vocab is missing".to_owned()))? {
        place(text, id.as_u64(), NORMAL)?;
    }
    for token in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let text = token.get("content").and_then(Value::as_str).unwrap_or_default();
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        place(text, token.get("id").and_then(Value::as_u64), if special { CONTROL } else { USER_DEFINED })?;
    }
    let merges = json.pointer("/model/merges").and_then(Value::as_array);
    let merges = merges.into_iter().flatten().map(|merge| match merge {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] => Some(format!("{left} {right}")),
            _ => None,
        },
        _ => None,
    });
    let merges: Option<Vec<String>> = merges.collect();
    let padding = |(id, token): (usize, Option<(String, i32)>)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED));
    let (tokens, token_types) = tokens.into_iter().enumerate().map(padding).unzip();
    Ok(GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some(pre.to_owned()),
        tokens,
        token_types,
        merges: merges.ok_or_else(|| wrong("model.merges is not a list of pairs".to_owned()))?,
        add_bos: Some(begins_with_special(json)),
        ..GgufVocab::default()
    })
}

/// The name of the split that a `tokenizer.json` describes.
fn pre_tokenizer(json: &Value, file: &str) -> Result<&'static str> {
    let unsupported = |what: String| {
        EngineError::Unsupported(format!(
            "{file}: {what}; GGUF files are written with byte-level BPE vocabularies split as {}",
            PRE.join(", ")
        ))
    };
    let model = json.pointer("/model/type").and_then(Value::as_str).unwrap_or("of no type");
    if model != "BPE" || json.pointer("/model/byte_fallback") == Some(&Value::Bool(true)) {
        return Err(unsupported(format!("a {model} model (SentencePiece family)")));
    }
    let ignore_merges = json.pointer("/model/ignore_merges") == Some(&Value::Bool(true));
    let part = |key: &str| canonical(json.get(key).unwrap_or(&Value::Null));
    let described = (part("normalizer"), part("pre_tokenizer"));
    let found = PRE.into_iter().find(|pre| {
        let split = byte_level_split(pre).map(|(normalizer, split)| (canonical(&normalizer), canonical(&split)));
        split.as_ref() == Some(&described) && (*pre == "llama-bpe") == ignore_merges
    });
    found.ok_or_else(|| {
        let kind = |value: &Value| value.get("type").and_then(Value::as_str).unwrap_or("none").to_owned();
        unsupported(format!("normalizer {}, pre-tokenizer {}", kind(&described.0), describe(&described.1)))
    })
}

/// A pre-tokenizer by the kinds of its steps, and the start of a pattern.
fn describe(pre: &Value) -> String {
    let steps = pre.get("pretokenizers").and_then(Value::as_array).map_or(vec![pre], |steps| steps.iter().collect());
    let step = |step: &Value| {
        let kind = step.get("type").and_then(Value::as_str).unwrap_or("none");
        match step.pointer("/pattern/Regex").and_then(Value::as_str) {
            Some(regex) => format!("{kind} {:?}", regex.chars().take(40).collect::<String>()),
            None => kind.to_owned(),
        }
    };
    steps.into_iter().map(step).collect::<Vec<_>>().join(" + ")
}

/// A part with the fields that change no token removed and a sequence of one step replaced by it.
fn canonical(part: &Value) -> Value {
    match part {
        Value::Object(fields) => {
            for key in ["pretokenizers", "normalizers"] {
                if let Some([single]) = fields.get(key).and_then(Value::as_array).map(Vec::as_slice) {
                    return canonical(single);
                }
            }
            let byte_level = fields.get("type").and_then(Value::as_str) == Some("ByteLevel");
            let mut out: serde_json::Map<String, Value> = fields
                .iter()
                .filter(|(key, _)| *key != "trim_offsets")
                .map(|(key, value)| (key.clone(), canonical(value)))
                .collect();
            if byte_level {
                // Absent in files of older versions, which split.
                out.entry("use_regex").or_insert(Value::Bool(true));
            }
            Value::Object(out)
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

/// Whether the post-processor puts a special token before a text.
fn begins_with_special(json: &Value) -> bool {
    let Some(processor) = json.get("post_processor") else { return false };
    let steps = processor.get("processors").and_then(Value::as_array);
    let steps = steps.map_or(vec![processor], |steps| steps.iter().collect());
    steps.iter().any(|step| step.pointer("/single/0/SpecialToken").is_some())
}

/// Compares both forms on the probe.
fn check(vocab: &GgufVocab, reference: &Tokenizer, file: &str) -> Result<()> {
    let written = Tokenizer::from_gguf(vocab, file)?;
    if written.encode(PROBE, true)? == reference.encode(PROBE, true)? {
        return Ok(());
    }
    Err(EngineError::Unsupported(format!(
        "{file}: the vocabulary would give other tokens from a GGUF file (split {}); it has parts that the format cannot say",
        vocab.pre.as_deref().unwrap_or("default")
    )))
}

#[cfg(test)]
#[path = "vocabulary_tests.rs"]
mod tests;
