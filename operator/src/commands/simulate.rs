//! `modelprofile simulate`.

use std::process::ExitCode;

use anyhow::bail;

/// Arguments of `modelprofile simulate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Hold the simulator against published throughput and print the comparison as Markdown; takes no other argument.
    #[arg(long)]
    check: bool,
}

/// Simulates, and prints what came of it.
///
/// # Errors
/// A file can not be read or says something that makes no sense.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.check {
        print!("{}", crate::simulate::report());
        return Ok(ExitCode::SUCCESS);
    }
    bail!("nothing to simulate: give --check")
}
