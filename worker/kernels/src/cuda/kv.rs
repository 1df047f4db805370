//! The paged KV pool: a region whose lower end is mapped, so that blocks never move while the pool grows and shrinks.
//!
//! ```text
//! block = layers x (K | V);  K, V = [kv head][16 tokens][head_dim]
//! ```
//!
//! Inside a head tokens lie one after the other, K as V: rows of 16-byte loads, and what tensor-core fragments are
//! loaded from.
//!
//! # Blocks and chunks
//! A block has [`KvLayout::block_bytes`], a multiple of 4 KiB; memory comes in chunks of 2 MiB. `n` blocks take
//! `ceil(n block_bytes / chunk)` chunks from the lower end: a block may lie across two chunks, and the last chunk may
//! reach beyond the last block. This slack, less than one chunk in all, counts against the budget.
//!
//! # Growing
//! A grown pool takes what memory the budget has now and the rest when a step first stores into it: at a switch to
//! smaller weights the pool grows before the larger ones have left, as the engine hands out blocks only later.

use std::sync::Arc;

use super::{
    driver::Address,
    executor::Paged,
    launch::Pool,
    memory::{Arena, Block, Region},
    physical::Physical,
    shared::Shared,
};
use crate::{BLOCK_TOKENS, BlockMove, KernelError, KvLayout, KvScales, Result};

/// A pool of KV blocks on the device.
#[derive(Debug)]
pub struct CudaKv {
    region: Region,
    /// Chunks from the start that have memory.
    mapped: usize,
    blocks: usize,
    max_blocks: usize,
    pub(super) layout: KvLayout,
    /// Scales `[layers * kv_heads]` of K, then as many of V.
    scales: Block,
    shared: Arc<Shared>,
}

impl CudaKv {
    /// Reserves addresses for `max_blocks`, with memory for `blocks`.
    pub(super) fn new(
        physical: &Arc<Physical>,
        arena: &Arc<Arena>,
        shared: &Arc<Shared>,
        layout: KvLayout,
        scales: &KvScales,
        blocks: usize,
        max_blocks: usize,
    ) -> Result<Self> {
        let heads = layout.layers * layout.kv_heads;
        if scales.k.len() != heads || scales.v.len() != heads {
            return Err(KernelError::Shape(format!("the KV scales are not for {heads} heads")));
        }
        if blocks > max_blocks {
            return Err(KernelError::Shape(format!("{blocks} blocks are more than the largest number, {max_blocks}")));
        }
        // Cache slots are 32-bit numbers on the device, and the highest says that a row is stored nowhere.
        if max_blocks >= u32::MAX as usize / BLOCK_TOKENS {
            return Err(KernelError::OutOfMemory(format!("{max_blocks} KV blocks are more than slots can name")));
        }
        let bytes = layout.block_bytes().checked_mul(max_blocks);
        let bytes = bytes.ok_or_else(|| KernelError::OutOfMemory(format!("{max_blocks} KV blocks")))?;
        let region = Region::reserve(physical, bytes)?;
        let scales = arena.block(2 * heads * size_of::<f32>())?;
        let mut pool = Self { region, mapped: 0, blocks: 0, max_blocks, layout, scales, shared: shared.clone() };
        pool.back(blocks)?;
        pool.blocks = blocks;
        Ok(pool)
    }

    /// Usable blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes with memory.
    pub fn mapped_bytes(&self) -> usize {
        self.region.mapped_bytes()
    }

    pub(super) fn base(&self) -> Address {
        self.region.base()
    }

    /// Addresses of the scales of K and of V in a layer.
    fn scales_of(&self, layer: usize) -> [Address; 2] {
        let (heads, all) = (self.layout.kv_heads, self.layout.layers * self.layout.kv_heads);
        let at = |index: usize| self.scales.address() + (index * size_of::<f32>()) as Address;
        [at(layer * heads), at(all + layer * heads)]
    }

    /// Where all scales are to be copied: K's, then V's.
    pub(super) fn scales(&self) -> &Block {
        &self.scales
    }

    /// Puts memory below the first `blocks` blocks.
    pub(super) fn back(&mut self, blocks: usize) -> Result<()> {
        let chunks = self.region.chunks_of(0..blocks * self.layout.block_bytes()).end;
        if chunks > self.mapped {
            self.region.map(self.mapped..chunks)?;
            self.mapped = chunks;
        }
        Ok(())
    }

    /// Changes the number of usable blocks. No work that uses blocks above it may be unfinished.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`] beyond the reserved number; the driver's. Growing takes what memory there is.
    pub(super) fn resize(&mut self, blocks: usize) -> Result<()> {
        if blocks > self.max_blocks {
            return Err(KernelError::OutOfMemory(format!("{blocks} KV blocks; {} are reserved", self.max_blocks)));
        }
        let chunks = self.region.chunks_of(0..blocks * self.layout.block_bytes()).end;
        if chunks < self.mapped {
            self.region.unmap(chunks..self.mapped)?;
            self.mapped = chunks;
        }
        self.blocks = blocks;
        while self.mapped < chunks {
            match self.region.map(self.mapped..self.mapped + 1) {
                Ok(()) => self.mapped += 1,
                Err(KernelError::OutOfMemory(_)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves as the kernel takes them: from and to of each.
    ///
    /// # Errors
    /// [`KernelError::Shape`] for blocks outside the pool or a move to itself.
    pub(super) fn moves(&self, moves: &[BlockMove]) -> Result<Vec<u32>> {
        let mut numbers = Vec::with_capacity(2 * moves.len());
        for BlockMove { from, to } in moves {
            if *from as usize >= self.blocks || *to as usize >= self.blocks || from == to {
                return Err(KernelError::Shape(format!("block {from} cannot move to {to} of {}", self.blocks)));
            }
            numbers.extend([*from, *to]);
        }
        Ok(numbers)
    }
}

impl Paged for CudaKv {
    fn layout(&self) -> &KvLayout {
        &self.layout
    }

    fn blocks(&self) -> usize {
        self.blocks
    }

    fn is_backed(&self, blocks: usize) -> bool {
        self.region.chunks_of(0..blocks * self.layout.block_bytes()).end <= self.mapped
    }

    fn pool(&self, layer: usize) -> Pool {
        Pool { base: self.base(), layout: self.layout, layer, scales: self.scales_of(layer) }
    }
}

impl Drop for CudaKv {
    fn drop(&mut self) {
        // The memory is taken below: nothing that uses it may be on its way.
        let _ = self.shared.finish();
    }
}
