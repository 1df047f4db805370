//! Round to nearest: FP32 rows into the codes of each weight kind.
//!
//! | module | what it holds |
//! |---|---|
//! | `rows` | the kinds with a scale per row |
//! | `groups` | the kinds with a scale and a minimum per group, in pieces that other methods use too |

use half::bf16;

use crate::{HostWeight, KernelError, Result, WeightKind, WeightSpec};

mod groups;
mod rows;
#[cfg(test)]
mod tests;

pub use groups::{Grid, code, group_grid, quantize_with, row_scale, top_code};

/// Quantizes `n` rows of `k` values, each to the nearest code.
///
/// # Errors
/// [`KernelError::Shape`] when the kind cannot hold the shape; [`KernelError::Format`] names the row and column of a NaN or
/// infinity.
pub fn quantize(kind: WeightKind, grid: Grid, n: usize, k: usize, rows: &[f32]) -> Result<HostWeight> {
    check(kind, n, k, rows)?;
    Ok(match kind {
        WeightKind::Bf16 => HostWeight::Bf16 { n, k, values: rows.iter().map(|v| bf16::from_f32(*v)).collect() },
        WeightKind::Fp8 => rows::fp8(n, k, rows),
        WeightKind::Int8 => rows::int8(n, k, rows),
        WeightKind::Int4 { group } => groups::quantize(4, grid, n, k, usize::from(group), rows)?,
        WeightKind::Int8Group { group } => groups::quantize(8, grid, n, k, usize::from(group), rows)?,
    })
}

fn check(kind: WeightKind, n: usize, k: usize, rows: &[f32]) -> Result<()> {
    WeightSpec { kind, n, k }.validate()?;
    if rows.len() != n * k {
        return Err(KernelError::Shape(format!("{} values are not {n} x {k}", rows.len())));
    }
    match rows.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => Err(KernelError::Format(format!("row {} column {} is {}", at / k, at % k, rows[at]))),
    }
}

fn absmax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}
