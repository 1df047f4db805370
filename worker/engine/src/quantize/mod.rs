//! Quantizing a checkpoint's tensors. Round to nearest lives here; searched methods join it.

use modelprofile_kernels::{HostWeight, WeightKind, rtn};

use crate::{
    EngineError, Result, WeightFormat, ZeroPoint,
    checkpoint::{SourceDtype, SourceTensor},
};

/// A tensor in the given storage, each weight rounded to the nearest code. Blocks that the checkpoint already stores in
/// that very format are taken over without change.
///
/// # Errors
/// NaN or infinity in the tensor, or a group that does not divide its columns; both name file and tensor.
pub fn round_to_nearest(tensor: &SourceTensor<'_>, format: WeightFormat, kind: WeightKind) -> Result<HostWeight> {
    let own_blocks = match (tensor.dtype, kind) {
        (SourceDtype::Q8_0, WeightKind::Int8Group { group: 32 }) => true,
        (SourceDtype::Q4_1, WeightKind::Int4 { .. }) => format == WeightFormat::Q4_1,
        (SourceDtype::Q4_0, WeightKind::Int4 { .. }) => format == WeightFormat::Q4_0,
        _ => false,
    };
    if own_blocks && let Some(weight) = tensor.as_grouped()? {
        return Ok(weight);
    }
    let grid = match format {
        WeightFormat::Int4 { zero: ZeroPoint::Integer, .. } => rtn::Grid::Integer,
        WeightFormat::Int4 { zero: ZeroPoint::Minimum, .. } | WeightFormat::Q4_1 => rtn::Grid::Minimum,
        _ => rtn::Grid::Symmetric,
    };
    let values = values(tensor)?;
    rtn::quantize(kind, grid, tensor.rows, tensor.cols, &values)
        .map_err(|error| EngineError::checkpoint(tensor.file, format!("tensor {}: {error}", tensor.name)))
}

/// A vector's values (norm gains, biases), checked to be finite.
pub fn vector(tensor: &SourceTensor<'_>) -> Result<Vec<f32>> {
    let values = values(tensor)?;
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(at) => {
            let message = format!("tensor {}: element {at} is {}", tensor.name, values[at]);
            Err(EngineError::checkpoint(tensor.file, message))
        }
    }
}

/// All values of a tensor, row-major.
pub fn values(tensor: &SourceTensor<'_>) -> Result<Vec<f32>> {
    let mut values = vec![0.0; tensor.rows * tensor.cols];
    for (row, out) in values.chunks_exact_mut(tensor.cols.max(1)).enumerate() {
        tensor.row_f32(row, out)?;
    }
    Ok(values)
}
