//! A [`Cuda`] as one of several devices that compute one model together.

use std::sync::Arc;

use super::{
    Cuda,
    content::CudaBuffer,
    device::peers_of,
    graph::{Command, Queue},
    kernels::Side,
    launch::rows::Vocabulary,
    operations::{self, fits, number, read, write},
    parallel::Member,
    physical::Physical,
    step::CudaStep,
    weights::CudaWeight,
};
use crate::{HostWeight, Result};

impl Cuda {
    /// Takes a place in a group of these devices.
    ///
    /// NCCL writes into the buffers of other devices of the same process where it can, and memory that is mapped as ours is
    /// belongs to its own device alone unless it says otherwise.
    pub(super) fn join(&self, member: Member, ordinals: &[usize]) -> Result<()> {
        self.arena.share(&peers_of(self.info().ordinal, ordinals)?)?;
        self.shared.queue(|queue| queue.machine.member = Some(member));
        Ok(())
    }

    /// The group begins a step, which this device has begun just now.
    pub(super) fn begin_together(&self, step: u64) {
        self.shared.queue(|queue| {
            if let Some(member) = &mut queue.machine.member {
                member.begin(step);
            }
        });
    }

    /// Sums the first rows of a buffer over the group's devices, in place: all do it with as many rows and columns.
    pub(super) fn all_reduce(&self, buffer: &CudaBuffer, rows: usize) -> Result<()> {
        fits("what is summed over the GPUs", buffer, rows, buffer.width)?;
        let count = rows * buffer.width;
        if count == 0 {
            return Ok(());
        }
        read(self, buffer)?;
        write(self, buffer)?;
        self.submit(Command::AllReduce { at: buffer.at().address(), count })
    }

    /// Rows of an embedding of which this device has the tokens from `first` on, of `all` in the vocabulary; zeros for others.
    pub(super) fn embed_part(
        &mut self,
        step: &CudaStep,
        table: &CudaWeight,
        first: usize,
        all: usize,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        let vocabulary = Vocabulary { tokens: number(table.spec().n), first: number(first), missing: 0.0 };
        operations::embed(self, step, table, (vocabulary, number(all)), out)
    }

    /// A weight from its rows.
    pub(super) fn weight_of(&self, rows: &HostWeight) -> Result<CudaWeight> {
        let spec = rows.spec();
        spec.validate()?;
        Side::new("a weight", spec.k)?;
        self.weights.weight_of(rows)
    }

    /// Hands all work over; a recorded step is at its end.
    pub(super) fn flush(&self) -> Result<()> {
        self.shared.flush()
    }

    /// True when the device takes no work any more: its context is lost.
    pub(super) fn is_lost(&self) -> bool {
        self.shared.gpu.compute.is_lost()
    }

    /// Waits for all work and forgets recorded steps.
    pub(super) fn forget_steps(&self) -> Result<()> {
        self.shared.finish()?;
        self.shared.queue(Queue::forget);
        Ok(())
    }

    /// The device's memory.
    pub(super) fn physical(&self) -> Arc<Physical> {
        self.physical.clone()
    }
}
