//! What rounding in groups makes of rows, for searches that try it many times: the values of `rtn::quantize` and
//! `HostWeight::dequantize_row`, bit for bit, without codes in between.

use super::{device::Matrix, isa::per_isa};
use crate::{
    GroupRounding, KernelError, Result,
    rtn::{Grid, magnitude_scale, range_grid, top_code},
};

/// Lanes of a reduction: a whole AVX-512 register of FP32.
const LANES: usize = 16;

/// A [`GroupRounding`] whose shapes were checked.
#[derive(Clone, Copy)]
pub(super) struct How<'a> {
    k: usize,
    bits: u8,
    group: usize,
    grid: Grid,
    scales: Option<&'a [f32]>,
    cut: f32,
}

impl<'a> How<'a> {
    /// Of rows of `k`.
    ///
    /// # Errors
    /// A group that does not divide K, bits that no kind has, a part that is none.
    pub(super) fn new(rounding: &GroupRounding<'a, Matrix>, k: usize) -> Result<Self> {
        let &GroupRounding { bits, group, grid, scales, cut } = rounding;
        let fits = matches!(bits, 4 | 8) && group > 0 && k.is_multiple_of(group);
        let is_part = cut > 0.0 && cut <= 1.0;
        if !(fits && is_part) {
            return Err(KernelError::Shape(format!("{bits} bits in groups of {group}, cut to {cut}, of {k} columns")));
        }
        Ok(Self { k, bits, group, grid, scales: scales.map(|s| &s.data[..k]), cut })
    }
}

per_isa! {
    /// `out = Q(W s) / s - W`, row by row; both are rows of `how.k`.
    ///
    /// # Safety
    /// The instruction set is available.
    pub(super) unsafe fn changes(weights: &[f32], how: How<'_>, out: &mut [f32]) = all_rows;
}

#[inline(always)]
fn all_rows(weights: &[f32], how: How<'_>, out: &mut [f32]) {
    for (row, out) in weights.chunks_exact(how.k).zip(out.chunks_exact_mut(how.k)) {
        match how.scales {
            Some(scales) => out.iter_mut().zip(row).zip(scales).for_each(|((o, w), s)| *o = w * s),
            None => out.copy_from_slice(row),
        }
        if how.cut < 1.0 {
            for values in out.chunks_exact_mut(how.group) {
                let (low, high) = range(values);
                let limit = high.max(-low) * how.cut;
                for v in values {
                    *v = v.clamp(-limit, limit);
                }
            }
        }
        let (low, high) = range(out);
        let unit = magnitude_scale(high.max(-low));
        for values in out.chunks_exact_mut(how.group) {
            round(values, unit, how);
        }
        if let Some(scales) = how.scales {
            out.iter_mut().zip(scales).for_each(|(o, s)| *o /= s);
        }
        out.iter_mut().zip(row).for_each(|(o, w)| *o -= w);
    }
}

/// A group's values at the nearest points of its grid; `unit` is the row's scale.
#[inline(always)]
fn round(values: &mut [f32], unit: f32, how: How<'_>) {
    for v in &mut *values {
        *v /= unit;
    }
    let (low, high) = range(values);
    let (scale, min) = range_grid(how.grid, how.bits, low, high);
    let (scale, min, top) = (scale.to_f32(), min.to_f32(), top_code(how.bits));
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    for v in values {
        let code = ((*v - min) * inverse).round_ties_even().clamp(0.0, top);
        *v = unit * (scale * code + min);
    }
}

/// Least and largest value.
#[inline(always)]
fn range(values: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let (whole, rest) = values.as_chunks::<LANES>();
    // Comparisons, not `min` and `max`, whose care for NaN keeps compilers from one instruction each.
    for chunk in whole {
        for ((l, h), v) in low.iter_mut().zip(&mut high).zip(chunk) {
            *l = if *v < *l { *v } else { *l };
            *h = if *v > *h { *v } else { *h };
        }
    }
    let least = low.iter().chain(rest).fold(f32::INFINITY, |m, v| m.min(*v));
    let most = high.iter().chain(rest).fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    (least, most)
}
