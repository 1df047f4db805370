//! `modelprofile local -f FILE`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::local::serve::{Options, default_cache, serve};

/// Arguments of `modelprofile local`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifest to serve: a ModelProfile as YAML or JSON. Edits are followed while it runs.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Port of the OpenAI API.
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Port of the admin API.
    #[arg(long, default_value_t = 8001, value_parser = clap::value_parser!(u16).range(1..))]
    admin_port: u16,
    /// Folder of artifacts and logs [default: modelprofile in the user's cache folder].
    #[arg(long, value_name = "DIR", env = "MODELPROFILE_CACHE")]
    cache: Option<PathBuf>,
    /// The worker's executable [default: beside this one, else on the PATH].
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// Keys that open the OpenAI API, separated by commas; without any it is open.
    #[arg(long, value_name = "KEYS", env = "MODELPROFILE_API_KEYS", hide_env_values = true)]
    api_keys: Option<String>,
    /// Seconds that running requests may take to finish at the end.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_seconds: u64,
    /// Seconds between two looks at the worker's metrics; after each one it is decided anew.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    metrics_interval: u64,
    /// Seconds without an answer, or without progress of its requests, after which a worker counts as hung and is started
    /// anew.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    hang_seconds: u64,
}

/// Serves until a signal, or until the worker ends.
///
/// # Errors
/// The manifest is invalid, something needed is missing or taken, or the worker ended by itself.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let cache = args.cache.map_or_else(default_cache, Ok)?;
    let options = Options {
        file: args.file,
        worker: args.worker,
        port: args.port,
        admin_port: args.admin_port,
        // The worker is given this path too; an absolute one means the same to both.
        cache: std::path::absolute(&cache).with_context(|| format!("{} is not a path", cache.display()))?,
        api_keys: args.api_keys.filter(|keys| !keys.is_empty()),
        drain_limit: Duration::from_secs(args.drain_seconds),
        hang_limit: Duration::from_secs(args.hang_seconds),
        metrics_interval: Duration::from_secs(args.metrics_interval),
    };
    super::runtime()?.block_on(serve(options))
}
