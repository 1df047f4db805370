//! The device that a command computes on: chosen once, and a type from there on.
//!
//! ```text
//! --device, MODELPROFILE_DEVICE ──> Wanted ──> Chosen ──on_device!──> the command, compiled for Cpus and for Gpus
//! ```
#![cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "a build without the backend takes its options, too"))]

mod choice;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use std::path::{Path, PathBuf};

use clap::Args;
#[cfg(feature = "cuda")]
use modelprofile_kernels::cuda::{Cuda, Parallel};
use modelprofile_kernels::{Calibrate, GroupedActivations, cpu::probe::Machine};

pub(super) use choice::Wanted;
pub(super) use cpu::Cpus;
#[cfg(feature = "cuda")]
pub(super) use cuda::Gpus;

/// Options of commands that compute.
#[derive(Debug, Clone, Args)]
pub(super) struct Compute {
    /// Where to compute: auto (the first usable GPU, else the CPU), cpu, cuda, or cuda:N, numbered as `nvidia-smi -L` does. Of a
    /// model that several GPUs share, cuda:N,M names each.
    #[arg(long, value_name = "DEVICE", env = "MODELPROFILE_DEVICE", default_value = "auto")]
    device: Wanted,
    /// Compute threads of the CPU, which quantizes whatever the device is [default: the machine's cores].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Activations of group-wise formats: INT8 (fast; on the CPU only) or BF16 (W4A16) [default: int8 on the CPU, bf16 on a
    /// GPU].
    #[arg(long, value_enum)]
    activations: Option<Activations>,
    /// On a GPU: the same kernels for every number of rows, so that a text does not depend on what else is computed. Slower.
    #[arg(long)]
    deterministic: bool,
    /// Folder of GPU kernels that were compiled beforehand [default: `kernels` beside this program, where it is there].
    #[arg(long, value_name = "DIR", env = "MODELPROFILE_KERNELS")]
    kernels: Option<PathBuf>,
    /// Folders to look for CUDA's libraries in before all others; several with colons.
    #[arg(long, value_name = "DIRS", env = "MODELPROFILE_CUDA_LIBRARIES", value_delimiter = ':')]
    cuda_libraries: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Activations {
    Int8,
    Bf16,
}

/// Devices of one kind, as a command was told to use them. A command drops one before it opens the next: each keeps to a
/// budget of its own and knows nothing of the other's.
pub(super) trait Devices {
    /// What is opened.
    type Device: Calibrate;

    /// Opens the device.
    ///
    /// # Errors
    /// A sentence that says what is missing and what helps.
    fn open(&self) -> anyhow::Result<Self::Device>;

    /// Bytes of memory that weights, cache and workspace may have together; of each, where several share a model.
    ///
    /// # Errors
    /// None was given, and the machine does not tell how much it has.
    fn budget(&self, device: &Self::Device) -> anyhow::Result<u64>;

    /// Bytes of a memory that is the device's own: nothing else could use what an engine leaves of it. `None` for one that
    /// shares the machine's.
    fn own_memory(&self, device: &Self::Device) -> Option<u64>;

    /// What group-wise weights are multiplied with.
    fn activations(&self) -> GroupedActivations;

    /// Threads that quantize, on the CPU.
    fn threads(&self) -> usize;

    /// Bounds of serving that suit the device.
    fn serving(&self) -> Serving;

    /// The device's limits, measured; `None` where nothing here measures them.
    fn limits(&self, device: &Self::Device) -> Option<Machine>;
}

/// Bounds of serving, where the command line names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serving {
    /// Most requests computed at once.
    pub(super) running: usize,
    /// Most tokens of a step.
    pub(super) batched_tokens: usize,
}

/// What a device is wanted for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wish {
    /// Bytes of memory that each may use; `None` leaves it to the device.
    pub(super) budget: Option<u64>,
    /// GPUs that share the model; `None`: as many as `--device` names.
    pub(super) parallel: Option<usize>,
    /// The model is to be served: the CPU does not stand in for several GPUs.
    pub(super) serves: bool,
}

/// What decides about a device beside the options of the command line.
#[derive(Clone, Copy)]
struct Means<'a> {
    /// The worker's cache.
    cache: &'a Path,
    wish: Wish,
}

/// What was chosen.
#[derive(Debug)]
pub(super) enum Chosen {
    Cpu(Cpus),
    #[cfg(feature = "cuda")]
    Cuda(Gpus<Cuda>),
    #[cfg(feature = "cuda")]
    Parallel(Gpus<Parallel>),
}

/// Evaluates an expression with the chosen [`Devices`] under a name: the only place where a command asks which they are.
macro_rules! on_device {
    ($chosen:expr, |$devices:ident| $body:expr) => {
        match &$chosen {
            $crate::commands::device::Chosen::Cpu($devices) => $body,
            #[cfg(feature = "cuda")]
            $crate::commands::device::Chosen::Cuda($devices) => $body,
            #[cfg(feature = "cuda")]
            $crate::commands::device::Chosen::Parallel($devices) => $body,
        }
    };
}
pub(super) use on_device;

impl Compute {
    /// Chooses the device, and logs which and why. `cache` takes what is compiled for it.
    ///
    /// # Errors
    /// A GPU was asked for and cannot be computed on: what is missing, and what helps.
    pub(super) fn choose(&self, cache: &Path, wish: Wish) -> anyhow::Result<Chosen> {
        let (chosen, why) = self.decide(&Means { cache, wish })?;
        tracing::info!("computing on {}: {why}", chosen.name());
        Ok(chosen)
    }

    /// The device that would be chosen, and why, for people.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub(super) fn describe(&self, cache: &Path) -> anyhow::Result<String> {
        let (chosen, why) = self.decide(&Means { cache, wish: Wish::default() })?;
        Ok(format!("{} ({why})", chosen.name()))
    }

    fn cpus(&self, means: &Means<'_>) -> Cpus {
        let activations = match self.activations {
            Some(Activations::Bf16) => GroupedActivations::Bf16,
            Some(Activations::Int8) | None => GroupedActivations::Int8,
        };
        Cpus { threads: self.threads(), activations, budget: means.wish.budget }
    }

    /// Threads of the CPU.
    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get)).max(1)
    }
}

impl Chosen {
    /// The device, for people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Cpu(cpus) => cpus.name(),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.name(),
            #[cfg(feature = "cuda")]
            Self::Parallel(gpus) => gpus.name(),
        }
    }
}
