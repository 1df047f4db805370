//! `kubectl modelprofile`: kubectl runs the program of this name that it finds on the PATH.

use std::process::ExitCode;

use clap::Parser;
use modelprofile_operator::kubectl::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
