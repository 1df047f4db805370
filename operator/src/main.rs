//! The `modelprofile` command.

use std::process::ExitCode;

use clap::Parser;
use modelprofile_operator::commands::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
