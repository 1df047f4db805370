//! Quantizing a checkpoint's tensors.
//!
//! | module | what it holds |
//! |---|---|
//! | this one | round to nearest, row by row; blocks of a checkpoint taken over as they are |
//! | `recipe` | format and method, calibration text |
//! | [`plan`] | what quantizing will take in time and memory |
//! | `pipeline` | calibrated methods, layer by layer |
//! | `runner`, `statistics` | calibration text through one layer on a device; what it makes of a layer's inputs |
//! | `gptq`, `awq`, `smoothquant`, `llm_int8` | the methods |
//! | `grid` | what GPTQ and AWQ round to |
//! | `importance` | how much each input column matters, for GGUF's quantizers |
//! | `dense`, `threads` | a layer's weights in FP32; rows shared out to threads |
//! | `block_types` | which weights are rounded a second time |
//!
//! A directory whose layers are quantized is [taken over](linear) or refused: its codes are never rounded a second time. A
//! GGUF file's blocks are taken over by the format that they are in; any other format rounds them again, which the log and
//! the artifact's manifest say ([`BlockTypes`]).

mod awq;
mod block_types;
mod dense;
mod gptq;
mod grid;
mod importance;
mod llm_int8;
mod pipeline;
pub mod plan;
mod recipe;
#[cfg(test)]
mod rounding_tests;
mod runner;
mod smoothquant;
mod statistics;
mod threads;

use half::bf16;
use modelprofile_kernels::{FP8_BLOCK, HostWeight, WeightKind, rtn};

pub use block_types::BlockTypes;
pub use importance::importance;
pub(crate) use llm_int8::columns as outlier_columns;
pub(crate) use pipeline::{Pipeline, QuantizedLayer};
pub use recipe::{Calibration, DEFAULT_CALIBRATION_TOKENS, Recipe};

use crate::{
    EngineError, Method, Result, WeightFormat, ZeroPoint,
    checkpoint::{Checkpoint, Role, SourceDtype, SourceTensor, quantized::written},
};

/// Values that are in memory in FP32 at once.
const CHUNK: usize = 1 << 22;

/// Checks that a recipe can be made of a directory without rounding quantized layers again: it holds values, or the
/// format is its own and no method is to choose its codes, or BF16, which dequantizes it as the reference of an evaluation.
/// A GGUF file passes: [`BlockTypes::requantized`] says what a recipe rounds again of it.
///
/// # Errors
/// [`EngineError::Config`] with the checkpoint's format and what to write instead.
pub fn admits(checkpoint: &Checkpoint, recipe: Recipe) -> Result<()> {
    let Some(quantization) = checkpoint.quantization() else { return Ok(()) };
    if recipe.format == WeightFormat::Bf16 {
        return Ok(());
    }
    let refuse = |reason: String, instead: &str| {
        Err(EngineError::Config(format!(
            "{}: the checkpoint is quantized ({}) and {reason}; it is not quantized again. Write {instead}, or give the \
             original checkpoint",
            checkpoint.name(),
            quantization.describe()
        )))
    };
    let Some(own) = quantization.recipe() else {
        return refuse("no format of this build holds it".into(), "BF16, which dequantizes it");
    };
    if recipe.method != Method::RoundToNearest && recipe != own {
        let method = if own.method == Method::RoundToNearest { " without a method" } else { "" };
        let instead = format!("{}{method}", written(own));
        return refuse(format!("{} would choose other codes", recipe.method.canonical()), &instead);
    }
    let kept = Role::all(checkpoint.config()).into_iter().find(|role| {
        // The embedding and the output layer have their own storage in every profile.
        *role != Role::Output && role.module().is_some() && checkpoint.tensor(*role).is_some()
    });
    if let Some(module) = kept.and_then(Role::module) {
        return refuse(format!("keeps {module} in 16 bits"), "BF16, which dequantizes it");
    }
    if checkpoint.config().tied_embeddings || checkpoint.tensor(Role::Output).is_some() {
        return if recipe == own {
            Ok(())
        } else {
            let instead = format!("{}, which takes it over bit for bit", written(own));
            refuse(format!("is not in the profile's format {}", written(recipe)), &instead)
        };
    }
    refuse("its output layer is quantized, too".into(), "BF16, which dequantizes it")
}

/// A linear weight or embedding in the given storage: taken over from a quantized checkpoint whose own recipe it is,
/// dequantized for BF16, else rounded to nearest.
///
/// # Errors
/// As [`admits`], [`Checkpoint::quantized`] and [`round_to_nearest`].
pub fn linear(checkpoint: &Checkpoint, role: Role, recipe: Recipe, kind: WeightKind) -> Result<HostWeight> {
    let Some(stored) = checkpoint.quantized(role)? else {
        return round_to_nearest(&checkpoint.require(role)?, recipe.format, kind);
    };
    if kind == WeightKind::Bf16 {
        let (n, k) = role.shape(checkpoint.config());
        let values = stored.dequantize().into_iter().map(bf16::from_f32).collect();
        return Ok(HostWeight::Bf16 { n, k, values });
    }
    admits(checkpoint, recipe)?;
    let (weight, _) = stored.to_host()?;
    if weight.spec().kind == kind {
        return Ok(weight);
    }
    // A group narrower than the profile's: the checkpoint's formats differ between layers.
    Err(EngineError::Config(format!("{role:?} is stored as {:?}, the profile wants {kind:?}", weight.spec().kind)))
}

/// A tensor in the given storage, each weight rounded to the nearest code. Blocks that the checkpoint already stores in
/// that very format are taken over without change.
///
/// # Errors
/// NaN or infinity in the tensor, a group that does not divide its columns, or a kind that holds what only calibration knows
/// (static activations, outlier columns); all name file and tensor.
pub fn round_to_nearest(tensor: &SourceTensor<'_>, format: WeightFormat, kind: WeightKind) -> Result<HostWeight> {
    if takes_over(tensor.dtype, format, kind)
        && let Some(weight) = tensor.as_grouped()?
    {
        return Ok(weight);
    }
    let grid = match format {
        WeightFormat::Int4 { zero: ZeroPoint::Integer, .. } => rtn::Grid::Integer,
        WeightFormat::Int4 { zero: ZeroPoint::Minimum, .. } | WeightFormat::Q4_1 => rtn::Grid::Minimum,
        _ => rtn::Grid::Symmetric,
    };
    let named = |error| EngineError::checkpoint(tensor.file, format!("tensor {}: {error}", tensor.name));
    let tensor_scale = match (format, kind) {
        (WeightFormat::Fp8Tensor, WeightKind::Fp8) => Some(rtn::fp8_scale(magnitude(tensor)?)),
        _ => None,
    };
    // Rows are rounded on their own, or in FP8's blocks: an embedding need not be in memory in FP32 as a whole.
    let rows = (CHUNK / tensor.cols.max(1)).max(1).next_multiple_of(FP8_BLOCK);
    let mut chunks = Vec::new();
    let mut values = Vec::new();
    for first in (0..tensor.rows).step_by(rows) {
        let count = rows.min(tensor.rows - first);
        values.resize(count * tensor.cols, 0.0);
        for (row, out) in values.chunks_exact_mut(tensor.cols.max(1)).enumerate() {
            tensor.row_f32(first + row, out)?;
        }
        let chunk = match tensor_scale {
            Some(scale) => rtn::fp8_with_scale(count, tensor.cols, &values, scale),
            None => rtn::quantize(kind, grid, count, tensor.cols, &values),
        };
        chunks.push(chunk.map_err(named)?);
    }
    HostWeight::concat_rows(chunks).map_err(named)
}

/// Whether blocks of this type are, bit for bit, the storage of a weight in a profile of this format.
fn takes_over(blocks: SourceDtype, format: WeightFormat, kind: WeightKind) -> bool {
    match (blocks, kind) {
        (SourceDtype::Q8_0, WeightKind::Int8Group { group: 32 }) => true,
        (SourceDtype::Q4_1, WeightKind::Int4 { .. }) => format == WeightFormat::Q4_1,
        (SourceDtype::Q4_0, WeightKind::Int4 { .. }) => format == WeightFormat::Q4_0,
        _ => false,
    }
}

/// The largest magnitude of a tensor.
fn magnitude(tensor: &SourceTensor<'_>) -> Result<f32> {
    let mut values = vec![0.0f32; tensor.cols];
    let mut largest = 0.0f32;
    for row in 0..tensor.rows {
        tensor.row_f32(row, &mut values)?;
        largest = values.iter().fold(largest, |m, v| m.max(v.abs()));
    }
    // An infinity is refused where the row is quantized, by its place.
    Ok(largest.min(f32::MAX))
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
