//! The GPU's weight layouts: pure packing, no device.
//!
//! ```text
//! Bf16, Fp8, Fp8Static, Fp8Block, Int8(Outliers)    codes [N][K] row-major, as cuBLASLt (TN) and the small kernels read them
//! Int4, Int8Group                                   codes in the order of mma fragments, see below
//! ```
//!
//! N is padded to 32 (what a block of the small kernels computes) and K of the row-major kinds to 16 (a piece of 16 bytes, and
//! what cuBLASLt asks of FP8 and INT8), with zeros. Parts start at multiples of 256 bytes.
//!
//! **Fragment order.** A *strip* is 32 outputs, a *unit* 32 inputs of a strip and 512 bytes: lane `4 g + t` of a warp owns 16 of
//! them, word `j` of which holds the inputs `8 t .. 8 t + 7` of output `g + 8 j`:
//!
//! ```text
//! codes   [strip][unit][plane][lane][j] u32       the nibble of input i at bit 4 (i / 2) + 16 (i % 2)
//! scales  [strip][group][g][4 scales, 4 minima]   FP16, for the outputs g + 8 j
//! rows    [N] FP32                                row scales
//! ```
//!
//! Eight-bit codes are two planes of nibbles, the lower one first.

use std::ops::Range;

use half::f16;

use crate::{AlignedBytes, FP8_BLOCK, HostWeight, KernelError, Result, WeightKind, WeightSpec, pack};

/// Outputs of a strip; N is padded to it.
pub const STRIP: usize = 32;
/// Inputs of a unit.
pub const UNIT: usize = 32;
/// Bytes of one plane of a unit.
pub const UNIT_BYTES: usize = STRIP * UNIT / 2;
/// Bytes of a group's scales and minima of a strip.
pub const AFFINE_BYTES: usize = STRIP * 4;
/// K of the row-major kinds is padded to it.
pub const ROW_PIECE: usize = 16;
/// Parts start at multiples of it: a copy's and a load's best alignment.
pub const ALIGNMENT: usize = 256;

/// A part of a packed weight, in bytes. Empty where the kind has no such part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Where it starts, a multiple of [`ALIGNMENT`].
    pub offset: usize,
    /// Its length, without padding.
    pub len: usize,
}

impl Part {
    /// Where it is.
    pub fn range(self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// Where the parts of a packed weight are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuLayout {
    /// Kind and shape.
    pub spec: WeightSpec,
    /// N padded to [`STRIP`].
    pub n: usize,
    /// Elements from row to row: K, padded to [`ROW_PIECE`] in the row-major kinds.
    pub k: usize,
    /// The codes.
    pub codes: Part,
    /// Scales and minima of groups (FP16), or the scales of FP8 blocks `[n][K / 128]` (FP32).
    pub scales: Part,
    /// Scales of rows, FP32 `[n]`. Zero in the padding.
    pub rows: Part,
    /// The outlier columns as BF16 `[n][outlier_k]`, row-major.
    pub outliers: Part,
    /// The number of outlier columns, padded to [`ROW_PIECE`].
    pub outlier_k: usize,
    /// Which columns they are, u32, ascending.
    pub columns: Part,
    /// Bytes of all parts, a multiple of [`ALIGNMENT`].
    pub len: usize,
}

/// Hands out consecutive parts.
#[derive(Default)]
struct Places {
    end: usize,
}

impl Places {
    fn part(&mut self, len: usize) -> Part {
        let offset = if len == 0 { 0 } else { self.end };
        self.end += len.next_multiple_of(ALIGNMENT);
        Part { offset, len }
    }
}

impl GpuLayout {
    /// The layout of a weight.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when the kind cannot hold the shape.
    pub fn new(spec: &WeightSpec) -> Result<Self> {
        spec.validate()?;
        let n = spec.n.next_multiple_of(STRIP);
        let padded = spec.k.next_multiple_of(ROW_PIECE);
        let group_scales = |group: u16| n / STRIP * (spec.k / usize::from(group)) * AFFINE_BYTES;
        let (k, codes, scales, row_scales) = match spec.kind {
            WeightKind::Bf16 => (padded, n * padded * 2, 0, 0),
            WeightKind::Fp8Block => (padded, n * padded, n * (spec.k / FP8_BLOCK) * 4, 0),
            WeightKind::Fp8 | WeightKind::Fp8Static | WeightKind::Int8 | WeightKind::Int8Outliers { .. } => {
                (padded, n * padded, 0, n * 4)
            }
            WeightKind::Int4 { group } => (spec.k, n * spec.k / 2, group_scales(group), n * 4),
            WeightKind::Int8Group { group } => (spec.k, n * spec.k, group_scales(group), n * 4),
        };
        let columns = if let WeightKind::Int8Outliers { columns } = spec.kind { usize::from(columns) } else { 0 };
        let outlier_k = columns.next_multiple_of(ROW_PIECE);
        let mut places = Places::default();
        Ok(Self {
            spec: *spec,
            n,
            k,
            codes: places.part(codes),
            scales: places.part(scales),
            rows: places.part(row_scales),
            outliers: places.part(n * outlier_k * 2),
            outlier_k,
            columns: places.part(columns * 4),
            len: places.end,
        })
    }

    /// Planes of nibbles of the group-wise kinds; 0 of the others.
    pub fn planes(&self) -> usize {
        match self.spec.kind {
            WeightKind::Int4 { .. } => 1,
            WeightKind::Int8Group { .. } => 2,
            _ => 0,
        }
    }

    /// Byte of the codes where input `column` of output `row` is (its lower nibble for the group-wise kinds), and the shift of
    /// the nibble.
    pub fn code_at(&self, row: usize, column: usize) -> (usize, u32) {
        match self.spec.kind {
            WeightKind::Bf16 => ((row * self.k + column) * 2, 0),
            WeightKind::Int4 { .. } | WeightKind::Int8Group { .. } => {
                let unit = row / STRIP * (self.k / UNIT) + column / UNIT;
                let lane = row % 8 * 4 + column % UNIT / 8;
                let word = (unit * self.planes() * UNIT_BYTES) + (lane * 4 + row % STRIP / 8) * 4;
                // Inputs 2 i and 2 i + 1 are 16 bits apart: in the two halves of the word.
                (word + column % 2 * 2 + column % 8 / 4, (column % 4 / 2 * 4) as u32)
            }
            _ => (row * self.k + column, 0),
        }
    }

    /// Byte of the scales where the scale of a row's group (or FP8 block) is; a group's minimum is [`Self::MIN_BEHIND`] later.
    pub fn scale_at(&self, row: usize, group: usize) -> usize {
        match self.spec.kind {
            WeightKind::Int4 { group: size } | WeightKind::Int8Group { group: size } => {
                let strip = row / STRIP * (self.k / usize::from(size)) + group;
                strip * AFFINE_BYTES + row % 8 * 16 + row % STRIP / 8 * 2
            }
            _ => (row * (self.spec.k / FP8_BLOCK) + group) * 4,
        }
    }

    /// Bytes from a scale to its minimum.
    pub const MIN_BEHIND: usize = 8;
}

/// Bytes of a packed weight.
///
/// # Errors
/// As [`GpuLayout::new`].
pub fn gpu_len(spec: &WeightSpec) -> Result<usize> {
    Ok(GpuLayout::new(spec)?.len)
}

/// Packs a weight for the GPU. A weight in the CPU's layout comes here by [`crate::PackedWeight::unpack`].
///
/// # Errors
/// As [`pack_into`], but for the length.
pub fn pack_gpu(weight: &HostWeight) -> Result<(GpuLayout, AlignedBytes)> {
    let mut bytes = AlignedBytes::zeroed(gpu_len(&weight.spec())?);
    let layout = pack_into(weight, &mut bytes)?;
    Ok((layout, bytes))
}

/// Packs a weight into memory that is there (page-locked, for a copy to the device), all of which is written.
///
/// # Errors
/// [`KernelError::Shape`] when the parts of the weight do not have the lengths that its shape says, or `bytes` has not
/// [`gpu_len`] of it.
pub fn pack_into(weight: &HostWeight, bytes: &mut [u8]) -> Result<GpuLayout> {
    let layout = GpuLayout::new(&weight.spec())?;
    pack::check_lengths(weight)?;
    if bytes.len() != layout.len {
        return Err(KernelError::Shape(format!("{} bytes do not hold {:?}: {}", bytes.len(), layout.spec, layout.len)));
    }
    bytes.fill(0);
    match weight {
        HostWeight::Bf16 { k, values, .. } => {
            put_rows(&mut bytes[layout.codes.range()], layout.k * 2, bytemuck::cast_slice(values), k * 2);
        }
        HostWeight::Fp8 { k, codes, scales, .. } | HostWeight::Fp8Static { k, codes, scales, .. } => {
            put_rows(&mut bytes[layout.codes.range()], layout.k, codes, *k);
            put_floats(&mut bytes[layout.rows.range()], scales);
        }
        HostWeight::Fp8Block { k, codes, scales, .. } => {
            put_rows(&mut bytes[layout.codes.range()], layout.k, codes, *k);
            put_floats(&mut bytes[layout.scales.range()], scales);
        }
        HostWeight::Int8 { k, codes, scales, .. } => {
            put_rows(&mut bytes[layout.codes.range()], layout.k, bytemuck::cast_slice(codes), *k);
            put_floats(&mut bytes[layout.rows.range()], scales);
        }
        HostWeight::Int8Outliers { k, codes, scales, columns, outliers, .. } => {
            put_rows(&mut bytes[layout.codes.range()], layout.k, bytemuck::cast_slice(codes), *k);
            put_floats(&mut bytes[layout.rows.range()], scales);
            let values = bytemuck::cast_slice(outliers);
            put_rows(&mut bytes[layout.outliers.range()], layout.outlier_k * 2, values, columns.len() * 2);
            bytes[layout.columns.range()].copy_from_slice(bytemuck::cast_slice(columns));
        }
        HostWeight::Grouped { k, group, codes, scales, mins, row_scales, .. } => {
            put_codes(&layout, &mut bytes[layout.codes.range()], codes, *k);
            put_groups(&layout, &mut bytes[layout.scales.range()], scales, mins, k / group);
            put_floats(&mut bytes[layout.rows.range()], row_scales);
        }
    }
    Ok(layout)
}

/// Rows of `width` bytes to rows of `pitch` bytes.
fn put_rows(to: &mut [u8], pitch: usize, rows: &[u8], width: usize) {
    if width == 0 {
        return;
    }
    for (to, row) in to.chunks_exact_mut(pitch).zip(rows.chunks_exact(width)) {
        to[..width].copy_from_slice(row);
    }
}

fn put_floats(to: &mut [u8], values: &[f32]) {
    let values: &[u8] = bytemuck::cast_slice(values);
    to[..values.len()].copy_from_slice(values);
}

/// Codes of the group-wise kinds, a word of eight inputs at a time.
fn put_codes(layout: &GpuLayout, to: &mut [u8], codes: &[u8], k: usize) {
    for (row, codes) in codes.chunks_exact(k).enumerate() {
        for (eight, codes) in codes.as_chunks::<8>().0.iter().enumerate() {
            let (at, _) = layout.code_at(row, eight * 8);
            for plane in 0..layout.planes() {
                let nibble = |i: usize| u32::from(codes[i] >> (4 * plane) & 15) << (4 * (i / 2) + 16 * (i % 2));
                let word = (0..8).map(nibble).fold(0, |word, nibble| word | nibble);
                to[at + plane * UNIT_BYTES..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

fn put_groups(layout: &GpuLayout, to: &mut [u8], scales: &[f16], mins: &[f16], groups: usize) {
    for (index, (scale, min)) in scales.iter().zip(mins).enumerate() {
        let at = layout.scale_at(index / groups, index % groups);
        to[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        to[at + GpuLayout::MIN_BEHIND..][..2].copy_from_slice(&min.to_le_bytes());
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
