//! One tokenizer for both containers: a Hugging Face `tokenizer.json`, or the vocabulary inside a GGUF file.

use std::{panic::AssertUnwindSafe, path::Path};

use serde_json::Value;

use super::gguf_vocab::GgufVocab;
use super::pieces::Pieces;
use crate::{EngineError, Result};

/// Largest tokenizer file that is read. The biggest published ones (256 k tokens) are about 35 MB.
const MAX_FILE_BYTES: u64 = 128 << 20;

/// Text to tokens and back. Immutable and `Sync`: one is shared by all requests.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The vocabulary itself would be megabytes of log.
        f.debug_struct("Tokenizer")
            .field("vocab", &self.vocab())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer of a Hugging Face directory: `tokenizer.json`, and `tokenizer_config.json` (optional) for which
    /// tokens begin and end a text.
    ///
    /// # Errors
    ///
    /// [`EngineError::Io`] or [`EngineError::Checkpoint`] with the file; [`EngineError::Unsupported`] for a directory
    /// that has only a SentencePiece `tokenizer.model`, and for decoders outside the byte-level and SentencePiece
    /// families.
    pub fn from_hf_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.exists() && dir.join("tokenizer.model").exists() {
            return Err(EngineError::Unsupported(format!(
                "{} has tokenizer.model but no tokenizer.json; save the tokenizer once with transformers' \
                 AutoTokenizer.save_pretrained and put tokenizer.json beside it",
                dir.display()
            )));
        }
        let json = read_bounded(&path)?;
        let config_path = dir.join("tokenizer_config.json");
        let config: Value = if config_path.exists() {
            serde_json::from_slice(&read_bounded(&config_path)?)
                .map_err(|e| EngineError::checkpoint(config_path.display(), e.to_string()))?
        } else {
            Value::Null
        };
        let mut tokenizer = Self::from_json(&json, &path.display().to_string())?;
        tokenizer.bos = special_token(&config, "bos_token").and_then(|t| tokenizer.inner.token_to_id(t));
        tokenizer.eos = special_token(&config, "eos_token").and_then(|t| tokenizer.inner.token_to_id(t));
        Ok(tokenizer)
    }

    /// The tokenizer of a GGUF file. `file` names it in messages.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unsupported`] names a vocabulary model or pre-tokenizer that is not built;
    /// [`EngineError::Checkpoint`] names the metadata field that is wrong.
    pub fn from_gguf(vocab: &GgufVocab, file: &str) -> Result<Self> {
        let json = vocab.to_tokenizer_json(file)?.to_string();
        let mut tokenizer = Self::from_json(json.as_bytes(), file)?;
        tokenizer.bos = vocab.bos;
        tokenizer.eos = vocab.eos;
        Ok(tokenizer)
    }

    fn from_json(json: &[u8], file: &str) -> Result<Self> {
        // The library panics on some files that are JSON but no tokenizer (a decoder without its parts, for one).
        let inner = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json)).unwrap_or_else(|_| {
            Err("its parts do not fit together; download the file again or save it anew with transformers".into())
        });
        let mut inner = inner.map_err(|e| EngineError::checkpoint(file, format!("not a tokenizer: {e}")))?;
        // Some published files carry the truncation of their training script; a server must see the whole prompt.
        inner
            .with_truncation(None)
            .map_err(|e| EngineError::checkpoint(file, format!("cannot switch truncation off: {e}")))?;
        inner.with_padding(None);
        let pieces = Pieces::new(&inner, file)?;
        Ok(Self { inner, pieces, bos: None, eos: None })
    }

    /// Tokens of `text`. Special tokens written in the text (`<|im_end|>`) become their ids.
    ///
    /// `add_special` also adds what the model expects around a plain text, such as a leading BOS. Pass `false` for the
    /// output of a [`ChatTemplate`](super::ChatTemplate): a template writes its BOS itself.
    ///
    /// # Errors
    ///
    /// [`EngineError::Config`] if the vocabulary has neither the text's characters nor an unknown token, or the parts of a
    /// damaged `tokenizer.json` do not fit together.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        // The library checks some parts of a file only when it uses them, by panicking. It keeps nothing but caches of what
        // it computed, which such a panic leaves as they were.
        let encoded = std::panic::catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, add_special)));
        let encoded = encoded.unwrap_or_else(|_| Err("the parts of tokenizer.json do not fit together".into()));
        match encoded {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(e) => Err(EngineError::Config(format!("the text cannot be tokenized: {e}"))),
        }
    }

    /// Text of `tokens` as a whole text: without the space that SentencePiece puts before the first word. Bytes that
    /// are not UTF-8 become U+FFFD, one per maximal invalid part. To continue a prompt use
    /// [`StreamDecoder`](super::StreamDecoder).
    ///
    /// # Errors
    ///
    /// [`EngineError::Config`] for an id outside the vocabulary.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        let mut bytes = Vec::with_capacity(tokens.len() * 4);
        for &token in tokens {
            let piece = self.pieces.bytes(token).ok_or_else(|| {
                EngineError::Config(format!("token {token} is outside the vocabulary of {}", self.vocab()))
            })?;
            if !(skip_special && self.pieces.is_special(token)) {
                bytes.extend_from_slice(piece);
            }
        }
        let start = usize::from(self.pieces.strip_leading_space() && bytes.first() == Some(&b' '));
        Ok(String::from_utf8_lossy(&bytes[start..]).into_owned())
    }

    /// The bytes that a token stands for, not always complete characters; empty for an id outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.piece(token).to_vec()
    }

    /// Id of the token that is written exactly so in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the token is a control token, which `skip_special` leaves out.
    pub fn is_special(&self, token: u32) -> bool {
        self.pieces.is_special(token)
    }

    /// Number of token ids, added tokens included. A model's embedding may have more rows (padding).
    pub fn vocab(&self) -> usize {
        self.pieces.len()
    }

    /// Token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Token that ends a text, if the tokenizer names one. The generation configuration may name more.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    pub(super) fn piece(&self, token: u32) -> &[u8] {
        self.pieces.bytes(token).unwrap_or_default()
    }

    pub(super) fn strip_leading_space(&self) -> bool {
        self.pieces.strip_leading_space()
    }
}

/// The text of a special token in `tokenizer_config.json`: a string, or an object with `content`.
pub(crate) fn special_token<'a>(config: &'a Value, name: &str) -> Option<&'a str> {
    let token = config.get(name)?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// A whole file, unless it is too large to be what it claims.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|e| EngineError::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| EngineError::io(path, e))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let limit = MAX_FILE_BYTES >> 20;
        return Err(EngineError::checkpoint(
            path.display(),
            format!("larger than {limit} MiB, the limit for this file"),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
