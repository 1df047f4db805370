//! Prompts of a given length, cut from a text.
//!
//! A prefix cache that recognises the beginning of a prompt would answer faster than real traffic lets it, so no two
//! prompts begin alike: each starts at its own place, and its first tokens are its own.

use serde::Serialize;

use super::client::Target;

/// Used when no text was given.
const BUILT_IN: &str = include_str!("text.txt");

/// Characters to a token where the server cannot tell: English prose.
const CHARS_PER_TOKEN: f64 = 4.0;

/// Bytes of the text that are tokenized; longer texts are used up to here.
const MOST_BYTES: usize = 128 << 10;

/// Bytes of one request for tokenization: below any context length.
const PIECE_BYTES: usize = 4 << 10;

/// Tokens at the beginning that make a prompt its own.
const OWN_TOKENS: usize = 4;

/// What a request asks: text, or tokens where the server's tokenizer is known and the length can be exact.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Text, of about the length.
    Text(String),
    /// Tokens, of exactly the length.
    Tokens(Vec<u32>),
}

/// A supply of prompts.
#[derive(Clone, Debug)]
pub struct Prompts {
    salt: u64,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Text(Vec<char>),
    Tokens(Vec<u32>),
}

impl Prompts {
    /// Tokenizes the text by the server if it can; also returns the server's context length if that told it.
    pub(super) async fn prepare(target: &Target, text: Option<&str>, salt: u64) -> (Self, Option<u32>) {
        let text = text.filter(|text| !text.trim().is_empty()).unwrap_or(BUILT_IN);
        let (mut tokens, mut context) = (Vec::new(), None);
        for piece in pieces(text) {
            let Some((more, length)) = target.tokenize(piece).await else {
                return (Self { salt, source: Source::Text(text.chars().collect()) }, context);
            };
            tokens.extend(more);
            context = length.or(context);
        }
        if tokens.is_empty() {
            return (Self { salt, source: Source::Text(text.chars().collect()) }, context);
        }
        (Self { salt, source: Source::Tokens(tokens) }, context)
    }

    /// The prompt of the request `index`, of `tokens` tokens.
    pub(super) fn prompt(&self, index: usize, tokens: u32) -> Prompt {
        let own = mix(self.salt ^ mix(index as u64));
        match &self.source {
            Source::Tokens(source) => Prompt::Tokens(cut_tokens(source, own, tokens as usize)),
            Source::Text(source) => Prompt::Text(cut_text(source, own, tokens as usize)),
        }
    }
}

/// Pieces that end between characters, up to the most that is used.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = &text[..boundary(text, MOST_BYTES)];
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at_checked(boundary(rest, PIECE_BYTES))?;
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The last place between two characters that is not after `most` bytes.
fn boundary(text: &str, most: usize) -> usize {
    (0..=most.min(text.len())).rev().find(|place| text.is_char_boundary(*place)).unwrap_or(0)
}

fn cut_tokens(source: &[u32], own: u64, tokens: usize) -> Vec<u32> {
    let at = |place: u64| source[(place % source.len() as u64) as usize];
    let first = (0..OWN_TOKENS as u64).map(|i| at(mix(own.wrapping_add(i)) >> 1));
    let rest = (0..).map(|i| at((own >> 1) + i));
    first.chain(rest).take(tokens).collect()
}

fn cut_text(source: &[char], own: u64, tokens: usize) -> String {
    let number = format!("{own:016x}: ");
    let start = (own % source.len() as u64) as usize;
    let text = source.iter().cycle().skip(start).copied();
    number.chars().chain(text).take((tokens as f64 * CHARS_PER_TOKEN) as usize).collect()
}

/// SplitMix64's finalizer: neighbouring numbers come out far apart.
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn token_prompts_are_exactly_as_long_as_asked_and_begin_differently() {
        let prompts = Prompts { salt: 1, source: Source::Tokens((0..1_000).collect()) };
        let mut beginnings = HashSet::new();
        for index in 0..2_000 {
            let Prompt::Tokens(tokens) = prompts.prompt(index, 1_500) else { panic!("no tokens") };
            assert_eq!(tokens.len(), 1_500);
            assert!(beginnings.insert(tokens[..16].to_vec()), "{index}");
        }
    }

    #[test]
    fn text_prompts_have_four_characters_a_token_and_begin_differently() {
        let source = Source::Text(BUILT_IN.chars().collect());
        let prompts = Prompts { salt: 1, source };
        let mut beginnings = HashSet::new();
        for index in 0..500 {
            let Prompt::Text(text) = prompts.prompt(index, 2_000) else { panic!("no text") };
            assert_eq!(text.chars().count(), 8_000);
            assert!(beginnings.insert(text.chars().take(16).collect::<String>()), "{index}");
        }
    }

    #[test]
    fn another_salt_gives_other_prompts() {
        let prompts = |salt| Prompts { salt, source: Source::Tokens((0..1_000).collect()) }.prompt(0, 100);
        assert_eq!(prompts(1), prompts(1));
        assert_ne!(prompts(1), prompts(2));
    }

    #[test]
    fn pieces_are_the_text_again() {
        let text = "äb".repeat(10_000);
        assert_eq!(pieces(&text).collect::<String>(), text);
        assert!(pieces(&text).all(|piece| piece.len() <= PIECE_BYTES));
    }
}
