//! `modelprofile events NAME`.

use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;

use super::output::Output;
use crate::local::events::{LIMIT, table};
use crate::local::serve::default_cache;
use crate::local::session::Sessions;

/// Arguments of `modelprofile events`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// `metadata.name` of the model that `modelprofile local` serves, or served last.
    name: String,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The folder that `modelprofile local` was given with --cache, if it was.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// Prints the events of local mode, oldest first.
///
/// # Errors
/// No such model runs or ran.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let log = Sessions::new(&args.cache.map_or_else(default_cache, Ok)?).events(&args.name)?;
    args.output.print(&log, || Ok(table(log.latest(LIMIT), Timestamp::now())))?;
    Ok(ExitCode::SUCCESS)
}
