//! Round to nearest: FP32 rows into the codes of each weight kind.

use half::{bf16, f16};

use crate::{HostWeight, KernelError, Result, WeightKind, WeightSpec, format::e4m3};

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

/// Quantizes `n` rows of `k` values, each to the nearest code.
///
/// # Errors
/// [`KernelError::Shape`] when the kind cannot hold the shape; [`KernelError::Format`] names the row and column of a NaN or
/// infinity.
pub fn quantize(kind: WeightKind, grid: Grid, n: usize, k: usize, rows: &[f32]) -> Result<HostWeight> {
    WeightSpec { kind, n, k }.validate()?;
    if rows.len() != n * k {
        return Err(KernelError::Shape(format!("{} values are not {n} x {k}", rows.len())));
    }
    if let Some(at) = rows.iter().position(|v| !v.is_finite()) {
        return Err(KernelError::Format(format!("row {} column {} is {}", at / k, at % k, rows[at])));
    }
    Ok(match kind {
        WeightKind::Bf16 => HostWeight::Bf16 { n, k, values: rows.iter().map(|v| bf16::from_f32(*v)).collect() },
        WeightKind::Fp8 => {
            let scales = row_scales(rows, k, e4m3::MAX);
            let codes = codes(rows, k, &scales, e4m3::encode);
            HostWeight::Fp8 { n, k, codes, scales }
        }
        WeightKind::Int8 => {
            let scales = row_scales(rows, k, 127.0);
            let codes = codes(rows, k, &scales, |v| v.round_ties_even().clamp(-127.0, 127.0) as i8);
            HostWeight::Int8 { n, k, codes, scales }
        }
        WeightKind::Int4 { group } => grouped(4, grid, n, k, usize::from(group), rows),
        WeightKind::Int8Group { group } => grouped(8, grid, n, k, usize::from(group), rows),
    })
}

fn absmax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// One scale per row: `absmax / largest code`, at least the smallest normal number; 1 for a row of zeros, which any scale
/// represents.
fn row_scales(rows: &[f32], k: usize, largest: f32) -> Vec<f32> {
    let scale = |row| match absmax(row) {
        0.0 => 1.0,
        top => (top / largest).max(f32::MIN_POSITIVE),
    };
    rows.chunks_exact(k).map(scale).collect()
}

fn codes<T>(rows: &[f32], k: usize, scales: &[f32], encode: impl Fn(f32) -> T) -> Vec<T> {
    let mut codes = Vec::with_capacity(rows.len());
    for (row, scale) in rows.chunks_exact(k).zip(scales) {
        codes.extend(row.iter().map(|v| encode(v / scale)));
    }
    codes
}

fn grouped(bits: u8, grid: Grid, n: usize, k: usize, group: usize, rows: &[f32]) -> HostWeight {
    let top = f32::from((1u16 << bits) - 1);
    let middle = f32::from(1u16 << (bits - 1));
    let mut weight = Groups { codes: Vec::with_capacity(n * k), scales: Vec::new(), mins: Vec::new() };
    let mut row_scales = Vec::with_capacity(n);
    for row in rows.chunks_exact(k) {
        let row_scale = power_of_two(absmax(row));
        row_scales.push(row_scale);
        for values in row.chunks_exact(group) {
            let normal: Vec<f32> = values.iter().map(|v| v / row_scale).collect();
            let low = normal.iter().copied().fold(f32::INFINITY, f32::min);
            let high = normal.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (scale, min) = match grid {
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
            };
            weight.push(&normal, scale, min, top);
        }
    }
    let Groups { codes, scales, mins } = weight;
    HostWeight::Grouped { n, k, bits, group, codes, scales, mins, row_scales }
}

struct Groups {
    codes: Vec<u8>,
    scales: Vec<f16>,
    mins: Vec<f16>,
}

impl Groups {
    fn push(&mut self, values: &[f32], scale: f16, min: f16, top: f32) {
        let (s, m) = (scale.to_f32(), min.to_f32());
        let inverse = if s == 0.0 { 0.0 } else { 1.0 / s };
        self.codes.extend(values.iter().map(|v| ((v - m) * inverse).round_ties_even().clamp(0.0, top) as u8));
        self.scales.push(scale);
        self.mins.push(min);
    }
}

/// The power of two at or below a magnitude; 1 for zero. Keeps FP16 scales of any row in their normal range.
fn power_of_two(magnitude: f32) -> f32 {
    let bits = magnitude.to_bits() & 0x7f80_0000;
    if bits == 0 { if magnitude == 0.0 { 1.0 } else { f32::MIN_POSITIVE } } else { f32::from_bits(bits) }
}

impl HostWeight {
    /// Joins weights of the same kind and K, one below the other (Q, K and V become one product).
    ///
    /// # Errors
    /// [`KernelError::Shape`] when kinds or K differ, or there is none.
    pub fn concat_rows(weights: Vec<Self>) -> Result<Self> {
        let mut weights = weights.into_iter();
        let mut first = weights.next().ok_or_else(|| KernelError::Shape("no weights to join".into()))?;
        for next in weights {
            let (a, b) = (first.spec(), next.spec());
            if a.kind != b.kind || a.k != b.k {
                return Err(KernelError::Shape(format!("{a:?} and {b:?} cannot be joined")));
            }
            match (&mut first, next) {
                (Self::Bf16 { n, values, .. }, Self::Bf16 { n: m, values: v, .. }) => {
                    *n += m;
                    values.extend(v);
                }
                (Self::Fp8 { n, codes, scales, .. }, Self::Fp8 { n: m, codes: c, scales: s, .. }) => {
                    *n += m;
                    codes.extend(c);
                    scales.extend(s);
                }
                (Self::Int8 { n, codes, scales, .. }, Self::Int8 { n: m, codes: c, scales: s, .. }) => {
                    *n += m;
                    codes.extend(c);
                    scales.extend(s);
                }
                (
                    Self::Grouped { n, codes, scales, mins, row_scales, .. },
                    Self::Grouped { n: m, codes: c, scales: s, mins: mm, row_scales: r, .. },
                ) => {
                    *n += m;
                    codes.extend(c);
                    scales.extend(s);
                    mins.extend(mm);
                    row_scales.extend(r);
                }
                _ => return Err(KernelError::Shape("weights of different kinds cannot be joined".into())),
            }
        }
        Ok(first)
    }

    /// The values of one row: the definition of each format.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Bf16 { k, values, .. } => {
                for (o, v) in out.iter_mut().zip(&values[row * k..]) {
                    *o = v.to_f32();
                }
            }
            Self::Fp8 { k, codes, scales, .. } => {
                for (o, c) in out.iter_mut().zip(&codes[row * k..]) {
                    *o = scales[row] * e4m3::decode(*c);
                }
            }
            Self::Int8 { k, codes, scales, .. } => {
                for (o, c) in out.iter_mut().zip(&codes[row * k..]) {
                    *o = scales[row] * f32::from(*c);
                }
            }
            Self::Grouped { k, group, codes, scales, mins, row_scales, .. } => {
                for (i, (o, c)) in out.iter_mut().zip(&codes[row * k..(row + 1) * k]).enumerate() {
                    let g = row * (k / group) + i / group;
                    *o = row_scales[row] * (scales[g].to_f32() * f32::from(*c) + mins[g].to_f32());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(n: usize, k: usize) -> impl Strategy<Value = Vec<f32>> {
        (proptest::collection::vec(-1.0f32..1.0, n * k), -30i32..30)
            .prop_map(|(v, e)| v.iter().map(|x| x * 10f32.powi(e)).collect())
    }

    /// Rows of very different size side by side: from near the smallest normal number up to near the largest.
    fn rows_of_sizes(exponents: &[i32], k: usize, seed: u32) -> Vec<f32> {
        let noise = |i: u32| (seed.wrapping_add(i).wrapping_mul(2_654_435_761) >> 8) as f32 / (1u32 << 24) as f32;
        let row = |e: &i32| {
            let size = 2f32.powi(*e);
            (0..k as u32).map(move |i| (noise(i) * 1.9 - 0.95) * size)
        };
        exponents.iter().flat_map(row).collect()
    }

    fn worst_error(weight: &HostWeight, rows: &[f32], k: usize) -> f32 {
        let mut out = vec![0.0; k];
        let mut worst = 0.0f32;
        for (row, expected) in rows.chunks_exact(k).enumerate() {
            weight.dequantize_row(row, &mut out);
            let max = absmax(expected);
            for (a, b) in out.iter().zip(expected) {
                worst = worst.max((a - b).abs() / max.max(f32::MIN_POSITIVE));
            }
        }
        worst
    }

    proptest! {
        #[test]
        fn errors_stay_within_each_formats_step(rows in values(3, 128)) {
            let cases = [
                (WeightKind::Bf16, Grid::Symmetric, 1.0 / 256.0),
                (WeightKind::Fp8, Grid::Symmetric, 1.0 / 16.0),
                (WeightKind::Int8, Grid::Symmetric, 0.5 / 127.0 + 1e-5),
                // Half a step of 2/15 of the range, plus the FP16 rounding of scale and minimum.
                (WeightKind::Int4 { group: 32 }, Grid::Minimum, 1.0 / 15.0 + 0.01),
                (WeightKind::Int4 { group: 64 }, Grid::Integer, 2.0 / 15.0 + 0.01),
                (WeightKind::Int4 { group: 128 }, Grid::Symmetric, 1.0 / 8.0 + 0.01),
                (WeightKind::Int8Group { group: 32 }, Grid::Symmetric, 1.0 / 128.0 + 0.01),
            ];
            for (kind, grid, bound) in cases {
                let weight = quantize(kind, grid, 3, 128, &rows).unwrap();
                let worst = worst_error(&weight, &rows, 128);
                prop_assert!(worst <= bound, "{kind:?} {grid:?}: {worst} > {bound}");
            }
        }
    }

    proptest! {
        #[test]
        fn odd_shapes_and_extreme_rows_are_quantized_within_the_row_formats_steps(
            k in 1usize..70, exponents in proptest::collection::vec(-126i32..127, 1..5), seed in any::<u32>()
        ) {
            let rows = rows_of_sizes(&exponents, k, seed);
            let n = exponents.len();
            for (kind, bound) in
                [(WeightKind::Bf16, 1.0 / 256.0), (WeightKind::Fp8, 1.0 / 16.0), (WeightKind::Int8, 0.5 / 127.0 + 1e-5)]
            {
                let weight = quantize(kind, Grid::Symmetric, n, k, &rows).unwrap();
                let mut out = vec![0.0; k];
                for (row, expected) in rows.chunks_exact(k).enumerate() {
                    weight.dequantize_row(row, &mut out);
                    // A scale cannot be subnormal: below that, rows are off by up to what the smallest scale can tell.
                    let size = absmax(expected).max(f32::MIN_POSITIVE * 448.0);
                    for (found, expected) in out.iter().zip(expected) {
                        prop_assert!(found.is_finite() && (found - expected).abs() <= bound * size, "{kind:?} {found} {expected}");
                    }
                }
            }
        }

        #[test]
        fn groups_of_extreme_rows_stay_within_their_step(exponents in proptest::collection::vec(-120i32..120, 1..5), seed in any::<u32>()) {
            let k = 64;
            let rows = rows_of_sizes(&exponents, k, seed);
            for grid in [Grid::Symmetric, Grid::Integer, Grid::Minimum] {
                let weight = quantize(WeightKind::Int4 { group: 32 }, grid, exponents.len(), k, &rows).unwrap();
                let worst = worst_error(&weight, &rows, k);
                prop_assert!(worst <= 2.0 / 15.0 + 0.02, "{grid:?}: {worst}");
            }
        }
    }

    #[test]
    fn zero_rows_stay_zero() {
        for kind in
            [WeightKind::Fp8, WeightKind::Int8, WeightKind::Int4 { group: 32 }, WeightKind::Int8Group { group: 32 }]
        {
            for grid in [Grid::Symmetric, Grid::Integer, Grid::Minimum] {
                let weight = quantize(kind, grid, 1, 64, &[0.0; 64]).unwrap();
                let mut out = [1.0; 64];
                weight.dequantize_row(0, &mut out);
                assert!(out.iter().all(|v| *v == 0.0), "{kind:?} {grid:?}");
            }
        }
    }

    #[test]
    fn nan_is_refused_by_row_and_column() {
        let mut rows = [0.0; 64];
        rows[33] = f32::NAN;
        let error = quantize(WeightKind::Fp8, Grid::Symmetric, 2, 32, &rows).unwrap_err().to_string();
        assert!(error.contains("row 1 column 1"), "{error}");
    }

    #[test]
    fn a_group_that_does_not_divide_is_refused_with_those_that_do() {
        let error =
            quantize(WeightKind::Int4 { group: 128 }, Grid::Minimum, 1, 576, &[0.0; 576]).unwrap_err().to_string();
        assert!(error.contains("32, 64"), "{error}");
    }
}
