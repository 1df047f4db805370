//! LLM.int8 (Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022): the few input
//! columns that carry outliers stay in 16 bits, the rest is INT8 with one scale per row and per token.
//!
//! The paper finds the columns anew in every product, by a threshold of 6.0. Here they are chosen once, on the calibration
//! text, and their number depends on the layer's width alone: shapes are known before anything is computed, and a layer
//! with fewer outliers keeps its next largest columns in 16 bits too, which only helps.

use modelprofile_kernels::{HostWeight, MAX_OUTLIERS, WeightKind, rtn};

use super::dense::Matrix;
use crate::Result;

/// Columns in 16 bits of a layer with that many inputs: a sixteenth, in steps of 8, from 8 to 64.
pub(crate) fn columns(inputs: usize) -> usize {
    (inputs / 16).next_multiple_of(8).clamp(8, MAX_OUTLIERS).min(inputs)
}

/// Storage of a layer with that many inputs.
pub(super) fn kind(inputs: usize) -> WeightKind {
    WeightKind::Int8Outliers { columns: columns(inputs) as u16 }
}

/// The columns with the largest magnitudes, in ascending order.
pub(super) fn outliers(absmax: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..absmax.len()).collect();
    order.sort_by(|a, b| absmax[*b].total_cmp(&absmax[*a]));
    order.truncate(columns(absmax.len()));
    order.sort_unstable();
    order
}

/// A matrix with these columns in 16 bits.
pub(super) fn quantize(matrix: &Matrix, columns: &[usize]) -> Result<HostWeight> {
    let columns: Vec<u32> = columns.iter().map(|column| *column as u32).collect();
    Ok(rtn::int8_outliers(matrix.rows, matrix.cols, &matrix.data, &columns)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]
    use super::*;

    #[test]
    fn the_columns_with_the_largest_inputs_are_chosen_and_only_they_are_exact() {
        // Eight of 32 columns, magnitudes that rise from right to left, and one tie of many small ones.
        let largest = [1, 4, 9, 10, 17, 23, 30, 31];
        let mut absmax = vec![0.25; 32];
        for (at, column) in largest.iter().enumerate() {
            absmax[*column] = 20.0 - at as f32;
        }
        let columns = outliers(&absmax);
        assert_eq!(columns, largest);

        let data: Vec<f32> = (0..64).map(|i| bf16_of((i * 37 % 64) as f32 / 64.0 - 0.5)).collect();
        let matrix = Matrix { rows: 2, cols: 32, data };
        let weight = quantize(&matrix, &columns).unwrap();
        let mut row = vec![0.0; 32];
        weight.dequantize_row(1, &mut row);
        let exact: Vec<usize> = (0..32).filter(|j| row[*j].to_bits() == matrix.data[32 + j].to_bits()).collect();
        assert!(largest.iter().all(|column| exact.contains(column)) && exact.len() < 16, "{exact:?}");
    }

    fn bf16_of(value: f32) -> f32 {
        half::bf16::from_f32(value).to_f32()
    }
}
