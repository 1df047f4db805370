//! GPUs: one, or several that compute one model together.

use std::{fmt, marker::PhantomData, path::PathBuf};

use modelprofile_kernels::{
    Calibrate, GroupedActivations,
    cpu::probe::Machine,
    cuda::{self, Cuda, CudaOptions, DeviceInfo, Parallel},
};

use super::{Compute, Devices, Means, Serving};

/// Folder of compiled kernels, in the cache, and beside the program.
const KERNELS: &str = "kernels";

/// GPUs, as the command line wants them.
pub(in crate::commands) struct Gpus<B> {
    infos: Vec<DeviceInfo>,
    options: Vec<CudaOptions>,
    threads: usize,
    device: PhantomData<fn() -> B>,
}

impl<B> fmt::Debug for Gpus<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpus").field("infos", &self.infos).field("options", &self.options).finish_non_exhaustive()
    }
}

/// What GPUs are opened as.
pub(in crate::commands) trait Opened: Calibrate + Sized {
    /// Opens them, in the order of their parts of the model.
    fn open(options: &[CudaOptions]) -> modelprofile_kernels::Result<Self>;
    /// Bytes that each has.
    fn budget(&self) -> usize;
}

impl Opened for Cuda {
    fn open(options: &[CudaOptions]) -> modelprofile_kernels::Result<Self> {
        Self::new(options.first().cloned().unwrap_or_default())
    }

    fn budget(&self) -> usize {
        self.memory().budget()
    }
}

impl Opened for Parallel {
    fn open(options: &[CudaOptions]) -> modelprofile_kernels::Result<Self> {
        Self::new(options)
    }

    fn budget(&self) -> usize {
        Self::budget(self)
    }
}

impl<B> Gpus<B> {
    /// The GPUs of these numbers, if they can be computed on.
    ///
    /// # Errors
    /// What is missing, and what helps.
    pub(super) fn find(compute: &Compute, means: &Means<'_>, ordinals: &[usize]) -> modelprofile_kernels::Result<Self> {
        let options = |ordinal: usize| CudaOptions {
            ordinal,
            // A budget that no address can hold is refused as one beyond the device.
            budget: means.wish.budget.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            cache: Some(means.cache.join(KERNELS)),
            shipped: compute.kernels.clone().or_else(beside_the_program),
            deterministic: compute.deterministic,
            on_note: |sentence| tracing::warn!("{sentence}"),
            ..CudaOptions::default()
        };
        let options: Vec<CudaOptions> = ordinals.iter().copied().map(options).collect();
        let infos = options.iter().map(cuda::usable).collect::<modelprofile_kernels::Result<_>>()?;
        Ok(Self { infos, options, threads: compute.threads(), device: PhantomData })
    }

    pub(super) fn name(&self) -> String {
        let names = self.infos.iter().map(|info| format!("{} (cuda:{})", info.name, info.ordinal));
        names.collect::<Vec<_>>().join(" and ")
    }
}

/// Kernels that were installed with the program.
fn beside_the_program() -> Option<PathBuf> {
    let folder = std::env::current_exe().ok()?.parent()?.join(KERNELS);
    folder.is_dir().then_some(folder)
}

impl<B: Opened> Devices for Gpus<B> {
    type Device = B;

    fn open(&self) -> anyhow::Result<B> {
        Ok(B::open(&self.options)?)
    }

    /// What each device keeps to: the budget that was given, else most of what was free when it was opened. The engine's plan
    /// takes off what the device needs for itself.
    fn budget(&self, gpu: &B) -> anyhow::Result<u64> {
        Ok(gpu.budget() as u64)
    }

    fn own_memory(&self, gpu: &B) -> Option<u64> {
        Some(gpu.budget() as u64)
    }

    /// Four-bit codes are unpacked to BF16 (W4A16): a GPU has no use for integer products of groups.
    fn activations(&self) -> GroupedActivations {
        GroupedActivations::Bf16
    }

    fn threads(&self) -> usize {
        self.threads
    }

    /// A step reads all weights once, whatever its rows: on an H100 the products of FP8 weights take longer than that from
    /// some 600 rows on (modelled: 1979 TFLOP/s by 3.35 TB/s), so prompts are cut into steps of a few times that. Decodes are
    /// far below it, so that more of them at once cost little but cache, and the cache bounds them by itself.
    fn serving(&self) -> Serving {
        Serving { running: 256, batched_tokens: 2048 }
    }

    fn limits(&self, _: &B) -> Option<Machine> {
        None
    }
}
