//! Kinds with one scale per row, tensor or block.

use half::bf16;

use super::absmax;
use crate::{FP8_BLOCK, HostWeight, format::e4m3};

pub(super) fn fp8(n: usize, k: usize, rows: &[f32]) -> HostWeight {
    let scales = row_scales(rows, k, e4m3::MAX);
    HostWeight::Fp8 { n, k, codes: codes(rows, k, &scales, e4m3::encode), scales }
}

/// Codes, and the scale for every row.
pub(super) fn fp8_with_scale(n: usize, k: usize, rows: &[f32], scale: f32) -> (Vec<u8>, Vec<f32>) {
    let scales = vec![scale; n];
    (codes(rows, k, &scales, e4m3::encode), scales)
}

pub(super) fn fp8_block(n: usize, k: usize, rows: &[f32]) -> HostWeight {
    let blocks = k / FP8_BLOCK;
    let (mut codes, mut scales) = (Vec::with_capacity(n * k), Vec::with_capacity(n * blocks));
    for band in rows.chunks(FP8_BLOCK * k) {
        let mut of_band = vec![0.0f32; blocks];
        for (index, values) in band.chunks_exact(FP8_BLOCK).enumerate() {
            let top = &mut of_band[index % blocks];
            *top = top.max(absmax(values));
        }
        for scale in &mut of_band {
            *scale = of_magnitude(*scale, e4m3::MAX);
        }
        for row in band.chunks_exact(k) {
            for (values, scale) in row.chunks_exact(FP8_BLOCK).zip(&of_band) {
                codes.extend(values.iter().map(|v| e4m3::encode(v / scale)));
            }
            scales.extend_from_slice(&of_band);
        }
    }
    HostWeight::Fp8Block { n, k, codes, scales }
}

pub(super) fn int8_outliers(n: usize, k: usize, rows: &[f32], columns: &[u32]) -> HostWeight {
    let mut outliers = Vec::with_capacity(n * columns.len());
    let mut rest = rows.to_vec();
    for row in rest.chunks_exact_mut(k) {
        outliers.extend(columns.iter().map(|c| bf16::from_f32(std::mem::take(&mut row[*c as usize]))));
    }
    let scales = row_scales(&rest, k, 127.0);
    let codes = codes(&rest, k, &scales, int8_code);
    HostWeight::Int8Outliers { n, k, codes, scales, columns: columns.to_vec(), outliers }
}

pub(super) fn int8(n: usize, k: usize, rows: &[f32]) -> HostWeight {
    let scales = row_scales(rows, k, 127.0);
    HostWeight::Int8 { n, k, codes: codes(rows, k, &scales, int8_code), scales }
}

fn int8_code(v: f32) -> i8 {
    // At 1.5 * 2^23 FP32 holds whole numbers only: adding it rounds, ties to even, and leaves the code in the lowest bits.
    (v.clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as i8
}

/// `magnitude / largest code`, at least the smallest normal number; 1 for zeros, which any scale represents.
pub(super) fn of_magnitude(magnitude: f32, largest: f32) -> f32 {
    if magnitude == 0.0 { 1.0 } else { (magnitude / largest).max(f32::MIN_POSITIVE) }
}

fn row_scales(rows: &[f32], k: usize, largest: f32) -> Vec<f32> {
    rows.chunks_exact(k).map(|row| of_magnitude(absmax(row), largest)).collect()
}

fn codes<T>(rows: &[f32], k: usize, scales: &[f32], encode: impl Fn(f32) -> T) -> Vec<T> {
    let mut codes = Vec::with_capacity(rows.len());
    for (row, scale) in rows.chunks_exact(k).zip(scales) {
        codes.extend(row.iter().map(|v| encode(v / scale)));
    }
    codes
}
