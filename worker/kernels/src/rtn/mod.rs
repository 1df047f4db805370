//! Round to nearest: FP32 rows into the codes of each weight kind.
//!
//! | module | what it holds |
//! |---|---|
//! | `rows` | the kinds with a scale per row, tensor or block |
//! | `groups` | the kinds with a scale and a minimum per group, in pieces that other methods use too |

use half::bf16;

use crate::{HostWeight, KernelError, Result, WeightKind, WeightSpec, format::e4m3};

mod groups;
mod rows;
#[cfg(test)]
mod tests;

pub use groups::{Grid, code, group_grid, quantize_with, row_scale, top_code};
pub(crate) use groups::{magnitude_scale, range_grid};

/// Quantizes `n` rows of `k` values, each to the nearest code. Kinds that need what only calibration knows have functions of
/// their own: [`fp8_static`], [`int8_outliers`].
///
/// # Errors
/// [`KernelError::Shape`] when the kind cannot hold the shape; [`KernelError::Format`] names the row and column of a NaN or
/// infinity.
pub fn quantize(kind: WeightKind, grid: Grid, n: usize, k: usize, rows: &[f32]) -> Result<HostWeight> {
    check(kind, n, k, rows)?;
    Ok(match kind {
        WeightKind::Bf16 => HostWeight::Bf16 { n, k, values: rows.iter().map(|v| bf16::from_f32(*v)).collect() },
        WeightKind::Fp8 => rows::fp8(n, k, rows),
        WeightKind::Fp8Block => rows::fp8_block(n, k, rows),
        WeightKind::Fp8Static => {
            return Err(KernelError::Shape(
                "FP8 with static activations needs the scale of the inputs: calibrate it, or use dynamic activations"
                    .into(),
            ));
        }
        WeightKind::Int8Outliers { .. } => {
            return Err(KernelError::Shape(
                "INT8 with outlier columns needs the columns: choose them on calibration data, or use INT8".into(),
            ));
        }
        WeightKind::Int8 => rows::int8(n, k, rows),
        WeightKind::Int4 { group } => groups::quantize(4, grid, n, k, usize::from(group), rows)?,
        WeightKind::Int8Group { group } => groups::quantize(8, grid, n, k, usize::from(group), rows)?,
    })
}

/// FP8 with one scale for the whole tensor, in every row's place: [`WeightKind::Fp8`] at run time.
///
/// # Errors
/// As [`quantize`].
pub fn fp8_tensor(n: usize, k: usize, rows: &[f32]) -> Result<HostWeight> {
    fp8_with_scale(n, k, rows, fp8_scale(absmax(rows)))
}

/// FP8 with a given scale for all rows: of a tensor that is quantized piece by piece.
///
/// # Errors
/// As [`quantize`]; also when the scale is no positive number.
pub fn fp8_with_scale(n: usize, k: usize, rows: &[f32], scale: f32) -> Result<HostWeight> {
    check(WeightKind::Fp8, n, k, rows)?;
    positive("scale", scale)?;
    let (codes, scales) = rows::fp8_with_scale(n, k, rows, scale);
    Ok(HostWeight::Fp8 { n, k, codes, scales })
}

/// The FP8 scale of values up to a magnitude: magnitude / 448, at least the smallest normal number; 1 for zeros, which any
/// scale represents.
pub fn fp8_scale(magnitude: f32) -> f32 {
    rows::of_magnitude(magnitude, e4m3::MAX)
}

/// FP8 with one scale for the whole tensor and one for all inputs: [`fp8_scale`] of the largest magnitude that calibration
/// saw. Larger inputs saturate.
///
/// # Errors
/// As [`quantize`]; also when `input_scale` is no positive number.
pub fn fp8_static(n: usize, k: usize, rows: &[f32], input_scale: f32) -> Result<HostWeight> {
    check(WeightKind::Fp8Static, n, k, rows)?;
    positive("input scale", input_scale)?;
    let (codes, scales) = rows::fp8_with_scale(n, k, rows, fp8_scale(absmax(rows)));
    Ok(HostWeight::Fp8Static { n, k, codes, scales, input_scale })
}

/// INT8 per row with some columns in BF16: `columns` ascending, at most [`MAX_OUTLIERS`](crate::MAX_OUTLIERS). The scales
/// are those of the other columns.
///
/// # Errors
/// As [`quantize`]; also when `columns` are not ascending inside K, or too many.
pub fn int8_outliers(n: usize, k: usize, rows: &[f32], columns: &[u32]) -> Result<HostWeight> {
    let count = u16::try_from(columns.len()).unwrap_or(u16::MAX);
    check(WeightKind::Int8Outliers { columns: count }, n, k, rows)?;
    if !crate::pack::are_columns(columns, k) {
        return Err(KernelError::Shape(format!("the outlier columns {columns:?} are not ascending inside {k}")));
    }
    Ok(rows::int8_outliers(n, k, rows, columns))
}

fn check(kind: WeightKind, n: usize, k: usize, rows: &[f32]) -> Result<()> {
    WeightSpec { kind, n, k }.validate()?;
    if rows.len() != n * k {
        return Err(KernelError::Shape(format!("{} values are not {n} x {k}", rows.len())));
    }
    match not_finite(rows) {
        None => Ok(()),
        Some(at) => Err(KernelError::Format(format!("row {} column {} is {}", at / k, at % k, rows[at]))),
    }
}

/// The place of the first NaN or infinity.
pub fn not_finite(values: &[f32]) -> Option<usize> {
    // A search that may end at every value is no loop of vectors: pieces are looked at as a whole first.
    const PIECE: usize = 256;
    let sound = |piece: &[f32]| piece.iter().fold(true, |sound, v| sound & v.is_finite());
    let first = values.chunks(PIECE).position(|piece| !sound(piece))? * PIECE;
    values[first..].iter().position(|v| !v.is_finite()).map(|at| first + at)
}

fn positive(what: &str, scale: f32) -> Result<()> {
    if scale.is_finite() && scale > 0.0 {
        return Ok(());
    }
    Err(KernelError::Format(format!("the {what} {scale} is no positive number")))
}

/// The largest magnitude; a NaN is passed over.
pub fn absmax(values: &[f32]) -> f32 {
    fold(values, 0.0, f32::abs, larger)
}

fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

fn smaller(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// `pick` over the `of` of all values and `start`. It is done in lanes, each of which waits for itself only: a maximum is the
/// same in any order.
fn fold(values: &[f32], start: f32, of: impl Fn(f32) -> f32, pick: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = pick(*lane, of(*value));
        }
    }
    let all = rest.iter().fold(start, |all, value| pick(all, of(*value)));
    lanes.iter().fold(all, |all, lane| pick(all, *lane))
}
