//! Numbers from a file, all of them checked before any is used.

use std::path::Path;

use modelprofile_api::{FieldError, with_line};
use serde::de::DeserializeOwned;

/// Why a description of hardware or of a model was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptionError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The text is no description: a field is unknown, missing or of the wrong type.
    #[error("{name}: not what is expected here")]
    Parse {
        /// Where the text came from.
        name: String,
        /// What and where.
        source: serde_yaml::Error,
    },
    /// Numbers that make no sense: all of them, one a line.
    #[error("{0}")]
    Numbers(String),
    /// A name that is not known, and no file either.
    #[error("{0}")]
    Unknown(String),
}

/// A description of something in a YAML file, whose numbers must make sense before they are computed with.
pub(crate) trait Described: DeserializeOwned {
    /// What is wrong, field by field; empty if nothing is.
    fn faults(&self) -> Vec<FieldError>;
}

/// Reads and checks `path`.
pub(crate) fn load<T: Described>(path: &Path) -> Result<T, DescriptionError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| DescriptionError::Read { path: name.clone(), source })?;
    parse(&text, &name)
}

/// Reads and checks `text`; `name` stands in errors.
pub(crate) fn parse<T: Described>(text: &str, name: &str) -> Result<T, DescriptionError> {
    let value: T =
        serde_yaml::from_str(text).map_err(|source| DescriptionError::Parse { name: name.to_owned(), source })?;
    let faults = value.faults();
    if !faults.is_empty() {
        let lines: Vec<_> = faults.iter().map(|fault| format!("{name}: {}", with_line(fault, text))).collect();
        return Err(DescriptionError::Numbers(lines.join("\n")));
    }
    Ok(value)
}

/// An error for each number that is not above zero and finite.
pub(crate) fn above_zero(fields: &[(&str, f64)]) -> Vec<FieldError> {
    fields
        .iter()
        .filter(|(_, value)| !(value.is_finite() && *value > 0.0))
        .map(|(field, value)| {
            FieldError::new(*field, format!("{value} is not above zero; give the nominal value of the data sheet"))
        })
        .collect()
}
