//! `modelprofile-worker`: see `modelprofile-worker --help`.

use std::process::ExitCode;

use clap::Parser;
use modelprofile_worker::{commands::Cli, outcome};

fn main() -> ExitCode {
    let cli = Cli::parse();
    modelprofile_worker::commands::logging();
    let serves = cli.serves();
    let status = match cli.run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {}", outcome::sentence(&error));
            outcome::exit_status(&error)
        }
    };
    if serves {
        // What prepares or computes goes on until the process is no more.
        modelprofile_kernels::end_process(status);
    }
    ExitCode::from(status)
}
