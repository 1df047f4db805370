//! Generated tokens to text while they arrive.

use std::sync::Arc;

use super::Tokenizer;

/// Turns tokens into text one at a time. A token may end inside a character; its bytes wait for the rest, so what is
/// emitted is always complete characters, and the work per token does not grow with the text.
///
/// # Guarantees
///
/// The texts of all [`push`](Self::push) and of [`finish`](Self::finish) together are what decoding all tokens at once
/// gives: if `prompt` ends at a character border, `decode(prompt) + stream(output) == decode(prompt + output)`.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// The bytes of a character that has begun: at most three.
    pending: Vec<u8>,
    /// Still before the first byte of a text whose first space is the tokenizer's.
    strip_space: bool,
}

impl StreamDecoder {
    /// A decoder for tokens that continue a prompt: a space before the first word is part of the text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, pending: Vec::new(), strip_space: false }
    }

    /// A decoder for tokens that are a text of their own, as [`Tokenizer::decode`] takes them.
    pub fn from_start(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let strip_space = tokenizer.strip_leading_space();
        Self { strip_space, ..Self::new(tokenizer, skip_special) }
    }

    /// The characters that `token` completes; often empty for scripts whose characters take several tokens. An id
    /// outside the vocabulary (a padding row of the model) has no text.
    pub fn push(&mut self, token: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(token) {
            return String::new();
        }
        let mut piece = self.tokenizer.piece(token);
        if self.strip_space && !piece.is_empty() {
            piece = piece.strip_prefix(b" ").unwrap_or(piece);
            self.strip_space = false;
        }
        self.pending.extend_from_slice(piece);
        let (text, used) = complete_prefix(&self.pending);
        self.pending.drain(..used);
        text
    }

    /// What is left at the end of the generation: U+FFFD if it stopped inside a character.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// The text of `bytes` up to a character that is still incomplete, and how many bytes that took. Bytes that can no
/// longer become a character are U+FFFD, one per maximal invalid part (Unicode 16, section 3.9), as at once.
fn complete_prefix(bytes: &[u8]) -> (String, usize) {
    let mut text = String::with_capacity(bytes.len());
    let mut used = 0;
    loop {
        let rest = &bytes[used..];
        let error = match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                return (text, bytes.len());
            }
            Err(error) => error,
        };
        let valid = error.valid_up_to();
        text.push_str(&String::from_utf8_lossy(&rest[..valid]));
        used += valid;
        let Some(invalid) = error.error_len() else { return (text, used) };
        text.push(char::REPLACEMENT_CHARACTER);
        used += invalid;
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
