//! A device's physical memory: chunks of one size, created up to a budget and kept for the next use.

use std::sync::{Arc, Mutex};

use cudarc::driver::sys;

use super::{
    driver::{Context, check},
    memory::lock,
};
use crate::{KernelError, Result};

/// Chunks of a budget, at least, where they are larger than the driver's granularity. What rounding to chunks loses is a share
/// of the budget, some thirteen chunks of so many (see `reserve`).
const CHUNKS: usize = 2048;

/// The largest chunk. Mapping one, allowing access and unmapping it take the driver some 55 microseconds whatever its size
/// (H100, driver 580: 3, 31 and 20 of 2 MiB; 2, 28 and 16 of 32 MiB), in which 2.8 MB come over PCIe: in chunks of 2 MiB a switch
/// would wait for the driver, not for the copies.
const LARGEST_CHUNK: usize = 32 << 20;

/// Bytes of a chunk for a budget: a power of two times the driver's granularity, which is one itself.
fn chunk_size(granularity: usize, budget: usize) -> usize {
    let mut chunk = granularity;
    while chunk * 2 <= LARGEST_CHUNK && budget / (chunk * 2) >= CHUNKS {
        chunk *= 2;
    }
    chunk
}

/// Physical memory, one chunk of it.
pub(super) type Chunk = sys::CUmemGenericAllocationHandle;

/// The device's physical memory within a budget.
#[derive(Debug)]
pub struct Physical {
    context: Arc<Context>,
    properties: Properties,
    chunk: usize,
    budget: usize,
    state: Mutex<Chunks>,
}

#[derive(Clone, Copy, Debug)]
struct Properties(sys::CUmemAllocationProp);
// SAFETY: plain numbers; its one pointer is null.
unsafe impl Send for Properties {}
// SAFETY: as above.
unsafe impl Sync for Properties {}

#[derive(Debug, Default)]
struct Chunks {
    /// Chunks that exist.
    created: usize,
    /// Those of them that no region holds.
    free: Vec<Chunk>,
}

impl Physical {
    /// Nothing yet; at most `budget` bytes ever.
    pub(super) fn new(context: &Arc<Context>, budget: usize) -> Result<Arc<Self>> {
        context.bind()?;
        // SAFETY: a C structure of numbers and a pointer: all zeros is a value of it.
        let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
        properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        properties.location.id = context.device();
        let recommended = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED;
        let mut chunk = 0;
        // SAFETY: a place to write, properties that live for the call.
        let asked = unsafe { sys::cuMemGetAllocationGranularity(&raw mut chunk, &raw const properties, recommended) };
        check("cuMemGetAllocationGranularity", asked)?;
        if !chunk.is_power_of_two() || chunk < 4096 {
            return Err(KernelError::Device(format!("a granularity of {chunk} bytes is no page size")));
        }
        Ok(Arc::new(Self {
            context: context.clone(),
            properties: Properties(properties),
            chunk: chunk_size(chunk, budget),
            budget,
            state: Mutex::default(),
        }))
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk
    }

    /// The device's context.
    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// Where the chunks are.
    pub(super) fn location(&self) -> sys::CUmemLocation {
        self.properties.0.location
    }

    /// Most bytes that may exist.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Bytes that regions hold.
    pub fn used(&self) -> usize {
        let state = lock(&self.state);
        (state.created - state.free.len()) * self.chunk
    }

    /// Bytes that exist, held or kept for the next use.
    pub fn created(&self) -> usize {
        lock(&self.state).created * self.chunk
    }

    /// A chunk that nobody holds, or a new one.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`] where the budget has none left; the driver's.
    pub(super) fn take(&self) -> Result<Chunk> {
        let mut state = lock(&self.state);
        if let Some(chunk) = state.free.pop() {
            return Ok(chunk);
        }
        if (state.created + 1) * self.chunk > self.budget {
            return Err(KernelError::OutOfMemory(format!(
                "the GPU's budget of {} bytes is in use; weights, cache and buffers must fit it together",
                self.budget
            )));
        }
        let mut chunk = 0;
        // SAFETY: a place to write, properties that live for the call.
        let made = unsafe { sys::cuMemCreate(&raw mut chunk, self.chunk, &raw const self.properties.0, 0) };
        check("cuMemCreate", made)?;
        state.created += 1;
        Ok(chunk)
    }

    /// Takes a chunk back, for the next use.
    pub(super) fn give(&self, chunk: Chunk) {
        lock(&self.state).free.push(chunk);
    }
}

impl Drop for Physical {
    fn drop(&mut self) {
        self.context.bind_if_possible();
        for chunk in lock(&self.state).free.drain(..) {
            // SAFETY: ours, mapped nowhere.
            unsafe { sys::cuMemRelease(chunk) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_large_where_the_budget_is() {
        const GIB: usize = 1 << 30;
        let mib = |budget| chunk_size(2 << 20, budget) >> 20;
        assert_eq!(
            [GIB / 4, 4 * GIB, 8 * GIB - 1, 8 * GIB, 24 * GIB, 72 * GIB, 180 * GIB].map(mib),
            [2, 2, 2, 4, 8, 32, 32]
        );
        // A device with larger pages keeps them.
        assert_eq!(chunk_size(64 << 20, GIB), 64 << 20);
    }
}
