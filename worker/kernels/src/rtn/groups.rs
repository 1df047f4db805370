//! The group-wise kinds: `w = row_scale * (scale * code + min)`. One definition for every method that searches codes,
//! scales or minima of its own.

use half::f16;

use super::{absmax, fold, larger, smaller};
use crate::{HostWeight, KernelError, Result};

/// The grid of the group-wise kinds; the others have one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// `w = s (q - 2^(bits-1))`.
    Symmetric,
    /// `w = s (q - z)` with an integer z.
    Integer,
    /// `w = s q + m` with any m.
    Minimum,
}

/// The largest code of 4 or 8 bits.
pub fn top_code(bits: u8) -> f32 {
    f32::from((1u16 << bits) - 1)
}

/// The power of two at or below a row's largest magnitude; 1 for a row of zeros. Group grids are chosen for the row
/// divided by it: that keeps the FP16 scales of any row in their normal range.
pub fn row_scale(row: &[f32]) -> f32 {
    magnitude_scale(absmax(row))
}

/// [`row_scale`] of a row with this largest magnitude.
pub(crate) fn magnitude_scale(magnitude: f32) -> f32 {
    let bits = magnitude.to_bits() & 0x7f80_0000;
    if bits == 0 { if magnitude == 0.0 { 1.0 } else { f32::MIN_POSITIVE } } else { f32::from_bits(bits) }
}

/// Scale and minimum of a group, so that its extremes are on the grid. `values` are divided by the [`row_scale`].
pub fn group_grid(grid: Grid, bits: u8, values: &[f32]) -> (f16, f16) {
    let low = fold(values, f32::INFINITY, |v| v, smaller);
    let high = fold(values, f32::NEG_INFINITY, |v| v, larger);
    range_grid(grid, bits, low, high)
}

/// [`group_grid`] of values between `low` and `high`, both reached.
pub(crate) fn range_grid(grid: Grid, bits: u8, low: f32, high: f32) -> (f16, f16) {
    let top = top_code(bits);
    let middle = f32::from(1u16 << (bits - 1));
    match grid {
        Grid::Symmetric => {
            // The extreme of larger magnitude lands on a code: the grid reaches one step further below zero.
            let extreme = if high.abs() > low.abs() { high } else { low };
            let scale = f16::from_f32(extreme / -middle);
            (scale, f16::from_f32(-middle * scale.to_f32()))
        }
        Grid::Integer => {
            // Zero is on the grid, so the range must hold it.
            let (low, high) = (low.min(0.0), high.max(0.0));
            let scale = f16::from_f32((high - low) / top);
            let zero = if scale.to_f32() > 0.0 { (-low / scale.to_f32()).round().clamp(0.0, top) } else { 0.0 };
            (scale, f16::from_f32(-zero * scale.to_f32()))
        }
        Grid::Minimum => (f16::from_f32((high - low) / top), f16::from_f32(low)),
    }
}

/// The nearest code of a value, 0 to `top` ([`top_code`]); ties to even. Code 0 where the scale is zero.
pub fn code(value: f32, scale: f16, min: f16, top: f32) -> u8 {
    nearest(value, inverse(scale), min.to_f32(), top)
}

fn inverse(scale: f16) -> f32 {
    let scale = scale.to_f32();
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// [`code`] with what a group's values have in common.
#[inline]
fn nearest(value: f32, inverse: f32, min: f32, top: f32) -> u8 {
    // `max` makes 0 of a NaN. From 2^23 on FP32 holds whole numbers only, so that adding it rounds, ties to even, and leaves
    // the code in the lowest bits: no instruction set lacks an addition, some lack a rounding.
    let within = ((value - min) * inverse).max(0.0).min(top);
    (within + 8_388_608.0).to_bits() as u8
}

/// Quantizes rows to the nearest codes of given grids: `row_scales` `[n]`, `scales` and `mins` `[n, k / group]`.
///
/// # Errors
/// [`KernelError::Shape`] when the group does not divide K or the parts have other lengths.
pub fn quantize_with(
    bits: u8,
    group: usize,
    [n, k]: [usize; 2],
    rows: &[f32],
    row_scales: Vec<f32>,
    scales: Vec<f16>,
    mins: Vec<f16>,
) -> Result<HostWeight> {
    let groups = if group > 0 && k.is_multiple_of(group) { n * (k / group) } else { usize::MAX };
    if !matches!(bits, 4 | 8)
        || rows.len() != n * k
        || row_scales.len() != n
        || scales.len() != groups
        || mins.len() != groups
    {
        return Err(KernelError::Shape(format!("the parts do not make {n} x {k} of {bits} bits in groups of {group}")));
    }
    let top = top_code(bits);
    let mut codes = Vec::with_capacity(n * k);
    for (index, values) in rows.chunks_exact(group).enumerate() {
        let (inverse, min, row) = (inverse(scales[index]), mins[index].to_f32(), row_scales[index / (k / group)]);
        codes.extend(values.iter().map(|v| nearest(v / row, inverse, min, top)));
    }
    Ok(HostWeight::Grouped { n, k, bits, group, codes, scales, mins, row_scales })
}

pub(super) fn quantize(bits: u8, grid: Grid, n: usize, k: usize, group: usize, rows: &[f32]) -> Result<HostWeight> {
    let row_scales: Vec<f32> = rows.chunks_exact(k).map(row_scale).collect();
    let mut normal = vec![0.0; group];
    let (scales, mins) = rows
        .chunks_exact(group)
        .enumerate()
        .map(|(index, values)| {
            let row = row_scales[index / (k / group)];
            for (normal, v) in normal.iter_mut().zip(values) {
                *normal = v / row;
            }
            group_grid(grid, bits, &normal)
        })
        .unzip();
    quantize_with(bits, group, [n, k], rows, row_scales, scales, mins)
}
