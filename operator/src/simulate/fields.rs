//! Numbers from a file, all of them checked before any is used.

use std::path::Path;

use anyhow::{Context, bail};
use modelprofile_api::FieldError;
use serde::de::DeserializeOwned;

use crate::locate::with_line;

/// A description of something in a YAML file, whose numbers must make sense before they are computed with.
pub(super) trait Described: DeserializeOwned {
    /// What is wrong, field by field; empty if nothing is.
    fn faults(&self) -> Vec<FieldError>;
}

/// Reads and checks `path`.
pub(super) fn load<T: Described>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text, &path.display().to_string())
}

/// Reads and checks `text`; `name` stands in errors.
pub(super) fn parse<T: Described>(text: &str, name: &str) -> anyhow::Result<T> {
    let value: T = serde_yaml::from_str(text).with_context(|| format!("{name}: not what is expected here"))?;
    let faults = value.faults();
    if !faults.is_empty() {
        let lines: Vec<_> = faults.iter().map(|fault| format!("{name}: {}", with_line(fault, text))).collect();
        bail!("{}", lines.join("\n"));
    }
    Ok(value)
}

/// An error for each number that is not above zero and finite.
pub(super) fn above_zero(fields: &[(&str, f64)]) -> Vec<FieldError> {
    fields
        .iter()
        .filter(|(_, value)| !(value.is_finite() && *value > 0.0))
        .map(|(field, value)| {
            FieldError::new(*field, format!("{value} is not above zero; give the nominal value of the data sheet"))
        })
        .collect()
}
