//! What everything of one device shares: the opened device and the queue of its work.

use std::sync::Mutex;

use super::{device::Gpu, graph::Queue, memory::lock};
use crate::Result;

/// A device and its queue.
pub(super) struct Shared {
    /// Dropped first: what it holds is of the device.
    queue: Mutex<Queue>,
    pub(super) gpu: Gpu,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({})", self.gpu.info.name)
    }
}

impl Shared {
    pub(super) fn new(gpu: Gpu, queue: Queue) -> Self {
        Self { queue: Mutex::new(queue), gpu }
    }

    /// Does something with the queue.
    pub(super) fn queue<T>(&self, work: impl FnOnce(&mut Queue) -> T) -> T {
        work(&mut lock(&self.queue))
    }

    /// Everything up to now is on the stream afterwards: an event recorded then is behind it.
    pub(super) fn flush(&self) -> Result<()> {
        self.gpu.context.bind()?;
        self.queue(Queue::flush)
    }

    /// Everything up to now is done afterwards.
    pub(super) fn finish(&self) -> Result<()> {
        let flushed = self.flush();
        // What was submitted runs on even where something could not be.
        let done = self.gpu.compute.synchronize();
        flushed.and(done)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.finish();
        let _ = self.gpu.copies.synchronize();
    }
}
