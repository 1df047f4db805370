//! `modelprofile-worker`: see `modelprofile-worker --help`.

use clap::Parser;
use modelprofile_worker::commands::Cli;

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    modelprofile_worker::commands::logging();
    match cli.run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", modelprofile_worker::outcome::sentence(&error));
            std::process::ExitCode::from(modelprofile_worker::outcome::exit_status(&error))
        }
    }
}
