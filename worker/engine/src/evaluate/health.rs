//! Health of generated answers: variety, repetition, loops, length, refusals, the language.
//!
//! ```text
//! Answer (tokens and text of one prompt) -> AnswerHealth -> Health (over all prompts)
//! ```
//!
//! Variety is counted over the model's tokens, so that languages without spaces count alike. distinct-n is the number of
//! different n-grams over all n-grams (Li et al. 2016, "A Diversity-Promoting Objective Function").

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{
    Estimate,
    language::{Language, refuses},
};

/// Longest n-gram of distinct-n.
pub const LONGEST_NGRAM: usize = 5;
/// n-grams whose repetitions are counted.
const REPEATED_NGRAM: usize = 4;
/// A loop is a piece at the end of an answer that stands there at least so often in a row,
const LOOP_TIMES: usize = 3;
/// and over at least so many tokens: "ha ha ha" is none.
const LOOP_TOKENS: usize = 15;

/// One generated answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Tokens without the one that ended it.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// It ended by itself, before the limit of tokens.
    pub stopped: bool,
}

/// What one answer shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnswerHealth {
    /// Name of the prompt.
    pub prompt: String,
    /// Tokens generated.
    pub tokens: usize,
    /// Ended by itself.
    pub stopped: bool,
    /// distinct-1 to distinct-5; 1 where an answer has no n-gram.
    pub distinct: [f64; LONGEST_NGRAM],
    /// Share of 4-grams that occurred before in the answer.
    pub repeated: f64,
    /// The answer ends in a loop.
    pub loops: bool,
    /// It begins as a refusal.
    pub refused: bool,
    /// It is in another language than the prompt, where both are known.
    pub other_language: bool,
    /// The prompt has more than one turn.
    pub multi_turn: bool,
}

impl AnswerHealth {
    /// Measures an answer to a prompt in `language` (ISO 639-1).
    pub fn of(prompt: &str, language: &str, multi_turn: bool, answer: &Answer) -> Self {
        let expected = Language::from_code(language);
        let found = Language::of(&answer.text);
        Self {
            prompt: prompt.to_owned(),
            tokens: answer.tokens.len(),
            stopped: answer.stopped,
            distinct: std::array::from_fn(|n| distinct(&answer.tokens, n + 1)),
            repeated: 1.0 - distinct(&answer.tokens, REPEATED_NGRAM),
            loops: find_loop(&answer.tokens).is_some(),
            refused: refuses(&answer.text),
            other_language: expected.is_some() && found.is_some() && expected != found,
            multi_turn,
        }
    }
}

/// distinct-n of a text: different n-grams over all of them; 1 for a text shorter than n.
pub fn distinct(tokens: &[u32], n: usize) -> f64 {
    let windows = tokens.windows(n.max(1));
    let count = windows.len();
    if count == 0 {
        return 1.0;
    }
    windows.collect::<HashSet<_>>().len() as f64 / count as f64
}

/// A piece that is repeated at the end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    /// Tokens of the piece.
    pub period: usize,
    /// Tokens at the end that repeat it.
    pub tokens: usize,
}

/// The loop that a text ends in, with the shortest piece; `None` when its end is not at least three times the same piece
/// over 15 tokens.
pub fn find_loop(tokens: &[u32]) -> Option<Loop> {
    let longest = tokens.len() / LOOP_TIMES;
    (1..=longest).find_map(|period| {
        let repeated = tokens.iter().rev().zip(tokens.iter().rev().skip(period)).take_while(|(a, b)| a == b).count();
        let covered = repeated + period;
        (covered >= period * LOOP_TIMES && covered >= LOOP_TOKENS).then_some(Loop { period, tokens: covered })
    })
}

/// Over all prompts. Shares are of 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Answers.
    pub answers: usize,
    /// Mean distinct-1 to distinct-5.
    pub distinct: [f64; LONGEST_NGRAM],
    /// Mean share of repeated 4-grams.
    pub repeated: f64,
    /// Share of answers that end in a loop.
    pub loops: f64,
    /// Mean length in tokens, with its standard error.
    pub tokens: Estimate,
    /// Share of refusals.
    pub refused: f64,
    /// Share that ran into the limit of tokens.
    pub not_stopped: f64,
    /// Share in another language than the prompt's.
    pub other_language: f64,
    /// Share of the prompts of several turns whose answer loops, refuses or changes language; 0 when there are none.
    pub multi_turn_troubled: f64,
}

impl Health {
    /// The means of a list of answers.
    pub fn of(answers: &[AnswerHealth]) -> Self {
        let mean = |f: &dyn Fn(&AnswerHealth) -> f64| answers.iter().map(f).sum::<f64>() / answers.len().max(1) as f64;
        let share = |f: fn(&AnswerHealth) -> bool| mean(&|a| f64::from(u8::from(f(a))));
        let multi: Vec<&AnswerHealth> = answers.iter().filter(|a| a.multi_turn).collect();
        let troubled = multi.iter().filter(|a| a.loops || a.refused || a.other_language).count();
        Self {
            answers: answers.len(),
            distinct: std::array::from_fn(|n| mean(&|a| a.distinct[n])),
            repeated: mean(&|a| a.repeated),
            loops: share(|a| a.loops),
            tokens: Estimate::mean(answers.iter().map(|a| a.tokens as f64)),
            refused: share(|a| a.refused),
            not_stopped: share(|a| !a.stopped),
            other_language: share(|a| a.other_language),
            multi_turn_troubled: troubled as f64 / multi.len().max(1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn answer(tokens: &[u32], text: &str, stopped: bool) -> Answer {
        Answer { tokens: tokens.to_vec(), text: text.into(), stopped }
    }

    #[rstest]
    #[case(&[1, 2, 3, 4], 1, 1.0)]
    #[case(&[1, 1, 1, 1], 1, 0.25)]
    #[case(&[1, 2, 1, 2, 1], 2, 0.5)]
    #[case(&[1, 2, 1, 2, 1], 3, 2.0 / 3.0)]
    #[case(&[1, 2], 5, 1.0)]
    #[case(&[], 1, 1.0)]
    fn distinct_n_is_different_ngrams_over_all(#[case] tokens: &[u32], #[case] n: usize, #[case] expected: f64) {
        assert!((distinct(tokens, n) - expected).abs() < 1e-12);
    }

    #[rstest]
    #[case::one_token([7].repeat(15), Some(Loop { period: 1, tokens: 15 }))]
    #[case::too_short([7].repeat(14), None)]
    #[case::after_a_beginning([vec![1, 2, 3], [8, 9, 10, 11, 12].repeat(3)].concat(), Some(Loop { period: 5, tokens: 15 }))]
    #[case::twice_is_no_loop((0..20).chain(0..20).collect(), None)]
    #[case::cut_in_the_piece([[1, 2, 3, 4, 5, 6].repeat(3), vec![1, 2]].concat(), Some(Loop { period: 6, tokens: 20 }))]
    #[case::over_before_the_end([[7].repeat(30), vec![1]].concat(), None)]
    #[case::nothing(vec![], None)]
    fn a_loop_is_a_repeated_end(#[case] tokens: Vec<u32>, #[case] expected: Option<Loop>) {
        assert_eq!(find_loop(&tokens), expected);
    }

    #[test]
    fn an_answer_shows_its_troubles() {
        let tokens = [5u32, 6].repeat(10);
        let found = AnswerHealth::of(
            "x-fr",
            "fr",
            true,
            &answer(&tokens, "I'm sorry, but I can not do it, and that is the end of the matter for you.", false),
        );
        assert!(found.loops && found.refused && found.other_language && !found.stopped && found.multi_turn);
        // 17 4-grams, two of them different.
        assert!((found.repeated - 15.0 / 17.0).abs() < 1e-12);
        let sound = AnswerHealth::of("x-en", "en", false, &answer(&[1, 2, 3], "Yes.", true));
        assert!(!sound.loops && !sound.refused && !sound.other_language && sound.stopped);
    }

    #[test]
    fn health_is_the_mean_over_answers() {
        let looping = AnswerHealth::of("a", "en", true, &answer(&[1; 20], "", false));
        let sound = AnswerHealth::of("b", "en", false, &answer(&[1, 2, 3, 4], "", true));
        let health = Health::of(&[looping, sound]);
        assert_eq!((health.answers, health.loops, health.not_stopped), (2, 0.5, 0.5));
        assert!((health.tokens.value - 12.0).abs() < 1e-12);
        assert!((health.distinct[0] - f64::midpoint(0.05, 1.0)).abs() < 1e-12);
        assert!((health.multi_turn_troubled - 1.0).abs() < 1e-12);
        assert_eq!(Health::of(&[]).answers, 0);
    }

    proptest! {
        #[test]
        fn a_repeated_piece_is_found_whatever_stands_before(
            start in prop::collection::vec(100u32..200, 0..20), piece in prop::collection::vec(0u32..50, 5..20),
        ) {
            let tokens = [start, piece.repeat(3)].concat();
            let found = find_loop(&tokens).unwrap();
            prop_assert!(found.period <= piece.len() && found.tokens >= 15);
        }

        #[test]
        fn distinct_n_is_a_share(tokens in prop::collection::vec(0u32..5, 0..60), n in 1usize..6) {
            let found = distinct(&tokens, n);
            prop_assert!(found > 0.0 && found <= 1.0);
        }
    }
}
