//! `kernels`: compiles the GPU's kernels beforehand, on a machine that needs no GPU, for images that are to start at once
//! or that lack NVRTC.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use modelprofile_kernels::cuda;

/// Options of `kernels`.
#[derive(Debug, Args)]
pub(super) struct Kernels {
    /// Folder to compile them into. `kernels` beside this program is found without an option; any other is named with
    /// --kernels or MODELPROFILE_KERNELS.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Compute capabilities to compile for, with commas: 9.0 is Hopper (H100, H200), 10.0 Blackwell (B200).
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "9.0", value_parser = capability)]
    capability: Vec<(i32, i32)>,
    /// Folders to look for NVRTC in before all others; several with colons.
    #[arg(long, value_name = "DIRS", env = "MODELPROFILE_CUDA_LIBRARIES", value_delimiter = ':')]
    cuda_libraries: Vec<PathBuf>,
}

impl Kernels {
    pub(super) fn run(self) -> anyhow::Result<()> {
        cuda::look_first_in(&self.cuda_libraries);
        for (major, minor) in self.capability {
            let files = cuda::ship(&self.out, (major, minor)).with_context(|| {
                format!("the kernels for {major}.{minor} cannot be compiled into {}", self.out.display())
            })?;
            println!("{} units of kernels for {major}.{minor} in {}", files.len(), self.out.display());
        }
        Ok(())
    }
}

/// `9.0` as its two numbers.
fn capability(text: &str) -> Result<(i32, i32), String> {
    let parts = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parts
        .filter(|(major, minor)| *major >= 9 && *minor >= 0)
        .ok_or_else(|| format!("{text} is not a compute capability from 9.0 on, such as 9.0 or 10.0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_two_numbers_from_hopper_on() {
        assert_eq!((capability("9.0"), capability("12.1")), (Ok((9, 0)), Ok((12, 1))));
        for wrong in ["9", "sm_90", "8.6", "9.-1", ""] {
            assert!(capability(wrong).unwrap_err().contains("such as 9.0"), "{wrong}");
        }
    }
}
