//! A tensor of a mapped checkpoint, read by the row.

use std::fmt;

use modelprofile_kernels::rtn::not_finite;

use super::{SourceDtype, ggml};
use crate::{EngineError, Result};

/// Where a row of the Hugging Face order lies in the file.
///
/// llama.cpp's Llama files interleave the two rotary halves of each query and key head: file row `2 j + t` of a head is
/// row `t * head_dim / 2 + j` of the original (`t` is the half). Blocks run along columns, so undoing it moves whole
/// rows and is exact for every format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowMap {
    /// Rows lie in order.
    #[default]
    Identity,
    /// Rotary halves of each head are interleaved.
    InterleavedHeads {
        /// Rows per head; even, divides the number of rows.
        head_dim: usize,
    },
}

impl RowMap {
    /// The file's row that holds row `row`.
    pub fn file_row(self, row: usize) -> usize {
        match self {
            Self::Identity => row,
            Self::InterleavedHeads { head_dim } => {
                let (head, inner) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (inner % half) + inner / half
            }
        }
    }

    /// The row that lies at row `file_row` of the file: the inverse of [`Self::file_row`].
    pub fn row_at(self, file_row: usize) -> usize {
        match self {
            Self::Identity => file_row,
            Self::InterleavedHeads { head_dim } => {
                let (head, inner) = (file_row / head_dim, file_row % head_dim);
                head * head_dim + inner % 2 * (head_dim / 2) + inner / 2
            }
        }
    }
}

/// A tensor in a mapped checkpoint. Bounds were checked when the checkpoint was opened.
#[derive(Clone, Copy)]
pub struct SourceTensor<'a> {
    /// Name in the file, for messages.
    pub name: &'a str,
    /// File, for messages.
    pub file: &'a str,
    /// Rows (output features); 1 for vectors.
    pub rows: usize,
    /// Columns (input features).
    pub cols: usize,
    /// Element type.
    pub dtype: SourceDtype,
    /// Row-major bytes in the file's row order, exactly `rows` rows. Read rows with [`Self::row_bytes`] or
    /// [`Self::row_f32`], which put them in the Hugging Face order.
    pub bytes: &'a [u8],
    /// Where each row lies.
    pub row_map: RowMap,
}

impl fmt::Debug for SourceTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, {}] {} of {}", self.name, self.rows, self.cols, self.dtype.name(), self.file)
    }
}

impl<'a> SourceTensor<'a> {
    /// Elements.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }

    /// The bytes of row `row` (0..rows) of the Hugging Face order.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when the tensor has no such row.
    pub fn row_bytes(&self, row: usize) -> Result<&'a [u8]> {
        self.stored_row(row).ok_or_else(|| self.error(&format!("has no row {row}; it has {}", self.rows)))
    }

    /// Dequantizes row `row` into `out`, which holds `cols` values.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when the row does not exist, `out` has another length, or a value is NaN or infinite.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let bytes = self.row_bytes(row)?;
        if out.len() != self.cols || ggml::dequantize_row(self.dtype, bytes, out).is_none() {
            return Err(self.error(&format!("has rows of {} columns, {} were asked for", self.cols, out.len())));
        }
        // A scale that is not finite makes every value of its block so, zero codes included (inf * 0 is NaN).
        match not_finite(out) {
            None => Ok(()),
            Some(col) => Err(self.not_finite(row, col)),
        }
    }

    /// All values, row-major, dequantized: for vectors and small tensors.
    ///
    /// # Errors
    /// As [`Self::row_f32`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut all = vec![0.0; self.elements()];
        for (row, out) in all.chunks_exact_mut(self.cols.max(1)).enumerate() {
            self.row_f32(row, out)?;
        }
        Ok(all)
    }

    fn stored_row(&self, row: usize) -> Option<&'a [u8]> {
        if row >= self.rows {
            return None;
        }
        let len = self.dtype.row_bytes(self.cols)?;
        let start = self.row_map.file_row(row).checked_mul(len)?;
        self.bytes.get(start..start.checked_add(len)?)
    }

    pub(super) fn not_finite(&self, row: usize, col: usize) -> EngineError {
        self.error(&format!("is not finite at row {row}, column {col}; the file is damaged, download it again"))
    }

    fn error(&self, message: &str) -> EngineError {
        EngineError::checkpoint(self.file, format!("tensor {} ({}): {message}", self.name, self.dtype.name()))
    }
}
