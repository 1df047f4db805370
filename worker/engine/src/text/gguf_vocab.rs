//! The vocabulary inside a GGUF file, put into the form of a `tokenizer.json`.
//!
//! A GGUF file names its pre-tokenizer (`tokenizer.ggml.pre`) instead of describing it. The split decides which merges
//! can happen, so a wrong guess gives fluent but wrong tokens: a name that is not known here is refused.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::{EngineError, Result};

/// `tokenizer.ggml.token_type`.
pub(crate) const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
pub(crate) const CONTROL: i32 = 3;
pub(crate) const USER_DEFINED: i32 = 4;
pub(crate) const UNUSED: i32 = 5;

/// Llama 3's split: contractions, words with one leading mark, up to three digits, punctuation, line ends, spaces.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's split: Llama 3's with single digits.
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The `tokenizer.ggml.*` metadata of a GGUF file, as stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocab {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `pre`: the pre-tokenizer of a `gpt2` vocabulary; absent in old files, which means GPT-2's own.
    pub pre: Option<String>,
    /// `tokens`: text of each id.
    pub tokens: Vec<String>,
    /// `token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty means all normal.
    pub token_types: Vec<i32>,
    /// `merges`: `"left right"`, best first; `gpt2` only.
    pub merges: Vec<String>,
    /// `scores`: the highest score among the possible merges wins; `llama` only.
    pub scores: Vec<f32>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `add_bos_token`; absent means yes for `llama` and `llama-bpe`, no for the others.
    pub add_bos: Option<bool>,
    /// `add_space_prefix`: `llama` only; absent means yes.
    pub add_space_prefix: Option<bool>,
}

/// Normalizer and pre-tokenizer that a `tokenizer.ggml.pre` stands for, as in a `tokenizer.json`. `None` for a name that is
/// not known here.
pub(crate) fn byte_level_split(pre: &str) -> Option<(Value, Value)> {
    let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let split = |regex: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]})
    };
    Some(match pre {
        "default" | "gpt-2" => (Value::Null, gpt2),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (Value::Null, json!({"type": "Sequence", "pretokenizers": [digits, gpt2]}))
        }
        "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, split(LLAMA3_SPLIT)),
        "qwen2" => (json!({"type": "NFC"}), split(QWEN2_SPLIT)),
        _ => return None,
    })
}

/// Bytes of the longest token that merges lead to; real vocabularies stay far below.
const LONGEST_MERGED: usize = 1024;

impl GgufVocab {
    /// The same tokenizer as a `tokenizer.json`.
    pub(crate) fn to_tokenizer_json(&self, file: &str) -> Result<Value> {
        self.check(file)?;
        let parts = match self.model.as_str() {
            "gpt2" => self.byte_level(file)?,
            "llama" => self.sentencepiece(file)?,
            other => {
                return Err(EngineError::Unsupported(format!(
                    "{file}: tokenizer.ggml.model = {other}; gpt2 and llama vocabularies are"
                )));
            }
        };
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added_tokens(),
            "normalizer": parts.normalizer,
            "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": if self.add_bos.unwrap_or(parts.add_bos) { self.bos_processor() } else { Value::Null },
            "decoder": parts.decoder,
            "model": parts.model,
        }))
    }

    fn check(&self, file: &str) -> Result<()> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(EngineError::checkpoint(file, "tokenizer.ggml.tokens is missing or empty"));
        }
        if !self.token_types.is_empty() && self.token_types.len() != count {
            let types = self.token_types.len();
            return Err(EngineError::checkpoint(
                file,
                format!("tokenizer.ggml.token_type has {types} entries for {count} tokens"),
            ));
        }
        for (name, id) in [("bos_token_id", self.bos), ("eos_token_id", self.eos)] {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return Err(EngineError::checkpoint(
                    file,
                    format!("tokenizer.ggml.{name} = {id} is outside the vocabulary of {count}"),
                ));
            }
        }
        Ok(())
    }

    fn kind(&self, id: usize) -> i32 {
        self.token_types.get(id).copied().unwrap_or(NORMAL)
    }

    fn byte_level(&self, file: &str) -> Result<Parts> {
        if self.merges.is_empty() {
            return Err(EngineError::checkpoint(file, "tokenizer.ggml.merges is missing or empty"));
        }
        let merges = self
            .merges
            .iter()
            .enumerate()
            .map(|(index, merge)| {
                merge.split_once(' ').map(|(left, right)| json!([left, right])).ok_or_else(|| {
                    let field = format!("tokenizer.ggml.merges[{index}]");
                    EngineError::checkpoint(file, format!("{field}: {merge:?} is not two tokens with a space between"))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let pre = self.pre.as_deref().unwrap_or("default");
        let Some((normalizer, pre_tokenizer)) = byte_level_split(pre) else {
            return Err(EngineError::Unsupported(format!(
                "{file}: tokenizer.ggml.pre = {pre}; default, gpt-2, smollm, llama-bpe and qwen2 are. Use the model's \
                 Hugging Face directory, whose tokenizer.json describes the split"
            )));
        };
        let llama3 = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
        Ok(Parts {
            normalizer,
            pre_tokenizer,
            decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
            // Llama 3 takes a whole word from the vocabulary where it is there, even if no chain of merges builds it.
            model: json!({"type": "BPE", "ignore_merges": llama3, "vocab": self.vocab(), "merges": merges}),
            add_bos: llama3,
        })
    }

    fn sentencepiece(&self, file: &str) -> Result<Parts> {
        if self.scores.len() != self.tokens.len() {
            let (scores, tokens) = (self.scores.len(), self.tokens.len());
            let message = format!("tokenizer.ggml.scores has {scores} entries for {tokens} tokens");
            return Err(EngineError::checkpoint(file, message));
        }
        let space_prefix = self.add_space_prefix.unwrap_or(true);
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if space_prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = (0..self.tokens.len()).find(|&id| self.kind(id) == UNKNOWN).map(|id| &self.tokens[id]);
        Ok(Parts {
            normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
            pre_tokenizer: Value::Null,
            decoder: json!({"type": "Sequence", "decoders": decoders}),
            model: json!({
                "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
                "vocab": self.vocab(), "merges": self.merges_by_score(),
            }),
            add_bos: true,
        })
    }

    /// SentencePiece merges the adjacent pair whose union scores highest; BPE merges the pair that is listed first. So
    /// every way to cut a token into two tokens is a merge, and the list is in order of the union's score.
    fn merges_by_score(&self) -> Vec<Value> {
        let normal = |id: usize| self.kind(id) == NORMAL;
        let ids: HashMap<&str, usize> = self
            .tokens
            .iter()
            .enumerate()
            .filter(|&(id, _)| normal(id))
            .map(|(id, text)| (text.as_str(), id))
            .collect();
        let mut order: Vec<usize> = (0..self.tokens.len()).filter(|&id| normal(id)).collect();
        order.sort_by(|&a, &b| self.scores[b].total_cmp(&self.scores[a]).then(a.cmp(&b)));
        let mut merges = Vec::new();
        for id in order {
            let text = &self.tokens[id];
            // Every cut is looked up whole: without a bound, one huge token in a hostile file would take for ever.
            if text.len() > LONGEST_MERGED {
                continue;
            }
            for (cut, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(cut);
                if ids.contains_key(left) && ids.contains_key(right) {
                    merges.push(json!([left, right]));
                }
            }
        }
        merges
    }

    /// Text to id. Of two tokens with one text the first is used for encoding; the other has no bytes.
    fn vocab(&self) -> Map<String, Value> {
        let mut vocab = Map::with_capacity(self.tokens.len());
        for (id, text) in self.tokens.iter().enumerate() {
            vocab.entry(text.as_str()).or_insert_with(|| Value::from(id));
        }
        vocab
    }

    /// Control tokens are special; user-defined ones are text that is never split.
    fn added_tokens(&self) -> Vec<Value> {
        let added = |(id, text): (usize, &String)| {
            let kind = self.kind(id);
            // An empty added token would match everywhere.
            (matches!(kind, UNKNOWN | CONTROL | USER_DEFINED) && !text.is_empty()).then(|| {
                json!({
                    "id": id, "content": text, "special": kind != USER_DEFINED,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                })
            })
        };
        self.tokens.iter().enumerate().filter_map(added).collect()
    }

    fn bos_processor(&self) -> Value {
        let Some((id, token)) = self.bos.and_then(|id| Some((id, self.tokens.get(id as usize)?))) else {
            return Value::Null;
        };
        let bos = json!({"SpecialToken": {"id": token, "type_id": 0}});
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        json!({
            "type": "TemplateProcessing", "single": [bos, text("A")], "pair": [bos, text("A"), bos, text("B")],
            "special_tokens": {token.as_str(): {"id": token, "ids": [id], "tokens": [token]}},
        })
    }
}

/// What differs between the two families.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// Whether a BOS is added when the file does not say.
    add_bos: bool,
}
