//! Which device: what `--device` says, and what this machine has.

use std::str::FromStr;

use super::{Chosen, Compute, Means};

/// What `--device` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::commands) enum Wanted {
    /// The first usable GPU, else the CPU.
    #[default]
    Auto,
    /// The CPU; no driver is touched.
    Cpu,
    /// The GPU of this number and no other.
    Cuda(usize),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_lowercase();
        match lower.as_str() {
            // An environment variable that is set to nothing is not set.
            "auto" | "" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => return Ok(Self::Cuda(0)),
            _ => {}
        }
        let number = lower.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        number.map(Self::Cuda).ok_or_else(|| format!("{text} is no device: write auto, cpu, cuda or cuda:N"))
    }
}

impl Compute {
    /// The device, and why it is that.
    pub(super) fn decide(&self, means: &Means<'_>) -> anyhow::Result<(Chosen, String)> {
        match self.device {
            Wanted::Auto => self.auto(means),
            Wanted::Cpu => Ok((Chosen::Cpu(self.cpus(means)), "--device cpu".into())),
            Wanted::Cuda(ordinal) => Ok((self.gpu(means, ordinal)?, format!("--device cuda:{ordinal}"))),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn auto(&self, means: &Means<'_>) -> anyhow::Result<(Chosen, String)> {
        Ok((Chosen::Cpu(self.cpus(means)), "this build has no GPU backend".into()))
    }

    #[cfg(not(feature = "cuda"))]
    #[allow(clippy::unused_self, reason = "as with the backend")]
    fn gpu(&self, _: &Means<'_>, _: usize) -> anyhow::Result<Chosen> {
        anyhow::bail!(
            "this build has no GPU backend: use one that was built with the feature `cuda`, which is on by default, or run \
             with --device cpu"
        )
    }

    #[cfg(feature = "cuda")]
    fn auto(&self, means: &Means<'_>) -> anyhow::Result<(Chosen, String)> {
        use modelprofile_kernels::cuda;

        cuda::look_first_in(&self.cuda_libraries);
        let cpu = |why: String| Ok((Chosen::Cpu(self.cpus(means)), why));
        let devices = match cuda::available() {
            Ok(devices) if devices.is_empty() => return cpu("the CUDA driver shows no GPU".into()),
            Ok(devices) => devices,
            // Where there is no driver this is no warning: most such machines have no GPU.
            Err(error) => return cpu(error.to_string()),
        };
        for device in &devices {
            match super::Gpus::find(self, means, device.ordinal) {
                Ok(gpu) => {
                    self.check_activations()?;
                    return Ok((Chosen::Cuda(gpu), "the first usable GPU".into()));
                }
                Err(error) => tracing::warn!("{} (cuda:{}) is not used: {error}", device.name, device.ordinal),
            }
        }
        cpu("no GPU is usable".into())
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, means: &Means<'_>, ordinal: usize) -> anyhow::Result<Chosen> {
        use anyhow::Context;

        modelprofile_kernels::cuda::look_first_in(&self.cuda_libraries);
        let gpu = super::Gpus::find(self, means, ordinal);
        let gpu = gpu.with_context(|| format!("--device cuda:{ordinal} cannot be computed on"))?;
        self.check_activations()?;
        Ok(Chosen::Cuda(gpu))
    }

    /// Refuses what a GPU does not compute.
    #[cfg(feature = "cuda")]
    fn check_activations(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.activations != Some(super::Activations::Int8),
            "--activations int8 is computed on the CPU alone: leave it out, or run with --device cpu"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

    use std::path::Path;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        compute: Compute,
    }

    fn means() -> Means<'static> {
        Means { cache: Path::new("/nowhere"), budget: None }
    }

    fn compute(arguments: &[&str]) -> Compute {
        Line::parse_from([&["test"], arguments].concat()).compute
    }

    #[test]
    fn devices_read_as_users_write_them() {
        for (text, wanted) in [
            ("auto", Wanted::Auto),
            ("", Wanted::Auto),
            ("CPU", Wanted::Cpu),
            ("cuda", Wanted::Cuda(0)),
            ("cuda:0", Wanted::Cuda(0)),
            ("Cuda:7", Wanted::Cuda(7)),
        ] {
            assert_eq!(text.parse(), Ok(wanted), "{text}");
        }
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda7", "cpu:0"] {
            assert!(wrong.parse::<Wanted>().unwrap_err().contains("cuda:N"), "{wrong}");
        }
    }

    #[test]
    fn the_cpu_is_taken_without_a_look_at_drivers() {
        let (chosen, why) = compute(&["--device", "cpu", "--threads", "3"]).decide(&means()).unwrap();
        assert_eq!((chosen.name().as_str(), why.as_str()), ("the CPU, 3 threads", "--device cpu"));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_the_backend_says_so() {
        let (chosen, why) = compute(&["--device", "auto"]).decide(&means()).unwrap();
        assert!(matches!(chosen, Chosen::Cpu(_)) && why.contains("no GPU backend"), "{why}");
        let error = compute(&["--device", "cuda"]).decide(&means()).unwrap_err().to_string();
        assert!(error.contains("feature `cuda`") && error.contains("--device cpu"), "{error}");
    }
}
