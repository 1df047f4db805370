//! `modelprofile validate -f FILE`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use modelprofile_api::{Validated, needs_cluster, notices};

/// Arguments of `modelprofile validate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifest to check: a ModelProfile as YAML or JSON; `-` reads standard input. May be given several times.
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// Checks every file. Prints `FILE: PATH: MESSAGE` for each error (standard error), and what is accepted without effect.
///
/// The exit code is 0 if all files are valid, 1 if one is not.
///
/// # Errors
/// A file can not be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut all_valid = true;
    let mut unreadable = Vec::new();
    for file in &args.files {
        let text = match read(file) {
            Ok(text) => text,
            // The others are checked all the same.
            Err(error) => {
                unreadable.push(format!("{error:#}"));
                continue;
            }
        };
        let name = file.display();
        match Validated::from_yaml(&text) {
            Ok(valid) => {
                for notice in needs_cluster(valid.manifest()).iter().chain(&notices(valid.manifest())) {
                    eprintln!("{name}: notice: {notice}");
                }
                println!("{name}: ModelProfile `{}` is valid", valid.manifest().metadata.name);
            }
            Err(errors) => {
                all_valid = false;
                for error in &errors.0 {
                    eprintln!("{name}: {error}");
                }
                let count = errors.0.len();
                eprintln!("{name}: {count} {}", if count == 1 { "error" } else { "errors" });
            }
        }
    }
    if !unreadable.is_empty() {
        bail!("{}", unreadable.join("\nerror: "));
    }
    Ok(if all_valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");

    fn validate(files: &[&str]) -> anyhow::Result<ExitCode> {
        run(&Args { files: files.iter().map(|f| Path::new(EXAMPLES).join(f)).collect() })
    }

    #[test]
    fn the_exit_code_tells_whether_all_files_are_valid() {
        assert_eq!(validate(&["smollm2.yaml"]).unwrap(), ExitCode::SUCCESS);
        assert_eq!(validate(&["smollm2.yaml", "llama-70b.yaml"]).unwrap(), ExitCode::SUCCESS);
        let folder = tempfile::tempdir().unwrap();
        let invalid = folder.path().join("invalid.yaml");
        let text = std::fs::read_to_string(Path::new(EXAMPLES).join("llama-70b.yaml")).unwrap();
        std::fs::write(&invalid, text.replace("type: Native", "type: VLLM")).unwrap();
        assert_eq!(validate(&["smollm2.yaml", invalid.to_str().unwrap()]).unwrap(), ExitCode::FAILURE);
    }

    #[test]
    fn every_file_that_is_not_there_is_named() {
        let error = validate(&["none.yaml", "smollm2.yaml", "neither.yaml"]).unwrap_err().to_string();
        assert!(error.contains("none.yaml") && error.contains("neither.yaml"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = validate(&["none.yaml"]).unwrap_err();
        assert!(format!("{error:#}").contains("none.yaml"), "{error:#}");
    }
}
