//! Errors that name the field, and many of them at once.

use std::fmt;

/// What is wrong with one field, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldError {
    /// Path from the top of the manifest: `spec.profiles[1].weights.groupSize`. Empty: the manifest as a whole.
    pub path: String,
    /// A sentence for the user.
    pub message: String,
}

impl FieldError {
    /// An error at a path.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }

    /// Whether this error's field is the other's, or lies above or below it.
    pub(crate) fn is_near(&self, other: &Self) -> bool {
        let (short, long) = if self.path.len() <= other.path.len() { (self, other) } else { (other, self) };
        long.path.strip_prefix(&short.path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

/// Everything that is wrong with a manifest; never empty. Displays one error a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Errors(pub Vec<FieldError>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("spec.a", "spec.a", true)]
    #[case("spec.a", "spec.a.b", true)]
    #[case("spec.a[0].b", "spec.a", true)]
    #[case("spec.ab", "spec.a", false)]
    #[case("spec.b", "spec.a", false)]
    fn nearness_follows_the_path(#[case] a: &str, #[case] b: &str, #[case] near: bool) {
        assert_eq!(FieldError::new(a, "").is_near(&FieldError::new(b, "")), near);
    }

    #[test]
    fn errors_are_one_a_line() {
        let errors = Errors(vec![FieldError::new("spec.a", "bad"), FieldError::new("", "worse")]);
        assert_eq!(errors.to_string(), "spec.a: bad\nworse");
    }
}
