//! The command line: what a subcommand takes, and where it runs.

pub mod crd;
pub mod validate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Serve one language model at several precisions and change precision in place.
#[derive(Debug, Parser)]
#[command(name = "modelprofile", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a manifest and print everything that is wrong with it.
    Validate(validate::Args),
    /// Print the CustomResourceDefinition of ModelProfile as YAML, for `kubectl apply -f -`.
    Crd,
}

impl Cli {
    /// Runs the chosen subcommand to its end.
    ///
    /// # Errors
    /// What the user can act on, as one chain of causes; `main` prints it. A command that ran but has bad news for its
    /// caller (an invalid manifest, say) returns a non-zero [`ExitCode`] instead, having said why itself.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Validate(args) => validate::run(&args),
            Command::Crd => crd::run(),
        }
    }
}
