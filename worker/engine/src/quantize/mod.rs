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

use std::{ops::Range, sync::Arc};

use half::bf16;
use modelprofile_kernels::{FP8_BLOCK, HostWeight, WeightKind, pack::PANEL, rtn};

pub use block_types::BlockTypes;
pub use importance::importance;
pub(crate) use llm_int8::columns as outlier_columns;
pub(crate) use pipeline::{Pipeline, QuantizedLayer};
pub use recipe::{Calibration, DEFAULT_CALIBRATION_TOKENS, Recipe};
pub(crate) use threads::in_order;

use crate::{
    EngineError, Method, Result, WeightFormat, ZeroPoint,
    checkpoint::{Checkpoint, Role, SourceDtype, SourceTensor, quantized::written},
};

/// Values that a thread has in FP32 at once: few enough to stay in a core's cache between the steps of rounding.
const CHUNK: usize = 1 << 17;

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
/// dequantized for BF16, else rounded to nearest. It comes in parts, as [`round_to_nearest`] gives them.
///
/// # Errors
/// As [`admits`], [`Checkpoint::quantized`] and [`round_to_nearest`].
pub fn linear(
    checkpoint: &Checkpoint,
    role: Role,
    recipe: Recipe,
    kind: WeightKind,
    threads: usize,
) -> Result<Vec<Arc<HostWeight>>> {
    let Some(stored) = checkpoint.quantized(role)? else {
        return round_to_nearest(&checkpoint.require(role)?, recipe.format, kind, threads);
    };
    if kind == WeightKind::Bf16 {
        let (n, k) = role.shape(checkpoint.config());
        let values = stored.dequantize().into_iter().map(bf16::from_f32).collect();
        return Ok(vec![Arc::new(HostWeight::Bf16 { n, k, values })]);
    }
    admits(checkpoint, recipe)?;
    let (weight, _) = stored.to_host()?;
    if weight.spec().kind == kind {
        return Ok(vec![Arc::new(weight)]);
    }
    // A group narrower than the profile's: the checkpoint's formats differ between layers.
    Err(EngineError::Config(format!("{role:?} is stored as {:?}, the profile wants {kind:?}", weight.spec().kind)))
}

/// A tensor in the given storage, each weight rounded to the nearest code. Blocks that the checkpoint already stores in
/// that very format are taken over without change.
///
/// It comes in parts that stand one below the other, which nobody has to join: each but the last has a multiple of
/// [`PANEL`] rows. They are the same whatever the number of threads.
///
/// # Errors
/// NaN or infinity in the tensor, a group that does not divide its columns, or a kind that holds what only calibration knows
/// (static activations, outlier columns); all name file and tensor. Of several places it is the first.
pub fn round_to_nearest(
    tensor: &SourceTensor<'_>,
    format: WeightFormat,
    kind: WeightKind,
    threads: usize,
) -> Result<Vec<Arc<HostWeight>>> {
    if takes_over(tensor.dtype, format, kind)
        && let Some(weight) = tensor.as_grouped()?
    {
        return Ok(vec![Arc::new(weight)]);
    }
    let grid = match format {
        WeightFormat::Int4 { zero: ZeroPoint::Integer, .. } => rtn::Grid::Integer,
        WeightFormat::Int4 { zero: ZeroPoint::Minimum, .. } | WeightFormat::Q4_1 => rtn::Grid::Minimum,
        _ => rtn::Grid::Symmetric,
    };
    let named = |error| EngineError::checkpoint(tensor.file, format!("tensor {}: {error}", tensor.name));
    let tensor_scale = match (format, kind) {
        (WeightFormat::Fp8Tensor, WeightKind::Fp8) => Some(rtn::fp8_scale(magnitude(tensor, threads)?)),
        _ => None,
    };
    let round = |values: &mut Vec<f32>, rows: Range<usize>| {
        let count = rows.len();
        read(tensor, rows, values)?;
        let part = match tensor_scale {
            Some(scale) => rtn::fp8_with_scale(count, tensor.cols, values, scale),
            None => rtn::quantize(kind, grid, count, tensor.cols, values),
        };
        part.map_err(named)
    };
    let mut parts = Vec::new();
    in_order(threads, pieces(tensor.rows, tensor.cols, kind), round, |part| {
        parts.push(Arc::new(part));
        Ok(())
    })?;
    Ok(parts)
}

/// The rows of a tensor in pieces that are read and rounded on their own: of a few values each, so that an embedding need not
/// be in memory in FP32 as a whole; of whole panels, and of whole blocks where blocks share scales.
pub(crate) fn pieces(rows: usize, cols: usize, kind: WeightKind) -> impl ExactSizeIterator<Item = Range<usize>> + Send {
    let whole = if kind == WeightKind::Fp8Block { FP8_BLOCK } else { PANEL };
    let of_piece = (CHUNK / cols.max(1)).max(1).next_multiple_of(whole);
    (0..rows.div_ceil(of_piece)).map(move |piece| piece * of_piece..rows.min((piece + 1) * of_piece))
}

/// Some rows of a tensor, row-major, into `values`.
fn read(tensor: &SourceTensor<'_>, rows: Range<usize>, values: &mut Vec<f32>) -> Result<()> {
    values.resize(rows.len() * tensor.cols, 0.0);
    rows.zip(values.chunks_exact_mut(tensor.cols.max(1))).try_for_each(|(row, out)| tensor.row_f32(row, out))
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
fn magnitude(tensor: &SourceTensor<'_>, threads: usize) -> Result<f32> {
    let mut largest = 0.0f32;
    let of_rows = |values: &mut Vec<f32>, rows: Range<usize>| {
        read(tensor, rows, values)?;
        Ok(rtn::absmax(values))
    };
    in_order(threads, pieces(tensor.rows, tensor.cols, WeightKind::Bf16), of_rows, |of_rows| {
        largest = largest.max(of_rows);
        Ok(())
    })?;
    // An infinity is refused where the row is quantized, by its place.
    Ok(largest.min(f32::MAX))
}

/// A vector's values (norm gains, biases), checked to be finite.
pub fn vector(tensor: &SourceTensor<'_>) -> Result<Vec<f32>> {
    let values = values(tensor, 1)?;
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(at) => {
            let message = format!("tensor {}: element {at} is {}", tensor.name, values[at]);
            Err(EngineError::checkpoint(tensor.file, message))
        }
    }
}

/// All values of a tensor, row-major.
pub fn values(tensor: &SourceTensor<'_>, threads: usize) -> Result<Vec<f32>> {
    let mut values = vec![0.0; tensor.rows * tensor.cols];
    let cols = tensor.cols.max(1);
    let of_piece = (CHUNK / cols).max(1);
    let parts = values.chunks_mut(of_piece * cols).enumerate();
    let read = |(): &mut (), (piece, out): (usize, &mut [f32])| {
        out.chunks_exact_mut(cols).enumerate().try_for_each(|(row, out)| tensor.row_f32(piece * of_piece + row, out))
    };
    in_order(threads, parts, read, Ok)?;
    Ok(values)
}
