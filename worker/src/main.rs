//! `modelprofile-worker`: see `modelprofile-worker --help`.

use clap::Parser;
use modelprofile_worker::commands::Cli;

/// An error and its causes in one line. Some errors repeat their cause in their own sentence; it is said once.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        said if said.ends_with(&cause) => said.to_owned(),
        said => format!("{said}: {cause}"),
    })
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    modelprofile_worker::commands::logging();
    match cli.run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", sentence(&error));
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_cause_that_an_error_repeats_is_said_once() {
        let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = modelprofile_engine::EngineError::io("a.gguf", missing());
        let error = anyhow::Error::from(error).context("the checkpoint cannot be read");
        assert_eq!(super::sentence(&error), "the checkpoint cannot be read: a.gguf: no such file");
        let error = anyhow::Error::from(missing()).context("a text").context("the options");
        assert_eq!(super::sentence(&error), "the options: a text: no such file");
    }
}
