//! What operations are written against: a device, or a plan of what it would be given.
//!
//! ```text
//! operations, products, attention -> Executor -> Cuda: queue and stream
//!                                            \-> Planner: a list of kernels with their bytes and operations
//! ```
//!
//! So the plan launches what the device launches, by the same code and the same constants.

use super::{
    content::Held, cublaslt::Shape, driver::Address, graph::Command, launch::Pool, operand::Placed, present::Present,
    scratch::Slot,
};
use crate::{KvLayout, Result};

/// Takes commands, in order.
pub(super) trait Executor {
    /// An FP32 matrix.
    type Buffer: Held;
    /// A linear weight.
    type Weight: Located;
    /// The paged pool.
    type Kv: Paged;

    /// Adds a command.
    fn submit(&self, command: Command) -> Result<()>;
    /// Memory between the kernels of one operation: at least so many bytes, at the same place as before if they fit there.
    fn scratch(&self, slot: Slot, bytes: usize) -> Result<Address>;
    /// Copies host bytes into such memory, behind all work up to now: what is recorded of a step ends here.
    fn send(&self, slot: Slot, bytes: &[u8]) -> Result<Address>;
    /// Does something with the present step, which is locked meanwhile.
    fn present<T>(&self, work: impl FnOnce(&mut Present) -> T) -> T;
    /// Whether the present step is under way: behind its end, rows that pad it are the caller's again.
    fn is_in_step(&self) -> bool;
    /// Has what is submitted from now on find a weight's bytes in their place.
    fn make_ready(&self, weight: &Self::Weight) -> Result<()>;
    /// Puts memory below the first blocks of a pool.
    fn back(&self, kv: &mut Self::Kv, blocks: usize) -> Result<()>;
    /// Whether cuBLASLt is there and has an algorithm for a product.
    fn takes(&self, shape: Shape) -> Result<bool>;
    /// Streaming multiprocessors.
    fn processors(&self) -> usize;
    /// Whether kernels must not depend on the number of rows.
    fn deterministic(&self) -> bool;
    /// Rows from which group-wise weights are unpacked for cuBLASLt.
    fn unpack_rows(&self) -> usize;
}

/// A weight, as operations see it.
pub(super) trait Located {
    /// Where it is while it is ready.
    fn placed(&self) -> Placed;
}

/// A pool, as operations see it.
pub(super) trait Paged {
    /// What a block holds.
    fn layout(&self) -> &KvLayout;
    /// Usable blocks.
    fn blocks(&self) -> usize;
    /// Whether the first `blocks` blocks have memory.
    fn is_backed(&self, blocks: usize) -> bool;
    /// One layer of it.
    fn pool(&self, layer: usize) -> Pool;
}
