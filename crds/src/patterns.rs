//! The patterns that text fields follow: the regular expression that the schema carries, and the same test in Rust.
//!
//! The API server knows the expressions only, the checks on this side know the functions only; a test holds every
//! expression of the generated schema against this list.

/// A pattern of the schema.
pub(crate) struct Pattern {
    /// As the schema writes it.
    pub(crate) regex: &'static str,
    /// The same test.
    pub(crate) matches: fn(&str) -> bool,
    /// What to write instead, as the end of a sentence.
    pub(crate) expected: &'static str,
}

/// Names of profiles and windows: they become label values and parts of object names.
pub(crate) const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// Times of day.
pub(crate) const TIME: &str = "^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$";
/// Absolute paths without `..`.
pub(crate) const ABSOLUTE_PATH: &str = "^/";
/// Amounts.
pub(crate) const QUANTITY: &str = "^[+]?([0-9]+([.][0-9]*)?|[.][0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$";

const PATTERNS: [Pattern; 4] = [
    Pattern {
        regex: NAME,
        matches: is_name,
        expected: "lower-case letters, digits and '-', with a letter or digit at both ends",
    },
    Pattern {
        regex: TIME,
        matches: |s| time_of_day(s).is_some(),
        expected: "a time of day from \"00:00\" to \"24:00\"",
    },
    // Beyond the expression it refuses what no 64 bits hold.
    Pattern { regex: QUANTITY, matches: |s| crate::parse_quantity(s).is_ok(), expected: "an amount such as 76Gi" },
    Pattern { regex: ABSOLUTE_PATH, matches: |s| s.starts_with('/'), expected: "an absolute path" },
];

/// The pattern that the schema names by its expression.
pub(crate) fn find(regex: &str) -> Option<&'static Pattern> {
    PATTERNS.iter().find(|p| p.regex == regex)
}

/// A DNS label, except for its length.
pub(crate) fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.iter().all(|b| inner(*b) || *b == b'-')
        && bytes.first().is_some_and(|b| inner(*b))
        && bytes.last().is_some_and(|b| inner(*b))
}

/// Minutes since midnight of `HH:MM`, `00:00` to `24:00`; `None` for any other text.
pub fn time_of_day(text: &str) -> Option<u16> {
    let [h1, h2, b':', m1, m2] = text.as_bytes() else { return None };
    let digit = |b: &u8| b.is_ascii_digit().then(|| u16::from(b - b'0'));
    let (hours, minutes) = (digit(h1)? * 10 + digit(h2)?, digit(m1)? * 10 + digit(m2)?);
    let total = hours * 60 + minutes;
    (minutes < 60 && total <= 24 * 60).then_some(total)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("00:00", Some(0))]
    #[case("08:30", Some(510))]
    #[case("23:59", Some(1439))]
    #[case("24:00", Some(1440))]
    #[case("24:01", None)]
    #[case("12:60", None)]
    #[case("8:00", None)]
    #[case("08:00:00", None)]
    #[case("ab:cd", None)]
    #[case("", None)]
    fn times_have_two_digits_each(#[case] text: &str, #[case] expected: Option<u16>) {
        assert_eq!(time_of_day(text), expected);
    }

    #[rstest]
    #[case("quality", true)]
    #[case("q", true)]
    #[case("fp8-2", true)]
    #[case("", false)]
    #[case("-a", false)]
    #[case("a-", false)]
    #[case("Quality", false)]
    #[case("a.b", false)]
    #[case("é", false)]
    fn names_are_labels(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(is_name(text), expected);
    }
}
