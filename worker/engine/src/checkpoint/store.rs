//! Where tensors lie in the mapped files, the same for both containers.

use std::sync::Arc;

use modelprofile_kernels::MappedFile;
use safetensors::Dtype;

use super::SourceDtype;

/// One mapped file.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// File name without directory.
    pub(super) name: String,
    /// The mapping.
    pub(super) map: Arc<MappedFile>,
}

/// A tensor's place. `offset + len` is inside the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StoredTensor {
    /// Index of the file.
    pub(super) file: usize,
    /// Element type.
    pub(super) dtype: SourceDtype,
    /// Dimensions, slowest first; not empty.
    pub(super) shape: Vec<usize>,
    /// First byte in the file.
    pub(super) offset: usize,
    /// Bytes.
    pub(super) len: usize,
}

/// A tensor of a type that holds codes, not values: part of a quantized layer. `offset + len` is inside the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StoredCodes {
    /// Index of the file.
    pub(super) file: usize,
    /// Element type.
    pub(super) dtype: Dtype,
    /// Dimensions, slowest first; not empty.
    pub(super) shape: Vec<usize>,
    /// First byte in the file.
    pub(super) offset: usize,
    /// Bytes.
    pub(super) len: usize,
}

impl StoredTensor {
    /// Bytes of a tensor; `None` when blocks do not divide its rows or the product overflows.
    pub(super) fn byte_len(shape: &[usize], dtype: SourceDtype) -> Option<usize> {
        let (cols, outer) = shape.split_last()?;
        let rows = outer.iter().try_fold(1usize, |rows, dim| rows.checked_mul(*dim))?;
        rows.checked_mul(*cols)?;
        dtype.row_bytes(*cols)?.checked_mul(rows)
    }

    /// Rows and columns: all dimensions but the last make the rows.
    pub(super) fn matrix(&self) -> (usize, usize) {
        let cols = self.shape.last().copied().unwrap_or(1);
        (self.shape.iter().product::<usize>() / cols.max(1), cols)
    }
}
