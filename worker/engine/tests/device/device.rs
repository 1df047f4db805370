//! The device under test, for one test at a time.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use modelprofile_engine::{
    checkpoint::Checkpoint,
    serve::{EngineConfig, EngineHandle, Observer, start},
};
use modelprofile_kernels::{
    GroupedActivations,
    cpu::{Cpu, CpuOptions},
    cuda::{Cuda, CudaOptions},
};

use crate::{
    sim::{self, Sim},
    support::Ignore,
};

static ALONE: Mutex<()> = Mutex::new(());

/// Keeps other tests from the device, until the engines of this one have given it back.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    given_back();
    guard
}

/// Waits until engines that nobody holds any more have given the device back: their threads end some time after the last handle.
pub(crate) fn given_back() {
    let Some(sim) = Sim::find() else { return };
    let deadline = Instant::now() + Duration::from_secs(60);
    while sim.bytes() > 0 {
        assert!(Instant::now() < deadline, "{} bytes are never freed", sim.bytes());
        thread::yield_now();
    }
    sim.calm();
    sim.peak();
}

/// The device, with this many bytes.
pub(crate) fn gpu(budget: u64) -> Cuda {
    Cuda::new(CudaOptions { budget: Some(budget as usize), ..sim::options() }).unwrap()
}

/// The CPU, computing what the device does: group-wise weights with BF16 activations.
pub(crate) fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: 2, isa: None, grouped_activations: GroupedActivations::Bf16 }).unwrap()
}

/// An engine on the device, within the configuration's budget.
pub(crate) fn watched(checkpoint: &Checkpoint, config: &EngineConfig, observer: Box<dyn Observer>) -> EngineHandle {
    start(gpu(config.memory_budget), checkpoint, config, observer, &mut |_, _| {}).unwrap()
}

pub(crate) fn engine(checkpoint: &Checkpoint, config: &EngineConfig) -> EngineHandle {
    watched(checkpoint, config, Box::new(Ignore))
}

/// The same on the CPU.
pub(crate) fn reference(checkpoint: &Checkpoint, config: &EngineConfig) -> EngineHandle {
    start(cpu(), checkpoint, config, Box::new(Ignore), &mut |_, _| {}).unwrap()
}
