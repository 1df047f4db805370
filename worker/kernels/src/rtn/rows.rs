//! Kinds with one scale per row.

use super::absmax;
use crate::{HostWeight, format::e4m3};

pub(super) fn fp8(n: usize, k: usize, rows: &[f32]) -> HostWeight {
    let scales = row_scales(rows, k, e4m3::MAX);
    HostWeight::Fp8 { n, k, codes: codes(rows, k, &scales, e4m3::encode), scales }
}

pub(super) fn int8(n: usize, k: usize, rows: &[f32]) -> HostWeight {
    let scales = row_scales(rows, k, 127.0);
    HostWeight::Int8 { n, k, codes: codes(rows, k, &scales, int8_code), scales }
}

fn int8_code(v: f32) -> i8 {
    v.round_ties_even().clamp(-127.0, 127.0) as i8
}

/// `absmax / largest code`, at least the smallest normal number; 1 for zeros, which any scale represents.
fn scale(values: &[f32], largest: f32) -> f32 {
    match absmax(values) {
        0.0 => 1.0,
        top => (top / largest).max(f32::MIN_POSITIVE),
    }
}

fn row_scales(rows: &[f32], k: usize, largest: f32) -> Vec<f32> {
    rows.chunks_exact(k).map(|row| scale(row, largest)).collect()
}

fn codes<T>(rows: &[f32], k: usize, scales: &[f32], encode: impl Fn(f32) -> T) -> Vec<T> {
    let mut codes = Vec::with_capacity(rows.len());
    for (row, scale) in rows.chunks_exact(k).zip(scales) {
        codes.extend(row.iter().map(|v| encode(v / scale)));
    }
    codes
}
