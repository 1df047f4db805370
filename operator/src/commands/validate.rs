//! `modelprofile validate -f FILE`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

/// Arguments of `modelprofile validate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifest to check: a ModelProfile as YAML or JSON.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
}

/// Checks the file.
///
/// # Errors
/// The file cannot be read, or is not YAML.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    serde_yaml::from_str::<serde_yaml::Value>(&text).with_context(|| format!("{} is not YAML", args.file.display()))?;
    Ok(ExitCode::SUCCESS)
}
