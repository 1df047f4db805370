//! The device under test, for one test at a time.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use modelprofile_engine::{
    checkpoint::Checkpoint,
    serve::{EngineConfig, EngineEnd, EngineHandle, Observer, start},
};
use modelprofile_kernels::{
    GroupedActivations,
    cpu::{Cpu, CpuOptions},
    cuda::{Cuda, CudaOptions, Parallel, available},
};

use crate::{
    sim::{self, Sim},
    support::Ignore,
};

/// GPUs that a test shares a model between, at most.
const MOST: usize = 2;

static ALONE: Mutex<()> = Mutex::new(());

/// Engines of the test that runs, and of those before it.
static STARTED: Mutex<Vec<EngineEnd>> = Mutex::new(Vec::new());

/// A test's turn.
pub(crate) struct Alone(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Drop for Alone {
    fn drop(&mut self) {
        // The process may end with the test, and a driver's state with it.
        ended();
    }
}

/// Keeps other tests from the device, until the engines of this one have given it back.
pub(crate) fn alone() -> Alone {
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    given_back();
    Alone(guard)
}

/// Waits for the ends of engines that nobody holds any more.
fn ended() {
    let started = std::mem::take(&mut *STARTED.lock().unwrap_or_else(PoisonError::into_inner));
    // After a failed test one may be held still.
    let limit = if thread::panicking() { Duration::from_secs(1) } else { Duration::from_secs(60) };
    let late = started.iter().filter(|end| !end.wait(limit)).count();
    assert!(late == 0 || thread::panicking(), "{late} engines have not ended");
}

/// An engine whose end is waited for.
pub(crate) fn noted(engine: EngineHandle) -> EngineHandle {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner).push(engine.end());
    engine
}

/// Waits until engines that nobody holds any more have given the device back: their threads end some time after the last handle.
pub(crate) fn given_back() {
    let Some(sim) = Sim::find() else { return ended() };
    let deadline = Instant::now() + Duration::from_secs(60);
    for device in 0..MOST {
        while sim.bytes_of(device) > 0 {
            assert!(Instant::now() < deadline, "{} bytes of GPU {device} are never freed", sim.bytes_of(device));
            thread::yield_now();
        }
        sim.peak_of(device);
    }
    sim.calm();
}

/// The device, with this many bytes.
pub(crate) fn gpu(budget: u64) -> Cuda {
    Cuda::new(CudaOptions { budget: Some(budget as usize), ..sim::options() }).unwrap()
}

/// Whether the machine has so many devices; says so where it has fewer.
pub(crate) fn has(gpus: usize) -> bool {
    let enough = available().unwrap().len() >= gpus;
    if !enough {
        eprintln!("skipped: {gpus} GPUs are needed");
    }
    enough
}

/// The CPU, computing what the device does: group-wise weights with BF16 activations.
pub(crate) fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: 2, isa: None, grouped_activations: GroupedActivations::Bf16 }).unwrap()
}

/// An engine on the device, within the configuration's budget.
pub(crate) fn watched(checkpoint: &Checkpoint, config: &EngineConfig, observer: Box<dyn Observer>) -> EngineHandle {
    noted(start(gpu(config.memory_budget), checkpoint, config, observer, &mut |_, _| {}).unwrap())
}

pub(crate) fn engine(checkpoint: &Checkpoint, config: &EngineConfig) -> EngineHandle {
    watched(checkpoint, config, Box::new(Ignore))
}

/// An engine on so many devices that share the model, each within the configuration's budget.
pub(crate) fn watched_on(
    gpus: usize,
    checkpoint: &Checkpoint,
    config: &EngineConfig,
    observer: Box<dyn Observer>,
) -> EngineHandle {
    if gpus == 1 {
        return watched(checkpoint, config, observer);
    }
    assert!(gpus <= MOST, "more GPUs than are waited for");
    let budget = Some(config.memory_budget as usize);
    let options: Vec<_> = (0..gpus).map(|ordinal| CudaOptions { ordinal, budget, ..sim::options() }).collect();
    let parallel = Parallel::new(&options).unwrap();
    noted(start(parallel, checkpoint, config, observer, &mut |_, _| {}).unwrap())
}

pub(crate) fn engine_on(gpus: usize, checkpoint: &Checkpoint, config: &EngineConfig) -> EngineHandle {
    watched_on(gpus, checkpoint, config, Box::new(Ignore))
}

/// The same on the CPU.
pub(crate) fn reference(checkpoint: &Checkpoint, config: &EngineConfig) -> EngineHandle {
    start(cpu(), checkpoint, config, Box::new(Ignore), &mut |_, _| {}).unwrap()
}
