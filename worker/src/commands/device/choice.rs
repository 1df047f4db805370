//! Which device: what `--device` says, what it is wanted for, and what this machine has.

use std::str::FromStr;

use super::{Chosen, Compute, Means};

/// What `--device` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::commands) enum Wanted {
    /// The first usable GPUs, else the CPU.
    #[default]
    Auto,
    /// The CPU; no driver is touched.
    Cpu,
    /// GPUs and nothing else: those of these numbers, or the first ones.
    Cuda(Vec<usize>),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_lowercase();
        match lower.as_str() {
            // An environment variable that is set to nothing is not set.
            "auto" | "" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => return Ok(Self::Cuda(Vec::new())),
            _ => {}
        }
        let numbers = lower.strip_prefix("cuda:").map(|numbers| numbers.split(',').map(str::parse).collect());
        match numbers {
            Some(Ok(numbers)) => Ok(Self::Cuda(numbers)),
            _ => Err(format!("{text} is no device: write auto, cpu, cuda or cuda:N, and cuda:N,M for two")),
        }
    }
}

impl Compute {
    /// The device, and why it is that.
    ///
    /// # Errors
    /// GPUs were asked for and cannot be computed on; or several are to share the model and the CPU would be taken.
    pub(super) fn decide(&self, means: &Means<'_>) -> anyhow::Result<(Chosen, String)> {
        let (chosen, why) = match &self.device {
            Wanted::Auto => self.auto(means)?,
            Wanted::Cpu => (Chosen::Cpu(self.cpus(means)), "--device cpu".into()),
            Wanted::Cuda(numbers) => self.gpus(means, numbers)?,
        };
        let share = means.wish.parallel.unwrap_or(1);
        anyhow::ensure!(
            share == 1 || !means.wish.serves || !matches!(chosen, Chosen::Cpu(_)),
            "tensorParallel is {share}, so {share} GPUs are to share the model, and the CPU would compute ({why}): start the \
             worker where there are as many, or write 1"
        );
        Ok((chosen, why))
    }
}

#[cfg(not(feature = "cuda"))]
impl Compute {
    fn auto(&self, means: &Means<'_>) -> anyhow::Result<(Chosen, String)> {
        Ok((Chosen::Cpu(self.cpus(means)), "this build has no GPU backend".into()))
    }

    #[allow(clippy::unused_self, reason = "as with the backend")]
    fn gpus(&self, _: &Means<'_>, _: &[usize]) -> anyhow::Result<(Chosen, String)> {
        anyhow::bail!(
            "this build has no GPU backend: use one that was built with the feature `cuda`, which is on by default, or run \
             with --device cpu"
        )
    }
}

#[cfg(feature = "cuda")]
impl Compute {
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
        let count = means.wish.parallel.unwrap_or(1);
        let mut usable = Vec::new();
        for device in &devices {
            match super::Gpus::<cuda::Cuda>::find(self, means, &[device.ordinal]) {
                Ok(_) => usable.push(device.ordinal),
                Err(error) => tracing::warn!("{} (cuda:{}) is not used: {error}", device.name, device.ordinal),
            }
            if usable.len() == count {
                let why =
                    if count == 1 { "the first usable GPU".into() } else { format!("the first {count} usable GPUs") };
                return Ok((self.open_as(means, &usable)?, why));
            }
        }
        cpu(format!("{} usable GPUs, where {count} are wanted", usable.len()))
    }

    fn gpus(&self, means: &Means<'_>, numbers: &[usize]) -> anyhow::Result<(Chosen, String)> {
        use anyhow::Context;

        modelprofile_kernels::cuda::look_first_in(&self.cuda_libraries);
        let count = means.wish.parallel.unwrap_or(numbers.len().max(1));
        let first: Vec<usize> = (0..count).collect();
        let numbers = if numbers.is_empty() { &first } else { numbers };
        anyhow::ensure!(
            numbers.len() == count,
            "tensorParallel is {count}, but --device names {} GPUs: name as many, or none and the first are taken",
            numbers.len()
        );
        let listed = numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let chosen = self.open_as(means, numbers);
        let chosen = chosen.with_context(|| format!("--device cuda:{listed} cannot be computed on"))?;
        Ok((chosen, format!("--device cuda:{listed}")))
    }

    fn open_as(&self, means: &Means<'_>, numbers: &[usize]) -> anyhow::Result<Chosen> {
        let chosen = match numbers {
            [_] => Chosen::Cuda(super::Gpus::find(self, means, numbers)?),
            _ => Chosen::Parallel(super::Gpus::find(self, means, numbers)?),
        };
        anyhow::ensure!(
            self.activations != Some(super::Activations::Int8),
            "--activations int8 is computed on the CPU alone: leave it out, or run with --device cpu"
        );
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

    use std::path::Path;

    use clap::Parser;

    use super::{super::Wish, *};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        compute: Compute,
    }

    fn decide(arguments: &[&str], wish: Wish) -> anyhow::Result<(Chosen, String)> {
        let compute = Line::parse_from([&["test"], arguments].concat()).compute;
        compute.decide(&Means { cache: Path::new("/nowhere"), wish })
    }

    #[test]
    fn devices_read_as_users_write_them() {
        for (text, wanted) in [
            ("auto", Wanted::Auto),
            ("", Wanted::Auto),
            ("CPU", Wanted::Cpu),
            ("cuda", Wanted::Cuda(vec![])),
            ("cuda:0", Wanted::Cuda(vec![0])),
            ("Cuda:7", Wanted::Cuda(vec![7])),
            ("cuda:2,3", Wanted::Cuda(vec![2, 3])),
        ] {
            assert_eq!(text.parse(), Ok(wanted), "{text}");
        }
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1,", "cuda7", "cpu:0"] {
            assert!(wrong.parse::<Wanted>().unwrap_err().contains("cuda:N"), "{wrong}");
        }
    }

    #[test]
    fn the_cpu_is_taken_without_a_look_at_drivers() {
        let (chosen, why) = decide(&["--device", "cpu", "--threads", "3"], Wish::default()).unwrap();
        assert_eq!((chosen.name().as_str(), why.as_str()), ("the CPU, 3 threads", "--device cpu"));
    }

    #[test]
    fn a_cpu_prepares_for_several_gpus_and_does_not_stand_in_for_them() {
        let wish = Wish { parallel: Some(2), ..Wish::default() };
        assert!(decide(&["--device", "cpu"], wish).is_ok());
        let error = decide(&["--device", "cpu"], Wish { serves: true, ..wish }).unwrap_err().to_string();
        assert!(error.contains("tensorParallel is 2") && error.contains("--device cpu"), "{error}");
        assert!(decide(&["--device", "cpu"], Wish { serves: true, parallel: Some(1), ..wish }).is_ok());
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn as_many_gpus_are_named_as_are_to_share_the_model() {
        let wish = Wish { parallel: Some(2), ..Wish::default() };
        let error = decide(&["--device", "cuda:1"], wish).unwrap_err().to_string();
        assert!(error.contains("tensorParallel is 2, but --device names 1 GPUs"), "{error}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_the_backend_says_so() {
        let (chosen, why) = decide(&["--device", "auto"], Wish::default()).unwrap();
        assert!(matches!(chosen, Chosen::Cpu(_)) && why.contains("no GPU backend"), "{why}");
        let error = decide(&["--device", "cuda"], Wish::default()).unwrap_err().to_string();
        assert!(error.contains("feature `cuda`") && error.contains("--device cpu"), "{error}");
    }
}
