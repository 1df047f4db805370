//! Memory between the kernels of one operation: grown when needed, kept, and always at the same place meanwhile, so that a
//! recorded step finds it again.

use std::sync::Arc;

use super::memory::Block;

/// What a piece of scratch is for. Two that are in use at once have different names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Quantized rows.
    Codes,
    /// Their scales.
    Scales,
    /// Outlier columns of rows.
    Picked,
    /// Parts of products whose k is split.
    Partial,
    /// Products of cuBLASLt before they are scaled.
    Raw,
    /// A weight unpacked to BF16.
    Unpacked,
    /// The step's rotation angles.
    Angles,
    /// Parts of attention: sums.
    Sums,
    /// Parts of attention: maxima and sums of weights.
    States,
    /// Moves of cache blocks.
    Moves,
    /// The step's numbers.
    Step,
    /// The parameters of draws.
    Draws,
    /// Their lists of tokens.
    Lists,
    /// What is known of the parts of rows that tokens are drawn from.
    Parts,
    /// The tokens drawn.
    Tokens,
    /// Parts of quadratic forms, and the forms.
    Forms,
}

const SLOTS: usize = Slot::Forms as usize + 1;

/// Granularity of growth: slightly larger steps do not take a new place each.
const GROWTH: usize = 64 * 1024;

/// The pieces.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    blocks: [Option<Arc<Block>>; SLOTS],
}

impl Scratch {
    /// A slot's block when it has this many bytes.
    pub(super) fn get(&self, slot: Slot, bytes: usize) -> Option<&Arc<Block>> {
        self.blocks[slot as usize].as_ref().filter(|block| block.len() >= bytes)
    }

    /// The size to ask for.
    pub(super) fn size(bytes: usize) -> usize {
        bytes.next_multiple_of(GROWTH)
    }

    /// Empties a slot: before a larger block is asked for, so that it may take this one's place.
    pub(super) fn clear(&mut self, slot: Slot) {
        self.blocks[slot as usize] = None;
    }

    /// Sets a slot's block.
    pub(super) fn set(&mut self, slot: Slot, block: Arc<Block>) {
        self.blocks[slot as usize] = Some(block);
    }
}
