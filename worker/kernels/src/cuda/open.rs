//! [`Cuda`]: a GPU that was opened, with its memory and its queue.

use std::sync::{Arc, Mutex};

use super::{
    compile::{Images, Origin},
    content::CudaBuffer,
    cublaslt::Lt,
    device::{CudaOptions, DeviceInfo, Gpu, driver_version},
    driver::Address,
    graph::{Command, Machine, Queue},
    kernels::{Kernels, UnitName},
    memory::{Arena, Block, lock},
    physical::Physical,
    present::Present,
    scratch::{Scratch, Slot},
    shared::Shared,
    staging::Staging,
    weights::WeightSpace,
};
use crate::{KernelError, Result};

/// Part of the free memory that a device takes when it is not told how much, in percent: the driver's own structures and
/// graphs need some.
const BUDGET_PERCENT: usize = 92;

/// A GPU as a device.
///
/// Group-wise weights are multiplied with BF16 activations (W4A16): there is no product with INT8 ones here.
pub struct Cuda {
    pub(super) options: CudaOptions,
    state: Mutex<State>,
    pub(super) weights: Arc<WeightSpace>,
    pub(super) arena: Arc<Arena>,
    pub(super) physical: Arc<Physical>,
    /// Dropped last: waits for the work.
    pub(super) shared: Arc<Shared>,
}

/// What changes.
#[derive(Default)]
struct State {
    present: Present,
    scratch: Scratch,
    staging: Staging,
    next_buffer: u64,
}

impl Cuda {
    /// Opens a device, finds or compiles its kernels and reserves its memory's addresses.
    ///
    /// # Errors
    /// [`KernelError::Device`] with a sentence that says what is missing or refused and what helps;
    /// [`KernelError::OutOfMemory`] when the budget does not even hold the workspace.
    pub fn new(options: CudaOptions) -> Result<Self> {
        let gpu = Gpu::open(&options)?;
        gpu.compute.overlap(options.overlap);
        let (free, _) = gpu.context.free_and_total()?;
        let budget = options.budget.unwrap_or(free / 100 * BUDGET_PERCENT);
        if budget > free {
            return Err(KernelError::OutOfMemory(format!(
                "a budget of {budget} bytes, but {free} are free on {}; lower it or end what else runs there",
                gpu.info.name
            )));
        }
        let physical = Physical::new(&gpu.context, budget)?;
        let arena = Arena::new(&physical, budget)?;
        let kernels = Kernels::new(&gpu.context, Images::of(&options), gpu.info.capability, driver_version()?);
        for unit in [UnitName::rows, UnitName::rotary, UnitName::linear, UnitName::sample] {
            kernels.need(unit)?;
        }
        let mut notes = Vec::new();
        let lt = match Lt::load() {
            Ok(()) => Some(Lt::new(arena.block(options.matmul_workspace)?)?),
            Err(why) => {
                notes.push(format!("own kernels compute all products, slower for many rows: {why}"));
                None
            }
        };
        let mut queue = Queue::new(Machine { stream: gpu.compute.clone(), kernels, lt, member: None }, options.on_note);
        for note in notes {
            queue.note(note);
        }
        let shared = Arc::new(Shared::new(gpu, queue));
        let weights = WeightSpace::new(&physical, &shared);
        Ok(Self { options, state: Mutex::default(), weights, arena, physical, shared })
    }

    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.shared.gpu.info
    }

    /// Where the units of kernels that were needed up to now came from.
    pub fn kernel_origins(&self) -> Vec<(&'static str, Origin)> {
        self.shared.queue(|queue| queue.machine.kernels.origins())
    }

    /// Physical memory of this device: budget, use.
    pub fn memory(&self) -> &Physical {
        &self.physical
    }

    /// Sentences for the log that came up since the last call, each once: what runs slower than it could, and why.
    pub fn take_notes(&self) -> Vec<String> {
        self.shared.queue(Queue::take_notes)
    }

    /// Decode steps that ran as a recorded graph.
    pub fn replays(&self) -> u64 {
        self.shared.queue(|queue| queue.replays())
    }

    /// Does something that needs memory; when the budget is in use, once more after all that can be given back was.
    pub(super) fn with_room<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        match work() {
            Err(KernelError::OutOfMemory(_)) => {
                self.shared.finish()?;
                self.weights.settle_all()?;
                self.arena.trim()?;
                work()
            }
            done => done,
        }
    }

    /// Hands a command to the queue.
    pub(super) fn submit(&self, command: Command) -> Result<()> {
        self.shared.gpu.context.bind()?;
        self.shared.queue(|queue| queue.submit(command))
    }

    /// Does something with the present step.
    pub(super) fn present<T>(&self, work: impl FnOnce(&mut Present) -> T) -> T {
        work(&mut lock(&self.state).present)
    }

    /// Scratch of at least so many bytes.
    pub(super) fn scratch(&self, slot: Slot, bytes: usize) -> Result<Address> {
        Ok(self.scratch_block(slot, bytes)?.address())
    }

    /// Host bytes in scratch, behind all work up to now.
    pub(super) fn send(&self, slot: Slot, bytes: &[u8]) -> Result<Address> {
        let place = self.scratch_block(slot, bytes.len())?;
        self.copy_in(bytes, &place)?;
        Ok(place.address())
    }

    fn scratch_block(&self, slot: Slot, bytes: usize) -> Result<Arc<Block>> {
        {
            let mut state = lock(&self.state);
            if let Some(block) = state.scratch.get(slot, bytes) {
                return Ok(block.clone());
            }
            state.scratch.clear(slot);
        }
        let block = Arc::new(self.with_room(|| self.arena.block(Scratch::size(bytes)))?);
        lock(&self.state).scratch.set(slot, block.clone());
        Ok(block)
    }

    /// Memory of the device, whose content is whatever was there.
    pub(super) fn block(&self, bytes: usize) -> Result<Block> {
        self.with_room(|| self.arena.block(bytes))
    }

    /// A buffer of whatever was there.
    pub(super) fn new_buffer(&self, rows: usize, width: usize) -> Result<CudaBuffer> {
        let bytes = rows.checked_mul(width).and_then(|count| count.checked_mul(size_of::<f32>()));
        let bytes = bytes.ok_or_else(|| KernelError::OutOfMemory(format!("a buffer of {rows} x {width}")))?;
        let block = Arc::new(self.block(bytes)?);
        let mut state = lock(&self.state);
        state.next_buffer += 1;
        Ok(CudaBuffer { id: state.next_buffer, block, rows, width })
    }

    /// Copies host bytes to a block, behind all work up to now.
    pub(super) fn copy_in(&self, bytes: &[u8], to: &Block) -> Result<()> {
        self.shared.flush()?;
        lock(&self.state).staging.upload(&self.shared.gpu.compute, bytes, to.address())
    }

    /// Copies a range to the host, behind all work up to now, and waits for it; the range is the caller's.
    pub(super) fn copy_out(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        self.shared.flush()?;
        let stream = &self.shared.gpu.compute;
        if bytes.is_empty() {
            return stream.synchronize();
        }
        // SAFETY: the slice outlives the copy, which is waited for below whatever it says; the caller has the range.
        let copied = unsafe { stream.download(bytes.as_mut_ptr(), from, bytes.len()) };
        copied.and(stream.synchronize())
    }

    /// Notes what failed, where nobody waits for it.
    pub(super) fn note(&self, what: &str, done: Result<()>) {
        if let Err(error) = done {
            self.shared.queue(|queue| queue.note(format!("{what}: {error}")));
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Memory of regions is taken below while nothing runs.
        let _ = self.shared.finish();
    }
}
