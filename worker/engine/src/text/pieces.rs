//! The bytes that each token stands for, worked out once at load.
//!
//! Decoding then is a table look-up per token, which makes it incremental: a general decoder sees the whole list of
//! tokens and has to run again from the start for every new one.

use std::sync::LazyLock;

use serde_json::Value;

use crate::{EngineError, Result};

/// More ids than any vocabulary: a bound on what a hostile file can make us allocate.
const MAX_VOCAB: u32 = 1 << 22;

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// GPT-2: each byte is one printable character (`Ġ` is a space).
    ByteLevel,
    /// SentencePiece: `▁` is a space, `<0xNN>` a byte.
    SentencePiece {
        /// The text begins with a space that was not in the input.
        strip_leading_space: bool,
    },
}

/// Bytes and kind of every token id, in one allocation.
pub(super) struct Pieces {
    spelling: Spelling,
    bytes: Vec<u8>,
    /// End of token i's bytes; its start is the end of token i - 1.
    ends: Vec<u32>,
    special: Vec<bool>,
}

impl Pieces {
    pub(super) fn new(tokenizer: &tokenizers::Tokenizer, file: &str) -> Result<Self> {
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|e| EngineError::checkpoint(file, format!("decoder: {e}")))?;
        let spelling = Spelling::of(&decoder, file)?;
        let vocab = tokenizer.get_vocab(true);
        let Some(&last) = vocab.values().max() else {
            return Err(EngineError::checkpoint(file, "the vocabulary is empty"));
        };
        if last >= MAX_VOCAB {
            return Err(EngineError::checkpoint(file, format!("token id {last} is above the limit of {MAX_VOCAB}")));
        }
        let mut texts: Vec<&str> = vec![""; last as usize + 1];
        for (text, &id) in &vocab {
            texts[id as usize] = text;
        }
        let added = tokenizer.get_added_tokens_decoder();
        let mut pieces = Self { spelling, bytes: Vec::new(), ends: Vec::new(), special: Vec::new() };
        for (id, text) in (0..=last).zip(texts) {
            let added = added.get(&id);
            spelling.write(text, added.is_some(), &mut pieces.bytes);
            let end = u32::try_from(pieces.bytes.len())
                .map_err(|_| EngineError::checkpoint(file, "the vocabulary is larger than 4 GiB"))?;
            pieces.ends.push(end);
            pieces.special.push(added.is_some_and(|t| t.special));
        }
        Ok(pieces)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn bytes(&self, token: u32) -> Option<&[u8]> {
        let token = token as usize;
        let end = *self.ends.get(token)? as usize;
        let start = token.checked_sub(1).map_or(0, |previous| self.ends[previous] as usize);
        self.bytes.get(start..end)
    }

    pub(super) fn is_special(&self, token: u32) -> bool {
        self.special.get(token as usize).copied().unwrap_or(false)
    }

    pub(super) fn strip_leading_space(&self) -> bool {
        self.spelling == Spelling::SentencePiece { strip_leading_space: true }
    }
}

impl Spelling {
    /// Reads the decoder of a `tokenizer.json`: byte-level, or the steps that make up a SentencePiece decoder.
    fn of(decoder: &Value, file: &str) -> Result<Self> {
        let steps = match decoder.get("decoders").and_then(Value::as_array) {
            Some(steps) => steps.iter().collect(),
            None => vec![decoder],
        };
        let mut byte_level = false;
        let mut strip_leading_space = false;
        for step in steps {
            match step.get("type").and_then(Value::as_str) {
                Some("ByteLevel") => byte_level = true,
                Some("ByteFallback" | "Fuse") => {}
                Some("Replace")
                    if step.pointer("/pattern/String") == Some(&Value::from("▁"))
                        && step.get("content") == Some(&Value::from(" ")) => {}
                Some("Strip")
                    if step.get("content") == Some(&Value::from(" ")) && step.get("stop") == Some(&Value::from(0)) =>
                {
                    strip_leading_space = step.get("start") != Some(&Value::from(0));
                }
                Some("Metaspace") if step.get("replacement") == Some(&Value::from("▁")) => {
                    strip_leading_space = step.get("prepend_scheme") != Some(&Value::from("never"));
                }
                kind => {
                    let kind = kind.unwrap_or("(none)");
                    return Err(EngineError::Unsupported(format!(
                        "{file}: decoder {kind}; byte-level (GPT-2) and SentencePiece decoders are"
                    )));
                }
            }
        }
        Ok(if byte_level { Self::ByteLevel } else { Self::SentencePiece { strip_leading_space } })
    }

    /// Appends the bytes that `text`, a vocabulary entry, stands for. Added tokens of a byte-level vocabulary are
    /// written in plain text.
    fn write(self, text: &str, added: bool, out: &mut Vec<u8>) {
        match self {
            Self::ByteLevel if added => out.extend_from_slice(text.as_bytes()),
            Self::ByteLevel => {
                let start = out.len();
                for c in text.chars() {
                    let Some(byte) = byte_of(c) else {
                        // Not written in the byte alphabet: the entry can only be meant literally.
                        out.truncate(start);
                        out.extend_from_slice(text.as_bytes());
                        return;
                    };
                    out.push(byte);
                }
            }
            Self::SentencePiece { .. } => match byte_token(text) {
                Some(byte) if !added => out.push(byte),
                _ => out.extend_from_slice(text.replace('▁', " ").as_bytes()),
            },
        }
    }
}

/// `<0x0A>` is the byte 10.
fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// GPT-2's alphabet of bytes: printable Latin-1 characters stand for themselves, the other bytes, in order, for the
/// characters from U+0100 on.
pub(super) static BYTE_CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100_u32;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte);
        }
        let c = char::from_u32(next).unwrap_or(char::REPLACEMENT_CHARACTER);
        next += 1;
        c
    })
});

fn byte_of(c: char) -> Option<u8> {
    // The alphabet ends at U+0143; inverse of `BYTE_CHARS`.
    static INVERSE: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
        let mut inverse = [None; 0x144];
        for (byte, &c) in BYTE_CHARS.iter().enumerate() {
            inverse[c as usize] = Some(byte as u8);
        }
        inverse
    });
    INVERSE.get(c as usize).copied().flatten()
}
