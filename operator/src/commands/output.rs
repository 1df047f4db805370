//! The forms in which a command prints an object.

use anyhow::Context;
use serde::Serialize;

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For a person.
    Text,
    /// The object as YAML.
    Yaml,
    /// The object as JSON.
    Json,
}

impl Output {
    /// Prints the object; `text` makes its form for a person.
    ///
    /// # Errors
    /// It has no such form.
    pub fn print(self, object: &impl Serialize, text: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
        match self {
            Self::Text => print!("{}", text()?),
            Self::Yaml => print!("{}", serde_yaml::to_string(object).context("cannot write it as YAML")?),
            Self::Json => println!("{}", serde_json::to_string_pretty(object).context("cannot write it as JSON")?),
        }
        Ok(())
    }
}
