//! Packed weights: a weight's bytes in a device's layout, owned or mapped from a file.

use std::{fmt, ops::Deref, sync::Arc};

use crate::{MappedFile, WeightSpec};

/// Bytes aligned to 64, owned or a range of a mapped file. Cheap to clone.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    offset: usize,
    len: usize,
}

#[derive(Clone)]
enum Owner {
    Memory(Arc<AlignedBytes>),
    File(Arc<MappedFile>),
}

impl Bytes {
    /// Takes over memory.
    pub fn from_memory(bytes: AlignedBytes) -> Self {
        let len = bytes.len();
        Self { owner: Owner::Memory(Arc::new(bytes)), offset: 0, len }
    }

    /// A range of a mapped file; `None` when it leaves the file or does not start at a multiple of 64.
    pub fn from_file(file: Arc<MappedFile>, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= file.len() && offset.is_multiple_of(64)).then_some(Self { owner: Owner::File(file), offset, len })
    }

    /// A part of the range; `None` when it leaves it or does not start at a multiple of 64.
    pub fn part(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len && offset.is_multiple_of(64)).then(|| Self {
            owner: self.owner.clone(),
            offset: self.offset + offset,
            len,
        })
    }

    /// Starts reading the range into the page cache. Nothing to do for memory.
    pub fn prefetch(&self) {
        if let Owner::File(file) = &self.owner {
            file.prefetch(self.offset, self.len);
        }
    }

    /// Gives resident pages of a mapped range back; they are read again from the file at the next use.
    pub fn release(&self) {
        if let Owner::File(file) = &self.owner {
            file.release(self.offset, self.len);
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.owner {
            Owner::Memory(bytes) => bytes,
            Owner::File(file) => file,
        };
        &all[self.offset..self.offset + self.len]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len)
    }
}

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Zeroed memory that starts at a multiple of 64 bytes (one cache line, one AVX-512 register).
pub struct AlignedBytes {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedBytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0; 64]); len.div_ceil(64)], len }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// A weight in a device's layout.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    /// Kind and shape.
    pub spec: WeightSpec,
    /// The layout's bytes.
    pub bytes: Bytes,
}
