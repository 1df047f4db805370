//! A GPU.

use std::path::PathBuf;

use modelprofile_kernels::{
    GroupedActivations,
    cpu::probe::Machine,
    cuda::{self, Cuda, CudaOptions, DeviceInfo},
};

use super::{Compute, Devices, Means, Serving};

/// Folder of compiled kernels, in the cache, and beside the program.
const KERNELS: &str = "kernels";

/// One GPU, as the command line wants it.
#[derive(Clone, Debug)]
pub(in crate::commands) struct Gpus {
    info: DeviceInfo,
    options: CudaOptions,
    threads: usize,
}

impl Gpus {
    /// The GPU of a number, if it can be computed on.
    ///
    /// # Errors
    /// What is missing, and what helps.
    pub(super) fn find(compute: &Compute, means: &Means<'_>, ordinal: usize) -> modelprofile_kernels::Result<Self> {
        let options = CudaOptions {
            ordinal,
            // A budget that no address can hold is refused as one beyond the device.
            budget: means.budget.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            cache: Some(means.cache.join(KERNELS)),
            shipped: compute.kernels.clone().or_else(beside_the_program),
            deterministic: compute.deterministic,
            on_note: |sentence| tracing::warn!("{sentence}"),
            ..CudaOptions::default()
        };
        Ok(Self { info: cuda::usable(&options)?, options, threads: compute.threads() })
    }

    pub(super) fn name(&self) -> String {
        format!("{} (cuda:{})", self.info.name, self.info.ordinal)
    }
}

/// Kernels that were installed with the program.
fn beside_the_program() -> Option<PathBuf> {
    let folder = std::env::current_exe().ok()?.parent()?.join(KERNELS);
    folder.is_dir().then_some(folder)
}

impl Devices for Gpus {
    type Device = Cuda;

    fn open(&self) -> anyhow::Result<Cuda> {
        Ok(Cuda::new(self.options.clone())?)
    }

    /// What the device keeps to: the budget that was given, else most of what was free when it was opened.
    fn budget(&self, gpu: &Cuda) -> anyhow::Result<u64> {
        Ok(gpu.memory().budget() as u64)
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

    fn limits(&self, _: &Cuda) -> Option<Machine> {
        None
    }
}
