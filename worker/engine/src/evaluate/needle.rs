//! A needle in a haystack: a number hidden in long text, to be found again. Whether a profile still uses all of its context
//! shows here, and not in the perplexity of short windows.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// One question about one hidden number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Haystack {
    /// The text with the needle, and the question at its end.
    pub prompt: String,
    /// The number to find.
    pub number: u32,
}

/// What is asked. The number stands for itself, so that an answer is right in any language and wording.
const QUESTION: &str = "What is the secret number that the text names? Answer with the number only.";

/// The sentence with the number.
fn needle(number: u32) -> String {
    format!("The secret number is {number}. Remember it.")
}

/// Builds a text of about `tokens` tokens around a needle at `depth` (0 is its beginning, 1 its end). `count` gives the
/// tokens of a piece of text; `seed` the order of the sentences and the number.
///
/// The sentences of `text` come in random order, again from the first when they run out. The order does not depend on the
/// depth, so that the prompts of one length share their beginning, and an engine's prefix cache helps.
pub fn haystack(text: &str, tokens: usize, depth: f64, seed: u64, count: &mut dyn FnMut(&str) -> usize) -> Haystack {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let number = random.random_range(10_000..100_000);
    let needle = needle(number);
    let mut room = tokens.saturating_sub(count(&needle) + count(QUESTION));
    let mut pieces: Vec<(String, usize)> = sentences(text).map(|s| (s.to_owned(), count(s) + 1)).collect();
    let mut chosen: Vec<(String, usize)> = Vec::new();
    'fill: while !pieces.is_empty() {
        for last in (1..pieces.len()).rev() {
            pieces.swap(last, random.random_range(0..=last));
        }
        for (piece, size) in &pieces {
            if *size > room {
                break 'fill;
            }
            room -= size;
            chosen.push((piece.clone(), *size));
        }
    }
    let whole: usize = chosen.iter().map(|(_, size)| size).sum();
    let before = depth.clamp(0.0, 1.0) * whole as f64;
    let mut passed = 0;
    let at = chosen.iter().position(|(_, size)| {
        passed += size;
        // The border nearest to the depth.
        passed as f64 - *size as f64 / 2.0 >= before
    });
    chosen.insert(at.unwrap_or(chosen.len()), (needle, 0));
    let body = chosen.iter().map(|(piece, _)| piece.as_str()).collect::<Vec<_>>().join(" ");
    Haystack { prompt: format!("{body}\n\n{QUESTION}"), number }
}

/// Sentences of at least 20 bytes, ended by a full stop; others (code, lists, talk) would be confused with the needle.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.starts_with(' '))
        .flat_map(|line| line.split_inclusive(". "))
        .map(str::trim)
        .filter(|s| s.len() >= 20 && s.ends_with('.') && s.chars().next().is_some_and(char::is_uppercase))
}

/// Whether an answer names the number, as a whole number of its own.
pub fn found(answer: &str, number: u32) -> bool {
    let wanted = number.to_string();
    // Some write 12,345: a comma between digits belongs to the number.
    let joined = answer.replace(',', "");
    joined.split(|c: char| !c.is_ascii_digit()).any(|digits| digits == wanted)
}

/// Answers to one length and depth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NeedleResult {
    /// Tokens of the prompt as the model got it.
    pub tokens: usize,
    /// Length that was asked for.
    pub length: usize,
    /// Where the needle lies, in percent of the text.
    pub depth_percent: u32,
    /// The number came back.
    pub found: bool,
    /// What was answered, for who looks why it did not.
    pub answer: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn text() -> String {
        let sentence = |i: usize| {
            [
                "Sentence one of the long and dull text ends here. ",
                "Sentence two of the long and dull text ends here. ",
                "Sentence three of the long and dull text ends here. ",
            ][i % 3]
        };
        (0..50).map(sentence).collect()
    }

    #[rstest]
    #[case("12345", true)]
    #[case("The secret number is 12345.", true)]
    #[case("12,345", true)]
    #[case("112345", false)]
    #[case("1234 5", false)]
    #[case("I do not know.", false)]
    #[case("", false)]
    fn an_answer_is_right_if_it_holds_the_number_alone(#[case] answer: &str, #[case] expected: bool) {
        assert_eq!(found(answer, 12345), expected);
    }

    #[test]
    fn code_and_talk_are_no_hay() {
        let text =
            "    indented code of some length.\n\"Quoted talk of some length.\"\nA proper sentence of prose. Short.\n";
        assert_eq!(sentences(text).collect::<Vec<_>>(), ["A proper sentence of prose."]);
    }

    #[test]
    fn a_text_without_sentences_still_asks() {
        let found = haystack("", 100, 0.5, 1, &mut words);
        assert!(found.prompt.starts_with(&format!("The secret number is {}.", found.number)));
    }

    #[test]
    fn the_hay_does_not_depend_on_the_depth() {
        let strip = |h: &Haystack| h.prompt.replace(&needle(h.number), "").replace("  ", " ").trim().to_owned();
        let (a, b) = (haystack(&text(), 300, 0.1, 3, &mut words), haystack(&text(), 300, 0.9, 3, &mut words));
        assert_eq!(strip(&a), strip(&b));
        assert_ne!(haystack(&text(), 300, 0.1, 4, &mut words).number, a.number);
    }

    proptest! {
        #[test]
        fn the_needle_lies_at_its_depth_in_a_text_of_its_length(
            tokens in 100usize..3000, depth in 0.0..=1.0f64, seed in any::<u64>(),
        ) {
            let made = haystack(&text(), tokens, depth, seed, &mut words);
            let length = words(&made.prompt);
            prop_assert!(length <= tokens && length + 40 >= tokens * 9 / 10 - 20, "{length} of {tokens}");
            let before = words(made.prompt.split(&needle(made.number)).next().unwrap());
            let whole = words(made.prompt.split("\n\n").next().unwrap()) - words(&needle(made.number));
            prop_assert!((before as f64 - depth * whole as f64).abs() <= 9.0, "{before} of {whole} at {depth}");
            prop_assert_eq!(made.prompt.matches(&needle(made.number)).count(), 1);
        }
    }
}
