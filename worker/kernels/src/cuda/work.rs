//! What a kernel must move and multiply at the least: what its time is modelled from, and measured against.
//!
//! Each launch says its own: the functions of `launch` know the shapes that grids are computed from.

/// What multiplies in a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Cores {
    /// Nothing to speak of: bytes and latency decide.
    #[default]
    None,
    /// An own kernel's `mma.sync` with 16-bit operands. Own FP8 kernels too: on sm_90a they multiply in FP16.
    Mma,
    /// An own kernel's `mma.sync` with INT8 operands.
    MmaInt8,
    /// A BF16 product of cuBLASLt.
    LibraryBf16,
    /// An FP8 product of cuBLASLt.
    LibraryFp8,
    /// An INT8 product of cuBLASLt.
    LibraryInt8,
}

/// Share of a tensor core's rate that `mma.sync` reaches on sm_90, beside what `wgmma` does (modelled).
pub const MMA_SYNC_SHARE: f64 = 0.6;

/// Bytes and operations of one kernel.
///
/// Bytes are those that must cross the memory's bus: each address once, however often blocks read it from the L2 cache.
/// Operations are those issued to the tensor cores, rows that pad a tile included; a multiplication and an addition are
/// two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Work {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Operations.
    pub operations: u64,
    /// On what.
    pub cores: Cores,
}

impl Work {
    /// Bytes alone.
    pub(super) fn bytes(read: usize, written: usize) -> Self {
        Self { read: read as u64, written: written as u64, ..Self::default() }
    }

    /// With operations on some cores.
    pub(super) fn with(self, operations: usize, cores: Cores) -> Self {
        Self { operations: operations as u64, cores, ..self }
    }

    /// Bytes read and written.
    pub fn moved(&self) -> u64 {
        self.read + self.written
    }
}

/// Bytes of FP32 values.
pub(super) fn floats(count: usize) -> usize {
    count * size_of::<f32>()
}
