//! `modelprofile crd`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

/// Prints the CustomResourceDefinition as YAML.
///
/// # Errors
/// Standard output can not be written.
pub fn run() -> anyhow::Result<ExitCode> {
    let yaml = modelprofile_api::crd_yaml()?;
    std::io::stdout().write_all(yaml.as_bytes()).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}
