use proptest::prelude::*;

use super::*;
use crate::text::fixtures::{spaces, words};

fn stream(mut decoder: StreamDecoder, tokens: &[u32]) -> String {
    let mut text: String = tokens.iter().map(|&token| decoder.push(token)).collect();
    text.push_str(&decoder.finish());
    text
}

#[test]
fn a_character_waits_for_its_last_byte() {
    let mut decoder = StreamDecoder::new(words(), false);
    let bytes = "\u{1F600}!".as_bytes();
    let parts: Vec<String> = bytes.iter().map(|&byte| decoder.push(u32::from(byte))).collect();
    assert_eq!(parts, ["", "", "", "\u{1F600}", "!"]);
    assert_eq!(decoder.finish(), "");
}

#[test]
fn a_character_cut_off_by_the_end_is_one_replacement() {
    let mut decoder = StreamDecoder::new(words(), false);
    assert_eq!(decoder.push(0xF0) + &decoder.push(0x9F), "");
    assert_eq!(decoder.finish(), "\u{FFFD}");
    assert_eq!(decoder.finish(), "", "only once");
}

#[test]
fn an_impossible_byte_does_not_hold_back_what_follows() {
    let mut decoder = StreamDecoder::new(words(), false);
    assert_eq!(decoder.push(0xE2), "");
    assert_eq!(decoder.push(u32::from(b'a')), "\u{FFFD}a");
}

#[test]
fn generated_words_keep_their_space_and_whole_texts_do_not() {
    let tokenizer = spaces();
    let ids = tokenizer.encode("the cat", false).unwrap();
    assert_eq!(stream(StreamDecoder::new(Arc::clone(&tokenizer), true), &ids), " the cat");
    assert_eq!(stream(StreamDecoder::from_start(tokenizer, true), &ids), "the cat");
}

#[test]
fn special_tokens_and_padding_rows_have_no_text() {
    let tokenizer = words();
    assert_eq!(stream(StreamDecoder::new(Arc::clone(&tokenizer), true), &[256, 257, 100_000]), "<tool>");
    assert_eq!(stream(StreamDecoder::new(tokenizer, false), &[256]), "<|end|>");
}

proptest! {
    /// Any tokens, also byte soup: pieces together are the whole.
    #[test]
    fn pieces_together_are_the_whole(tokens in prop::collection::vec(0_u32..264, 0..60), skip: bool) {
        for tokenizer in [words(), spaces()] {
            let whole = tokenizer.decode(&tokens, skip).unwrap();
            prop_assert_eq!(stream(StreamDecoder::from_start(tokenizer, skip), &tokens), whole);
        }
    }

    /// A generation continues its prompt without a seam.
    #[test]
    fn a_stream_continues_its_prompt(text in "[a-zé\u{1F600} ]{1,12}", tokens in prop::collection::vec(0_u32..264, 0..40)) {
        for tokenizer in [words(), spaces()] {
            let prompt = tokenizer.encode(&text, false).unwrap();
            let together: Vec<u32> = prompt.iter().chain(&tokens).copied().collect();
            let seam = tokenizer.decode(&prompt, true).unwrap()
                + &stream(StreamDecoder::new(Arc::clone(&tokenizer), true), &tokens);
            prop_assert_eq!(seam, tokenizer.decode(&together, true).unwrap());
        }
    }

    /// Real text of any script survives the way there and back.
    #[test]
    fn text_round_trips(text in "\\PC{0,40}") {
        let tokenizer = words();
        prop_assert_eq!(stream(StreamDecoder::new(Arc::clone(&tokenizer), false), &tokenizer.encode(&text, false).unwrap()), text);
    }
}
