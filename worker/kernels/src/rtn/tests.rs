//! Errors of every kind against its step.

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
    for kind in [WeightKind::Fp8, WeightKind::Int8, WeightKind::Int4 { group: 32 }, WeightKind::Int8Group { group: 32 }]
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
    let error = quantize(WeightKind::Int4 { group: 128 }, Grid::Minimum, 1, 576, &[0.0; 576]).unwrap_err().to_string();
    assert!(error.contains("32, 64"), "{error}");
}

#[test]
fn codes_of_given_grids_are_those_of_the_grids_own_search() {
    let (n, k) = (3, 128);
    let rows = rows_of_sizes(&[-20, 0, 9], k, 11);
    for (bits, group) in [(4, 32), (8, 64)] {
        let kind = if bits == 4 {
            WeightKind::Int4 { group: group as u16 }
        } else {
            WeightKind::Int8Group { group: group as u16 }
        };
        for grid in [Grid::Symmetric, Grid::Integer, Grid::Minimum] {
            let found = quantize(kind, grid, n, k, &rows).unwrap();
            let row_scales: Vec<f32> = rows.chunks_exact(k).map(row_scale).collect();
            let (mut scales, mut mins, mut codes) = (Vec::new(), Vec::new(), Vec::new());
            for (row, scale) in rows.chunks_exact(k).zip(&row_scales) {
                for values in row.chunks_exact(group) {
                    let normal: Vec<f32> = values.iter().map(|v| v / scale).collect();
                    let (s, m) = group_grid(grid, bits, &normal);
                    codes.extend(normal.iter().map(|v| code(*v, s, m, top_code(bits))));
                    scales.push(s);
                    mins.push(m);
                }
            }
            let given = quantize_with(bits, group, [n, k], &rows, row_scales, scales, mins).unwrap();
            assert_eq!(found, given, "{bits} bits {grid:?}");
            assert!(matches!(given, HostWeight::Grouped { codes: c, .. } if c == codes));
        }
    }
    assert!(quantize_with(4, 48, [n, k], &rows, vec![1.0; n], vec![], vec![]).is_err());
    assert!(quantize_with(4, 0, [n, k], &rows, vec![1.0; n], vec![], vec![]).is_err());
}
