//! `modelprofile events NAME`.

use std::process::ExitCode;

use jiff::Timestamp;

use super::output::Output;
use super::served::Served;
use crate::local::events::{LIMIT, table};

/// Arguments of `modelprofile events`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    served: Served,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Prints the events of local mode, oldest first.
///
/// # Errors
/// No such model runs or ran.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let log = args.served.sessions()?.events(&args.served.name)?;
    args.output.print(&log, || Ok(table(log.latest(LIMIT), Timestamp::now())))?;
    Ok(ExitCode::SUCCESS)
}
