//! The ggml block formats, dequantized by the row. `crate::gguf` quantizes into them.
//!
//! A block is a run of columns of one row: 32 in the plain formats, 256 in the K formats. All numbers are little-endian.
//! Scales are kept as bytes so that every block has alignment 1: a mapped file promises no more than its own alignment.
//!
//! | format | bytes / elements | value |
//! |---|---|---|
//! | `Q8_0` | 34 / 32 | `d q`, q signed |
//! | `Q4_0`, `Q5_0` | 18, 22 / 32 | `d (q - 8)`, `d (q - 16)` |
//! | `Q4_1`, `Q5_1` | 20, 24 / 32 | `d q + m` |
//! | `Q4_K`, `Q5_K` | 144, 176 / 256 | `d sc q - dmin mn`, 8 groups of 32 with 6-bit `sc` and `mn` |
//! | `Q6_K` | 210 / 256 | `d sc (q - 32)`, 16 groups of 16 with 8-bit `sc` |

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::SourceDtype;

/// Elements of a plain block.
pub(crate) const BLOCK: usize = 32;
/// Elements of a K block.
pub(crate) const SUPER_BLOCK: usize = 256;

/// An FP16 number as stored.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Half([u8; 2]);

impl Half {
    /// The value as FP16.
    pub(crate) fn f16(self) -> f16 {
        f16::from_le_bytes(self.0)
    }

    fn get(self) -> f32 {
        self.f16().to_f32()
    }
}

impl From<f16> for Half {
    fn from(value: f16) -> Self {
        Self(value.to_le_bytes())
    }
}

/// 32 signed bytes.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ8_0 {
    pub(crate) d: Half,
    pub(crate) qs: [i8; BLOCK],
}
const _: () = assert!(size_of::<BlockQ8_0>() == 34);

/// 32 nibbles: byte `j` holds element `j` in its low half and element `j + 16` in its high half.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4_0 {
    pub(crate) d: Half,
    pub(crate) qs: [u8; BLOCK / 2],
}
const _: () = assert!(size_of::<BlockQ4_0>() == 18);

/// As [`BlockQ4_0`], with a free minimum.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4_1 {
    pub(crate) d: Half,
    pub(crate) m: Half,
    pub(crate) qs: [u8; BLOCK / 2],
}
const _: () = assert!(size_of::<BlockQ4_1>() == 20);

/// Nibbles as in [`BlockQ4_0`], the fifth bit of element `j` in bit `j` of `qh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5_0 {
    pub(crate) d: Half,
    pub(crate) qh: [u8; 4],
    pub(crate) qs: [u8; BLOCK / 2],
}
const _: () = assert!(size_of::<BlockQ5_0>() == 22);

/// As [`BlockQ5_0`], with a free minimum.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5_1 {
    pub(crate) d: Half,
    pub(crate) m: Half,
    pub(crate) qh: [u8; 4],
    pub(crate) qs: [u8; BLOCK / 2],
}
const _: () = assert!(size_of::<BlockQ5_1>() == 24);

/// Eight groups of 32: each 32 bytes of `qs` hold one group in the low nibbles and the next in the high ones.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4K {
    pub(crate) d: Half,
    pub(crate) dmin: Half,
    pub(crate) scales: [u8; 12],
    pub(crate) qs: [u8; SUPER_BLOCK / 2],
}
const _: () = assert!(size_of::<BlockQ4K>() == 144);

/// As [`BlockQ4K`], the fifth bit of element `l` of group `g` in bit `g` of `qh[l]`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5K {
    pub(crate) d: Half,
    pub(crate) dmin: Half,
    pub(crate) scales: [u8; 12],
    pub(crate) qh: [u8; SUPER_BLOCK / 8],
    pub(crate) qs: [u8; SUPER_BLOCK / 2],
}
const _: () = assert!(size_of::<BlockQ5K>() == 176);

/// Two halves of 128 elements; low four bits in `ql`, high two in `qh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ6K {
    pub(crate) ql: [u8; SUPER_BLOCK / 2],
    pub(crate) qh: [u8; SUPER_BLOCK / 4],
    pub(crate) scales: [i8; SUPER_BLOCK / 16],
    pub(crate) d: Half,
}
const _: () = assert!(size_of::<BlockQ6K>() == 210);

impl SourceDtype {
    /// Elements per block; 1 for the plain number formats.
    pub fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => BLOCK,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => SUPER_BLOCK,
        }
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => size_of::<BlockQ8_0>(),
            Self::Q4_0 => size_of::<BlockQ4_0>(),
            Self::Q4_1 => size_of::<BlockQ4_1>(),
            Self::Q5_0 => size_of::<BlockQ5_0>(),
            Self::Q5_1 => size_of::<BlockQ5_1>(),
            Self::Q4_K => size_of::<BlockQ4K>(),
            Self::Q5_K => size_of::<BlockQ5K>(),
            Self::Q6_K => size_of::<BlockQ6K>(),
        }
    }

    /// Bytes of a row of `cols` elements; `None` when blocks do not divide it or the number overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_elements()) {
            return None;
        }
        (cols / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// Name as in GGUF and safetensors.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }
}

/// Dequantizes one row. `None` when `bytes` is not exactly `out.len()` elements of `dtype`.
pub(crate) fn dequantize_row(dtype: SourceDtype, bytes: &[u8], out: &mut [f32]) -> Option<()> {
    if dtype.row_bytes(out.len())? != bytes.len() {
        return None;
    }
    match dtype {
        SourceDtype::F32 => each(bytes, out, |v: &[u8; 4], y: &mut [f32; 1]| y[0] = f32::from_le_bytes(*v)),
        SourceDtype::F16 => each(bytes, out, |v: &Half, y: &mut [f32; 1]| y[0] = v.get()),
        SourceDtype::Bf16 => each(bytes, out, |v: &[u8; 2], y: &mut [f32; 1]| y[0] = bf16::from_le_bytes(*v).to_f32()),
        SourceDtype::Q8_0 => each(bytes, out, q8_0),
        SourceDtype::Q4_0 => {
            each(bytes, out, |b: &BlockQ4_0, y| nibbles(&b.qs, y, |_, q| b.d.get() * (q as f32 - 8.0)))
        }
        SourceDtype::Q4_1 => {
            each(bytes, out, |b: &BlockQ4_1, y| nibbles(&b.qs, y, |_, q| b.d.get() * q as f32 + b.m.get()))
        }
        SourceDtype::Q5_0 => each(bytes, out, |b: &BlockQ5_0, y| {
            nibbles(&b.qs, y, |j, q| b.d.get() * (fifth(b.qh, j, q) as f32 - 16.0));
        }),
        SourceDtype::Q5_1 => each(bytes, out, |b: &BlockQ5_1, y| {
            nibbles(&b.qs, y, |j, q| b.d.get() * fifth(b.qh, j, q) as f32 + b.m.get());
        }),
        SourceDtype::Q4_K => each(bytes, out, q4_k),
        SourceDtype::Q5_K => each(bytes, out, q5_k),
        SourceDtype::Q6_K => each(bytes, out, q6_k),
    }
}

/// Runs `decode` over blocks and their `N` outputs.
fn each<B: Pod, const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&B, &mut [f32; N])) -> Option<()> {
    let blocks: &[B] = bytemuck::try_cast_slice(bytes).ok()?;
    let (out, rest) = out.as_chunks_mut::<N>();
    if blocks.len() != out.len() || !rest.is_empty() {
        return None;
    }
    for (block, y) in blocks.iter().zip(out) {
        decode(block, y);
    }
    Some(())
}

fn q8_0(b: &BlockQ8_0, y: &mut [f32; BLOCK]) {
    let d = b.d.get();
    for (y, q) in y.iter_mut().zip(b.qs) {
        *y = d * f32::from(q);
    }
}

fn nibbles(qs: &[u8; BLOCK / 2], y: &mut [f32; BLOCK], value: impl Fn(usize, u8) -> f32) {
    for (j, q) in qs.iter().enumerate() {
        y[j] = value(j, q & 15);
        y[j + BLOCK / 2] = value(j + BLOCK / 2, q >> 4);
    }
}

fn fifth(qh: [u8; 4], j: usize, low: u8) -> u8 {
    low | ((u32::from_le_bytes(qh) >> j & 1) as u8) << 4
}

/// The 6-bit scale and minimum of group `g` (0..8): the first four lie whole in the low six bits of bytes 0-3 and 4-7;
/// the last four have their low nibbles in bytes 8-11 and their high two bits above those of the first four.
fn scale_min(s: &[u8; 12], g: usize) -> (f32, f32) {
    let (scale, min) = if g < 4 {
        (s[g] & 63, s[g + 4] & 63)
    } else {
        ((s[g + 4] & 15) | (s[g - 4] >> 6) << 4, (s[g + 4] >> 4) | (s[g] >> 6) << 4)
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(b: &BlockQ4K, y: &mut [f32; SUPER_BLOCK]) {
    let (d, dmin) = (b.d.get(), b.dmin.get());
    for g in 0..8 {
        let (scale, min) = scale_min(&b.scales, g);
        let (scale, min) = (d * scale, dmin * min);
        for l in 0..32 {
            let q = b.qs[g / 2 * 32 + l] >> (g % 2 * 4) & 15;
            y[g * 32 + l] = scale * f32::from(q) - min;
        }
    }
}

fn q5_k(b: &BlockQ5K, y: &mut [f32; SUPER_BLOCK]) {
    let (d, dmin) = (b.d.get(), b.dmin.get());
    for g in 0..8 {
        let (scale, min) = scale_min(&b.scales, g);
        let (scale, min) = (d * scale, dmin * min);
        for l in 0..32 {
            let q = (b.qs[g / 2 * 32 + l] >> (g % 2 * 4) & 15) | (b.qh[l] >> g & 1) << 4;
            y[g * 32 + l] = scale * f32::from(q) - min;
        }
    }
}

fn q6_k(b: &BlockQ6K, y: &mut [f32; SUPER_BLOCK]) {
    let d = b.d.get();
    for (i, y) in y.iter_mut().enumerate() {
        // Within a half, quarter q of 32 elements takes nibble q/2 of byte (q % 2) * 32 + l and bits 2q of qh[l].
        let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let low = b.ql[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
        let high = b.qh[half * 32 + l] >> (quarter * 2) & 3;
        let q = i32::from(low | high << 4) - 32;
        *y = d * f32::from(b.scales[i / 16]) * q as f32;
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// Made by `tests/golden/make_ggml.py`.
    const GOLDEN: &str = include_str!("../../tests/data/ggml.json");

    #[derive(Deserialize)]
    struct Case {
        dtype: String,
        bytes: String,
        values: Vec<f32>,
    }

    const BLOCKED: [SourceDtype; 8] = [
        SourceDtype::Q8_0,
        SourceDtype::Q4_0,
        SourceDtype::Q4_1,
        SourceDtype::Q5_0,
        SourceDtype::Q5_1,
        SourceDtype::Q4_K,
        SourceDtype::Q5_K,
        SourceDtype::Q6_K,
    ];

    #[test]
    fn every_block_format_gives_the_values_of_the_gguf_package() {
        let cases: Vec<Case> = serde_json::from_str(GOLDEN).unwrap();
        assert_eq!(cases.len(), BLOCKED.len());
        for case in cases {
            let dtype = BLOCKED.into_iter().find(|d| d.name() == case.dtype).unwrap();
            let bytes: Vec<u8> = (0..case.bytes.len() / 2)
                .map(|i| u8::from_str_radix(&case.bytes[2 * i..2 * i + 2], 16).unwrap())
                .collect();
            let mut values = vec![0.0; case.values.len()];
            dequantize_row(dtype, &bytes, &mut values).unwrap();
            for (i, (ours, theirs)) in values.iter().zip(&case.values).enumerate() {
                // The order of two multiplications may differ.
                assert!((ours - theirs).abs() <= 1e-6 * theirs.abs(), "{} {i}: {ours} {theirs}", case.dtype);
            }
        }
    }

    #[test]
    fn plain_numbers_need_no_alignment() {
        let bytes: Vec<u8> = [0u8].into_iter().chain(1.5f32.to_le_bytes()).chain((-2.0f32).to_le_bytes()).collect();
        let mut out = [0.0; 2];
        dequantize_row(SourceDtype::F32, &bytes[1..], &mut out).unwrap();
        assert_eq!(out.map(f32::to_bits), [1.5f32, -2.0].map(f32::to_bits));
        let bytes: Vec<u8> = [0u8].into_iter().chain(bf16::from_f32(1.5).to_le_bytes()).collect();
        dequantize_row(SourceDtype::Bf16, &bytes[1..], &mut out[..1]).unwrap();
        assert_eq!(out.map(f32::to_bits), [1.5f32, -2.0].map(f32::to_bits));
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        for dtype in BLOCKED {
            let (elements, bytes) = (dtype.block_elements(), vec![0; dtype.block_bytes()]);
            assert_eq!(dequantize_row(dtype, &bytes, &mut vec![0.0; elements]), Some(()));
            assert_eq!(dequantize_row(dtype, &bytes, &mut vec![0.0; elements - 1]), None);
            assert_eq!(dequantize_row(dtype, &bytes[1..], &mut vec![0.0; elements]), None);
        }
        assert_eq!(SourceDtype::F32.row_bytes(usize::MAX / 2), None);
        assert_eq!(SourceDtype::Q8_0.row_bytes(usize::MAX & !31), None);
    }
}
