//! Tensors that are rounded piece by piece come out as if they were rounded at once.
#![allow(clippy::unwrap_used, reason = "a failure is the test's result")]

use modelprofile_kernels::{FP8_BLOCK, HostWeight, WeightKind, rtn};

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

#[test]
fn one_fp8_scale_and_fp8_blocks_do_not_depend_on_the_pieces() {
    let values = values();
    let tensor = tensor(bytemuck::cast_slice(&values));
    let found = round_to_nearest(&tensor, WeightFormat::Fp8Tensor, WeightKind::Fp8).unwrap();
    assert!(found == rtn::fp8_tensor(ROWS, COLS, &values).unwrap(), "one scale");
    let HostWeight::Fp8 { scales, .. } = &found else { unreachable!() };
    assert!(scales.iter().all(|s| *s == 40.0 / 448.0));

    let found = round_to_nearest(&tensor, WeightFormat::Fp8Block, WeightKind::Fp8Block).unwrap();
    let expected = rtn::quantize(WeightKind::Fp8Block, rtn::Grid::Symmetric, ROWS, COLS, &values).unwrap();
    assert!(found == expected, "blocks");
}

#[test]
fn static_activations_are_refused_without_calibration_and_the_tensor_is_named() {
    let values = values();
    let tensor = tensor(bytemuck::cast_slice(&values));
    let error = round_to_nearest(&tensor, WeightFormat::Fp8Static, WeightKind::Fp8Static).unwrap_err().to_string();
    assert!(error.contains("tensor w") && error.contains("calibrate it, or use dynamic activations"), "{error}");
}
