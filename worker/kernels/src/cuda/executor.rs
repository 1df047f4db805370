//! What operations of several kernels are written against: a device, or a plan of what it would be given.
//!
//! ```text
//! products, attention -> Executor -> Cuda: queue and stream
//!                                \-> Planner: a list of kernels with their bytes and operations
//! ```
//!
//! So the plan launches what the device launches, by the same code and the same constants.

use super::{Cuda, cublaslt::Shape, driver::Address, graph::Command, linear::UNPACK_ROWS, scratch::Slot};
use crate::Result;

/// Takes commands, in order.
pub(super) trait Executor {
    /// Adds a command.
    fn submit(&self, command: Command) -> Result<()>;
    /// Memory between the kernels of one operation: at least so many bytes, at the same place as before if they fit there.
    fn scratch(&self, slot: Slot, bytes: usize) -> Result<Address>;
    /// Whether cuBLASLt is there and has an algorithm for a product.
    fn takes(&self, shape: Shape) -> Result<bool>;
    /// Streaming multiprocessors.
    fn processors(&self) -> usize;
    /// Whether kernels must not depend on the number of rows.
    fn deterministic(&self) -> bool;
    /// Rows from which group-wise weights are unpacked for cuBLASLt.
    fn unpack_rows(&self) -> usize;
}

impl Executor for Cuda {
    fn submit(&self, command: Command) -> Result<()> {
        Self::submit(self, command)
    }

    fn scratch(&self, slot: Slot, bytes: usize) -> Result<Address> {
        Self::scratch(self, slot, bytes)
    }

    fn takes(&self, shape: Shape) -> Result<bool> {
        self.shared.queue(|queue| match &queue.machine.lt {
            Some(lt) => lt.takes(shape),
            None => Ok(false),
        })
    }

    fn processors(&self) -> usize {
        self.shared.gpu.info.processors as usize
    }

    fn deterministic(&self) -> bool {
        self.options.deterministic
    }

    fn unpack_rows(&self) -> usize {
        UNPACK_ROWS
    }
}
