use proptest::prelude::*;

use super::*;

fn matcher(stops: &[&str]) -> StopMatcher {
    StopMatcher::new(stops.iter().map(ToString::to_string).collect())
}

/// Everything that reaches the client, and whether the text was stopped.
fn run(mut matcher: StopMatcher, chunks: &[&str]) -> (String, bool) {
    let mut text = String::new();
    for chunk in chunks {
        let StopOutcome { emit, stopped } = matcher.push(chunk);
        text.push_str(&emit);
        if stopped {
            assert_eq!(matcher.finish(), "", "nothing follows a stop");
            return (text, true);
        }
    }
    text.push_str(&matcher.finish());
    (text, false)
}

#[test]
fn without_stop_strings_text_passes_through() {
    let mut matcher = matcher(&[""]);
    assert_eq!(matcher.push("a\n"), StopOutcome { emit: "a\n".into(), stopped: false });
    assert_eq!(matcher.finish(), "");
}

#[test]
fn holds_back_only_what_may_become_a_stop_string() {
    let mut matcher = matcher(&["\n\nUser:"]);
    let emitted: Vec<String> = ["Hi\n", "\n", "Us", "ual\n", "\nUser", ": x"].map(|c| matcher.push(c).emit).into();
    assert_eq!(emitted, ["Hi", "", "", "\n\nUsual", "", ""]);
    assert_eq!(matcher.matched(), Some("\n\nUser:"));
    assert_eq!(matcher.push("more"), StopOutcome { emit: String::new(), stopped: true });
}

#[test]
fn a_failed_prefix_may_contain_the_next_one() {
    assert_eq!(run(matcher(&["aab"]), &["a", "a", "a", "b"]), ("a".into(), true));
    assert_eq!(run(matcher(&["ééx"]), &["é", "éé", "x"]), ("é".into(), true));
}

#[test]
fn the_first_to_end_wins_then_the_longest() {
    assert_eq!(run(matcher(&["abcd", "bc"]), &["xabcd"]), ("xa".into(), true));
    assert_eq!(run(matcher(&["c", "abc"]), &["xabc"]), ("x".into(), true));
}

#[test]
fn what_was_held_comes_out_at_the_end() {
    assert_eq!(run(matcher(&["###"]), &["a#", "#"]), ("a##".into(), false));
}

/// By the definition: the shortest prefix of the text that ends with a stop string, without the longest such.
fn naive(stops: &[String], text: &str) -> (String, bool) {
    for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
        let longest =
            stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(*stop)).map(String::len).max();
        if let Some(length) = longest {
            return (text[..end - length].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

proptest! {
    #[test]
    fn agrees_with_naive_search_however_the_text_is_cut(
        stops in prop::collection::vec("[abé]{0,4}", 0..4),
        chunks in prop::collection::vec("[abcé]{0,5}", 0..12),
    ) {
        let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
        let expected = naive(&stops, &chunks.concat());
        prop_assert_eq!(run(StopMatcher::new(stops), &chunks), expected);
    }

    /// Whatever is held back is the beginning of a stop string.
    #[test]
    fn holds_back_no_more_than_needed(stop in "[ab]{1,5}", text in "[abc]{0,20}") {
        let mut matcher = StopMatcher::new(vec![stop.clone()]);
        let outcome = matcher.push(&text);
        let held = matcher.finish();
        prop_assert!(stop.starts_with(&held));
        if !outcome.stopped {
            prop_assert_eq!(outcome.emit + &held, text);
        }
    }
}
