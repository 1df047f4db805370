//! In which line of a YAML file a field stands, for errors that are found after it was read.

use crate::FieldError;

/// The error with the line of its field in `text`: `spec.scaling.maxReplicas: 0 is ... (line 31)`.
pub fn with_line(error: &FieldError, text: &str) -> String {
    line(text, &error.path).map_or_else(|| error.to_string(), |line| format!("{error} (line {line})"))
}

/// One entry of a block: a key, or a dash of a list.
struct Entry<'a> {
    line: usize,
    indent: usize,
    text: &'a str,
}

/// The line, from 1 on, of `path` (`spec.profiles[1].weights`), or of what encloses it as far as it is written in blocks:
/// a field of `{...}` is in the line where the brace opens. `None` if not even the first name is found.
fn line(text: &str, path: &str) -> Option<usize> {
    let entries = entries(text);
    let mut block = &entries[..];
    let mut found = None;
    for step in path.split(['.', '[']) {
        let Some(indent) = block.first().map(|entry| entry.indent) else { break };
        let mut here = (0..block.len()).filter(|at| block[*at].indent == indent);
        let place = match step.strip_suffix(']') {
            Some(index) => {
                let index = index.parse().ok()?;
                here.filter(|at| block[*at].text == "-").nth(index)
            }
            None => here.find(|at| key(block[*at].text).is_some_and(|(name, _)| name == step)),
        };
        let Some(place) = place else { break };
        let entry = &block[place];
        found = Some(entry.line);
        if key(entry.text).is_some_and(|(_, value)| !value.is_empty()) {
            break;
        }
        // The dashes of a list may be as far to the left as its key.
        let inside = |other: &&Entry| {
            other.indent > indent || (other.indent == indent && other.text == "-" && entry.text != "-")
        };
        let length = block[place + 1..].iter().take_while(inside).count();
        block = &block[place + 1..=place + length];
    }
    found
}

fn entries(text: &str) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    for (line, whole) in (1..).zip(text.lines()) {
        let mut text = whole.trim();
        if text.is_empty() || text.starts_with('#') || text.starts_with("---") {
            continue;
        }
        let mut indent = whole.len() - whole.trim_start().len();
        while let Some(rest) = text.strip_prefix("- ") {
            entries.push(Entry { line, indent, text: "-" });
            let rest = rest.trim_start();
            indent += text.len() - rest.len();
            text = rest;
        }
        entries.push(Entry { line, indent, text });
    }
    entries
}

/// Key and value of an entry, without quotes around the key and without a comment in place of the value.
fn key(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.split_once(':')?;
    let value = value.trim_start();
    let value = if value.starts_with('#') { "" } else { value };
    Some((name.trim_end().trim_matches(['"', '\'']), value))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const TEXT: &str = "# head\n\
                        name: x\n\
                        spec:   # the spec\n\
                        \x20 switching:\n\
                        \x20   mode: Auto\n\
                        \x20 profiles:\n\
                        \x20 - name: a\n\
                        \x20   weights: {format: FP8}\n\
                        \n\
                        \x20 -\n\
                        \x20   name: b\n\
                        \x20   \"weights\":\n\
                        \x20     format: INT4\n\
                        \x20 mode: late\n";

    #[rstest]
    #[case("name", Some(2))]
    #[case("spec.switching.mode", Some(5))]
    #[case("spec.mode", Some(14))]
    #[case("spec.profiles", Some(6))]
    #[case("spec.profiles[0].name", Some(7))]
    #[case::in_braces("spec.profiles[0].weights.format", Some(8))]
    #[case("spec.profiles[1].weights.format", Some(13))]
    #[case::not_written("spec.switching.targets.queueTimeSeconds", Some(4))]
    #[case::beyond_the_list("spec.profiles[2].name", Some(6))]
    #[case::nowhere("metadata.name", None)]
    #[case::all_of_it("", None)]
    fn a_field_is_found_in_its_line(#[case] path: &str, #[case] expected: Option<usize>) {
        assert_eq!(line(TEXT, path), expected);
    }

    #[test]
    fn a_line_of_json_or_nothing_at_all_is_no_place() {
        assert_eq!((line("{\"name\": 1}", "name"), line("", "name")), (None, None));
    }

    #[test]
    fn the_line_ends_the_message() {
        let error = FieldError::new("spec.switching.mode", "is wrong");
        assert_eq!(with_line(&error, TEXT), "spec.switching.mode: is wrong (line 5)");
        assert_eq!(with_line(&FieldError::new("kind", "is wrong"), TEXT), "kind: is wrong");
    }
}
