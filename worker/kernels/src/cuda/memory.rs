//! Device memory: address ranges that never move, physical chunks mapped into them, and a budget that holds.
//!
//! ```text
//! Physical  chunks of one size (2 to 32 MiB, by the budget), created up to the budget, reused by all regions
//!   Region  a reserved address range, chunk by chunk with or without memory
//!     Arena   a region cut into buffers: norm gains, activations, scratch
//!     kv      a region whose lower end is mapped
//!     weights regions whose chunks are mapped while a weight in them is resident
//! ```
//!
//! An address that a captured graph holds stays right for as long as its region lives: memory comes and goes below it.
//! Chunks are reused rather than given back to the driver, because creating one costs as much as copying one: a switch
//! of profiles moves the chunks of one profile's weights below the other's. The driver sees the most that was ever used.
//!
//! # Guarantees
//! Bytes of all chunks that exist are at most the budget, at every instant; so are the mapped ones.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cudarc::driver::sys;

use super::{
    driver::{Address, check},
    physical::{Chunk, Physical},
};
use crate::{KernelError, Result};

/// Buffers start at multiples of this: what the widest loads and cuBLASLt want.
pub(super) const ALIGNMENT: usize = 256;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reserved range of addresses, with memory below some of its chunks.
#[derive(Debug)]
pub(super) struct Region {
    physical: Arc<Physical>,
    base: Address,
    chunks: Vec<Option<Chunk>>,
    /// Other devices that may read and write it.
    peers: Vec<sys::CUdevice>,
}

impl Region {
    /// Reserves addresses for at least `bytes` bytes, without memory.
    pub(super) fn reserve(physical: &Arc<Physical>, bytes: usize) -> Result<Self> {
        physical.context().bind()?;
        let count = bytes.div_ceil(physical.chunk_bytes()).max(1);
        let too_large = || KernelError::OutOfMemory(format!("{bytes} bytes of the GPU's addresses"));
        let size = count.checked_mul(physical.chunk_bytes()).ok_or_else(too_large)?;
        let mut base = 0;
        // SAFETY: a place to write.
        let reserved = unsafe { sys::cuMemAddressReserve(&raw mut base, size, physical.chunk_bytes(), 0, 0) };
        check("cuMemAddressReserve", reserved)?;
        Ok(Self { physical: physical.clone(), base, chunks: vec![None; count], peers: Vec::new() })
    }

    /// Its first address.
    pub(super) fn base(&self) -> Address {
        self.base
    }

    /// Chunks of the range, mapped or not.
    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes with memory.
    pub(super) fn mapped_bytes(&self) -> usize {
        self.chunks.iter().flatten().count() * self.physical.chunk_bytes()
    }

    /// The chunks that hold a range of bytes.
    pub(super) fn chunks_of(&self, bytes: Range<usize>) -> Range<usize> {
        let chunk = self.physical.chunk_bytes();
        if bytes.is_empty() { 0..0 } else { bytes.start / chunk..bytes.end.div_ceil(chunk) }
    }

    /// Puts memory below the chunks of a range that have none: all of them, or on an error none.
    pub(super) fn map(&mut self, range: Range<usize>) -> Result<()> {
        self.physical.context().bind()?;
        if range.end > self.chunks.len() {
            return Err(KernelError::OutOfMemory(format!(
                "chunk {} of a range of {}: the addresses are used up",
                range.end,
                self.chunks.len()
            )));
        }
        let missing: Vec<usize> = range.filter(|index| self.chunks[*index].is_none()).collect();
        for (done, index) in missing.iter().enumerate() {
            if let Err(error) = self.map_one(*index) {
                self.unmap_all(&missing[..done]);
                return Err(error);
            }
        }
        // One call for each run of chunks: it costs more than a mapping.
        for run in missing.chunk_by(|a, b| a + 1 == *b) {
            if let Err(error) = self.allow(run[0], run.len()) {
                self.unmap_all(&missing);
                return Err(error);
            }
        }
        Ok(())
    }

    fn map_one(&mut self, index: usize) -> Result<()> {
        let chunk = self.physical.take()?;
        let size = self.physical.chunk_bytes();
        // SAFETY: inside the reservation, where nothing is mapped.
        let mapped = unsafe { sys::cuMemMap(self.address(index), size, 0, chunk, 0) };
        if let Err(error) = check("cuMemMap", mapped) {
            self.physical.give(chunk);
            return Err(error);
        }
        self.chunks[index] = Some(chunk);
        Ok(())
    }

    /// Lets other devices read and write it, too, now and whenever memory is mapped.
    fn share(&mut self, peers: &[sys::CUdevice]) -> Result<()> {
        self.physical.context().bind()?;
        self.peers = peers.to_vec();
        let mapped: Vec<usize> = (0..self.chunks.len()).filter(|index| self.chunks[*index].is_some()).collect();
        mapped.chunk_by(|a, b| a + 1 == *b).try_for_each(|run| self.allow(run[0], run.len()))
    }

    fn allow(&self, first: usize, count: usize) -> Result<()> {
        let own = self.physical.location();
        let of = |device| sys::CUmemLocation { id: device, ..own };
        let access: Vec<_> = std::iter::once(own)
            .chain(self.peers.iter().map(|peer| of(*peer)))
            .map(|location| sys::CUmemAccessDesc {
                location,
                flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
            })
            .collect();
        let size = count * self.physical.chunk_bytes();
        // SAFETY: mapped just now, or by the caller's word; as many descriptions as are told.
        let set = unsafe { sys::cuMemSetAccess(self.address(first), size, access.as_ptr(), access.len()) };
        check("cuMemSetAccess", set)
    }

    /// Takes the memory below the chunks of a range; what it held is lost. No work that uses it may be unfinished.
    ///
    /// # Errors
    /// The driver's; chunks that it would not unmap stay mapped and counted.
    pub(super) fn unmap(&mut self, range: Range<usize>) -> Result<()> {
        self.physical.context().bind()?;
        let size = self.physical.chunk_bytes();
        for index in range {
            let Some(chunk) = self.chunks[index] else { continue };
            // SAFETY: mapped, and unused by the caller's promise.
            check("cuMemUnmap", unsafe { sys::cuMemUnmap(self.address(index), size) })?;
            self.chunks[index] = None;
            self.physical.give(chunk);
        }
        Ok(())
    }

    /// Undoes a failed mapping as far as the driver lets it.
    fn unmap_all(&mut self, chunks: &[usize]) {
        for index in chunks {
            let _ = self.unmap(*index..*index + 1);
        }
    }

    fn address(&self, index: usize) -> Address {
        self.base + (index * self.physical.chunk_bytes()) as Address
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let all: Vec<usize> = (0..self.chunks.len()).collect();
        self.unmap_all(&all);
        let size = self.chunks.len() * self.physical.chunk_bytes();
        // SAFETY: ours, and nothing is mapped in it.
        unsafe { sys::cuMemAddressFree(self.base, size) };
    }
}

/// A region cut into blocks: first fit, neighbours joined again when freed.
///
/// Blocks are used by work of one stream only. So a freed block may be handed out at once: what still uses it comes
/// before what its next owner submits.
#[derive(Debug)]
pub(super) struct Arena {
    state: Mutex<Space>,
}

#[derive(Debug)]
struct Space {
    region: Region,
    /// Free ranges below `end`, by offset.
    free: BTreeMap<usize, usize>,
    /// Where untouched addresses begin.
    end: usize,
    /// Chunks from the start that have memory.
    mapped: usize,
}

/// A part of an arena; frees itself.
#[derive(Debug)]
pub(super) struct Block {
    arena: Arc<Arena>,
    offset: usize,
    len: usize,
    address: Address,
}

impl Arena {
    /// An arena that can grow to `bytes` bytes.
    pub(super) fn new(physical: &Arc<Physical>, bytes: usize) -> Result<Arc<Self>> {
        let region = Region::reserve(physical, bytes)?;
        Ok(Arc::new(Self { state: Mutex::new(Space { region, free: BTreeMap::new(), end: 0, mapped: 0 }) }))
    }

    /// Lets other devices read and write all blocks.
    pub(super) fn share(&self, peers: &[sys::CUdevice]) -> Result<()> {
        lock(&self.state).region.share(peers)
    }

    /// `bytes` bytes, whose content is whatever was there.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`] when budget or addresses are used up.
    pub(super) fn block(self: &Arc<Self>, bytes: usize) -> Result<Block> {
        let len = bytes.max(1).checked_next_multiple_of(ALIGNMENT);
        let len = len.ok_or_else(|| KernelError::OutOfMemory(format!("a buffer of {bytes} bytes")))?;
        let mut space = lock(&self.state);
        let offset = space.place(len)?;
        Ok(Block { arena: self.clone(), offset, len, address: space.region.base() + offset as Address })
    }

    /// Takes the memory above the last block. Nothing of it may be in use by unfinished work.
    pub(super) fn trim(&self) -> Result<()> {
        let mut space = lock(&self.state);
        if let Some((&offset, &len)) = space.free.last_key_value()
            && offset + len == space.end
        {
            space.free.remove(&offset);
            space.end = offset;
        }
        let (keep, mapped) = (space.region.chunks_of(0..space.end).end, space.mapped);
        if keep < mapped {
            space.region.unmap(keep..mapped)?;
            space.mapped = keep;
        }
        Ok(())
    }
}

impl Space {
    fn place(&mut self, len: usize) -> Result<usize> {
        if let Some((&offset, &room)) = self.free.iter().find(|(_, room)| **room >= len) {
            self.free.remove(&offset);
            if room > len {
                self.free.insert(offset + len, room - len);
            }
            return Ok(offset);
        }
        // A free range at the end is the start of what is new.
        let tail = self.free.last_key_value().filter(|(offset, room)| *offset + *room == self.end);
        let offset = tail.map_or(self.end, |(offset, _)| *offset);
        let chunks = self.region.chunks_of(0..offset + len).end;
        if chunks > self.mapped {
            self.region.map(self.mapped..chunks)?;
            self.mapped = chunks;
        }
        self.free.remove(&offset);
        self.end = offset + len;
        Ok(offset)
    }

    fn free(&mut self, mut offset: usize, mut len: usize) {
        if let Some(after) = self.free.remove(&(offset + len)) {
            len += after;
        }
        if let Some((&before, &room)) = self.free.range(..offset).next_back()
            && before + room == offset
        {
            (offset, len) = (before, room + len);
        }
        self.free.insert(offset, len);
    }
}

impl Block {
    /// Its first address, a multiple of 256.
    pub(super) fn address(&self) -> Address {
        self.address
    }

    /// Its bytes, a multiple of 256.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        lock(&self.arena.state).free(self.offset, self.len);
    }
}
