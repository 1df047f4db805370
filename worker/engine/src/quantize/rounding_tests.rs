//! Tensors that are rounded piece by piece come out as if they were rounded at once.
#![allow(clippy::unwrap_used, reason = "a failure is the test's result")]

use std::sync::Arc;

use modelprofile_kernels::{FP8_BLOCK, HostWeight, WeightKind, rtn};
use rstest::rstest;

use super::{CHUNK, round_to_nearest};
use crate::{
    WeightFormat,
    checkpoint::{RowMap, SourceDtype, SourceTensor},
};

/// More rows than a piece holds, the largest value in the last one.
const COLS: usize = 8192;
const ROWS: usize = CHUNK / COLS + FP8_BLOCK + 3;

fn values() -> Vec<f32> {
    let mut values: Vec<f32> = (0..ROWS * COLS).map(|i| (i % 509) as f32 / 300.0 - 0.8).collect();
    values[(ROWS - 1) * COLS + 5] = 40.0;
    values
}

fn tensor(bytes: &[u8]) -> SourceTensor<'_> {
    SourceTensor {
        name: "w",
        file: "file",
        rows: ROWS,
        cols: COLS,
        dtype: SourceDtype::F32,
        bytes,
        row_map: RowMap::Identity,
    }
}

/// The parts of a tensor, joined.
fn rounded(tensor: &SourceTensor<'_>, format: WeightFormat, kind: WeightKind, threads: usize) -> HostWeight {
    let parts = round_to_nearest(tensor, format, kind, threads).unwrap();
    assert!(parts.len() > 1, "the tensor is in pieces");
    HostWeight::concat_rows(parts.into_iter().map(Arc::unwrap_or_clone).collect()).unwrap()
}

#[rstest]
fn one_fp8_scale_and_fp8_blocks_do_not_depend_on_the_pieces(#[values(1, 3)] threads: usize) {
    let values = values();
    let tensor = tensor(bytemuck::cast_slice(&values));
    let found = rounded(&tensor, WeightFormat::Fp8Tensor, WeightKind::Fp8, threads);
    assert!(found == rtn::fp8_tensor(ROWS, COLS, &values).unwrap(), "one scale");
    let HostWeight::Fp8 { scales, .. } = &found else { unreachable!() };
    assert!(scales.iter().all(|s| *s == 40.0 / 448.0));

    let found = rounded(&tensor, WeightFormat::Fp8Block, WeightKind::Fp8Block, threads);
    let expected = rtn::quantize(WeightKind::Fp8Block, rtn::Grid::Symmetric, ROWS, COLS, &values).unwrap();
    assert!(found == expected, "blocks");
    assert!(super::values(&tensor, threads).unwrap() == values, "values");
}

#[rstest]
fn of_several_numbers_that_are_none_the_first_is_named(#[values(1, 3)] threads: usize) {
    let mut values = values();
    for row in [20, 21, 100, ROWS - 1] {
        values[row * COLS + 7] = f32::NAN;
    }
    let tensor = tensor(bytemuck::cast_slice(&values));
    let errors = [
        round_to_nearest(&tensor, WeightFormat::Int8, WeightKind::Int8, threads).map(drop),
        round_to_nearest(&tensor, WeightFormat::Fp8Tensor, WeightKind::Fp8, threads).map(drop),
        super::values(&tensor, threads).map(drop),
    ];
    for error in errors {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("file") && error.contains("tensor w") && error.contains("row 20, column 7"), "{error}");
    }
}

#[test]
fn static_activations_are_refused_without_calibration_and_the_tensor_is_named() {
    let values = values();
    let tensor = tensor(bytemuck::cast_slice(&values));
    let error = round_to_nearest(&tensor, WeightFormat::Fp8Static, WeightKind::Fp8Static, 2).unwrap_err().to_string();
    assert!(error.contains("tensor w") && error.contains("calibrate it, or use dynamic activations"), "{error}");
}
