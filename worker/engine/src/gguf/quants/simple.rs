//! The plain formats: blocks of 32 with one FP16 scale, or scale and minimum.
//!
//! `Q8_0`, `Q4_0` and `Q4_1` follow their definition as long as no importance is known; then, and for the formats that stand
//! in for K formats, scale and minimum are searched. Codes are always those nearest under the scale as stored.

use half::f16;

use super::{
    search::{Group, code, peak, residual, symmetric, weights},
    super_block::inverse,
};
use crate::checkpoint::ggml::{BLOCK, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};

type Block = [f32; BLOCK];

pub(super) fn q8_0(x: &Block, importance: Option<&Block>, sigma: f32) -> BlockQ8_0 {
    let d = match importance {
        // The end with one code more is not used.
        None => f16::from_f32(peak(x).abs() / 127.0),
        Some(_) => scale(x, importance, sigma, 128.0, peak(x).abs() / 127.0),
    };
    let inverse = inverse(d.to_f32());
    BlockQ8_0 { d: d.into(), qs: x.map(|v| code(v * inverse, -128.0, 127.0) as i8) }
}

pub(super) fn q4_0(x: &Block, importance: Option<&Block>, sigma: f32) -> BlockQ4_0 {
    let d = match importance {
        None => f16::from_f32(peak(x) / -8.0),
        Some(_) => scale(x, importance, sigma, 8.0, peak(x) / -8.0),
    };
    let inverse = inverse(d.to_f32());
    BlockQ4_0 { d: d.into(), qs: nibbles(&x.map(|v| (code(v * inverse, -8.0, 7.0) + 8.0) as u8)) }
}

pub(super) fn q4_1(x: &Block, importance: Option<&Block>, sigma: f32) -> BlockQ4_1 {
    let (d, m) = match importance {
        None => {
            let (low, high) = x.iter().fold((x[0], x[0]), |(low, high), v| (low.min(*v), high.max(*v)));
            (f16::from_f32((high - low) / 15.0), f16::from_f32(low))
        }
        Some(_) => scale_and_min(x, importance, sigma, 15.0),
    };
    let inverse = inverse(d.to_f32());
    let qs = nibbles(&x.map(|v| code((v - m.to_f32()) * inverse, 0.0, 15.0) as u8));
    BlockQ4_1 { d: d.into(), m: m.into(), qs }
}

pub(super) fn q5_0(x: &Block, importance: Option<&Block>, sigma: f32) -> BlockQ5_0 {
    let d = scale(x, importance, sigma, 16.0, peak(x) / -16.0);
    let inverse = inverse(d.to_f32());
    let codes = x.map(|v| (code(v * inverse, -16.0, 15.0) + 16.0) as u8);
    BlockQ5_0 { d: d.into(), qh: fifth_bits(&codes), qs: nibbles(&codes) }
}

pub(super) fn q5_1(x: &Block, importance: Option<&Block>, sigma: f32) -> BlockQ5_1 {
    let (d, m) = scale_and_min(x, importance, sigma, 31.0);
    let inverse = inverse(d.to_f32());
    let codes = x.map(|v| code((v - m.to_f32()) * inverse, 0.0, 31.0) as u8);
    BlockQ5_1 { d: d.into(), m: m.into(), qh: fifth_bits(&codes), qs: nibbles(&codes) }
}

/// The best scale as stored: the searched one, or the definition's where FP16 happens to hold that better.
fn scale(x: &Block, importance: Option<&Block>, sigma: f32, half: f32, plain: f32) -> f16 {
    let w = weights(x, importance, sigma);
    let [searched, plain] = [symmetric(x, &w, half).scale(), plain].map(f16::from_f32);
    let error = |d: f16| {
        let (d, inverse) = (d.to_f32(), inverse(d.to_f32()));
        residual(x, &w, |v| d * code(v * inverse, -half, half - 1.0))
    };
    if error(plain) < error(searched) { plain } else { searched }
}

/// The best scale and minimum as stored, as for [`scale`]: the minimum is the one for the scale after its rounding.
fn scale_and_min(x: &Block, importance: Option<&Block>, sigma: f32, top: f32) -> (f16, f16) {
    let w = weights(x, importance, sigma);
    let group = Group::new(x, &w, false);
    let fit = group.affine(x, &w, top, f32::INFINITY);
    let d = f16::from_f32(fit.scale);
    let searched = (d, f16::from_f32(group.min_for(fit.codes, d.to_f32(), f32::INFINITY)));
    let plain = (f16::from_f32(group.range() / top), f16::from_f32(group.low()));
    let error = |(d, m): (f16, f16)| {
        let (d, m, inverse) = (d.to_f32(), m.to_f32(), inverse(d.to_f32()));
        residual(x, &w, |v| d * code((v - m) * inverse, 0.0, top) + m)
    };
    if error(plain) < error(searched) { plain } else { searched }
}

/// Byte `j` holds the low bits of element `j` and, above, those of element `j + 16`.
fn nibbles(codes: &[u8; BLOCK]) -> [u8; BLOCK / 2] {
    std::array::from_fn(|j| (codes[j] & 15) | (codes[j + BLOCK / 2] & 15) << 4)
}

/// Bit `j` is the fifth bit of element `j`.
fn fifth_bits(codes: &[u8; BLOCK]) -> [u8; 4] {
    codes.iter().enumerate().fold(0u32, |bits, (j, code)| bits | u32::from(code >> 4 & 1) << j).to_le_bytes()
}
