//! Activations in the form that a weight kind multiplies with.
//!
//! ```text
//! words:  [row tile][K step][8 rows]          one step is 4 bytes of a row: 4 INT8 codes or 2 BF16 values
//! floats: [row][K padded to 8]                the BF16 values as FP32, instead of words, where AVX2 computes
//! groups: [row tile][group][2][8 rows]        FP32: the scale, and the sum of the group's dequantized activations
//! ```
//!
//! Words of rows are interleaved by eight so that a kernel walks all rows of a tile with one pointer: the operands of its
//! dot products lie side by side, in the order of use. AVX2 has no product of BF16: there a value would be widened again for
//! each panel, so it is once here.

use half::bf16;

use super::{Isa, isa::per_isa};
use crate::{GroupedActivations, WeightKind, format::e4m3, pack::PanelLayout};

/// Rows of a tile.
pub const TILE: usize = 8;

/// What the words of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    /// BF16 values.
    Half,
    /// E4M3 values with one scale per row, as BF16, which holds them exactly.
    HalfOfE4m3,
    /// The same with one scale per group.
    HalfOfE4m3Group,
    /// INT8 with one scale per row and 128 added (vpdpbusd multiplies unsigned with signed bytes).
    ByteOfRow,
    /// INT8 with one scale per group.
    ByteOfGroup,
    /// BF16 values and the sums of groups.
    HalfOfGroup,
}

impl Code {
    fn of(kind: WeightKind, grouped: GroupedActivations) -> Self {
        match (kind, grouped) {
            (WeightKind::Bf16, _) => Self::Half,
            (WeightKind::Fp8 | WeightKind::Fp8Static, _) => Self::HalfOfE4m3,
            (WeightKind::Fp8Block, _) => Self::HalfOfE4m3Group,
            (WeightKind::Int8 | WeightKind::Int8Outliers { .. }, _) => Self::ByteOfRow,
            (WeightKind::Int4 { .. } | WeightKind::Int8Group { .. }, GroupedActivations::Int8) => Self::ByteOfGroup,
            (WeightKind::Int4 { .. } | WeightKind::Int8Group { .. }, GroupedActivations::Bf16) => Self::HalfOfGroup,
        }
    }

    /// Values of one word.
    fn per_word(self) -> usize {
        if self.is_byte() { 4 } else { 2 }
    }

    fn is_byte(self) -> bool {
        matches!(self, Self::ByteOfRow | Self::ByteOfGroup)
    }
}

/// Quantized rows; buffers are reused from call to call.
#[derive(Debug, Default)]
pub struct Activations {
    /// Words per row, or pairs of floats: K padded to 8 values.
    pub(super) steps: usize,
    /// Groups per row; 0 without groups.
    pub(super) group_count: usize,
    pub(super) words: Vec<u32>,
    pub(super) floats: Vec<f32>,
    /// One scale per row; 1 where there is none.
    pub(super) scales: Vec<f32>,
    pub(super) groups: Vec<f32>,
}

/// Smallest scale: keeps a row of zeros from dividing by zero.
const SMALLEST_SCALE: f32 = 1e-12;
/// Adding 1.5 x 2^23 rounds a small number to the nearest integer, ties to even, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Values quantized at once: divides every group.
const BLOCK: usize = 32;

impl Activations {
    /// Makes room for `rows` rows and returns what fills it, for the kernels of `isa`. `input_scale` is the scale of all
    /// rows, measured beforehand; without it each row (or group) gets its own.
    pub(super) fn writer<'a>(
        &'a mut self,
        isa: Isa,
        x: &'a [f32],
        rows: usize,
        k: usize,
        layout: &PanelLayout,
        kind: WeightKind,
        grouped: GroupedActivations,
        input_scale: Option<f32>,
    ) -> Writer<'a> {
        let code = Code::of(kind, grouped);
        let tiles = rows.div_ceil(TILE);
        self.steps = layout.k / code.per_word();
        self.group_count = if layout.group == 0 { 0 } else { k / layout.group };
        let floats = isa == Isa::Avx2 && !code.is_byte();
        // Lanes beyond the last row keep what they had: no kernel stores their products.
        self.words.resize(if floats { 0 } else { tiles * self.steps * TILE }, 0);
        self.floats.resize(if floats { tiles * TILE * layout.k } else { 0 }, 0.0);
        self.scales.resize(tiles * TILE, 1.0);
        self.groups.resize(tiles * self.group_count * 2 * TILE, 0.0);
        Writer {
            x,
            rows,
            k,
            group: if layout.group == 0 { k } else { layout.group },
            code,
            isa,
            floats,
            input_scale,
            steps: self.steps,
            group_count: self.group_count,
            words: self.words.as_mut_ptr(),
            values: self.floats.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            groups: self.groups.as_mut_ptr(),
            life: std::marker::PhantomData,
        }
    }

    /// The word of a row at a step.
    pub(super) fn word(&self, row: usize, step: usize) -> u32 {
        self.words[(row / TILE * self.steps + step) * TILE + row % TILE]
    }

    /// Scale of a row's group, and the sum of its dequantized activations.
    pub(super) fn group(&self, row: usize, group: usize) -> (f32, f32) {
        let at = (row / TILE * self.group_count + group) * 2 * TILE + row % TILE;
        (self.groups[at], self.groups[at + TILE])
    }
}

/// Quantizes rows tile by tile; threads take different tiles.
#[derive(Clone, Copy)]
pub(super) struct Writer<'a> {
    x: &'a [f32],
    rows: usize,
    k: usize,
    group: usize,
    code: Code,
    isa: Isa,
    floats: bool,
    input_scale: Option<f32>,
    steps: usize,
    group_count: usize,
    words: *mut u32,
    values: *mut f32,
    scales: *mut f32,
    groups: *mut f32,
    life: std::marker::PhantomData<&'a mut Activations>,
}

// SAFETY: threads write different tiles, as `tile` requires of its callers.
unsafe impl Send for Writer<'_> {}
// SAFETY: as above.
unsafe impl Sync for Writer<'_> {}

/// The parts of one tile.
struct Tile<'a> {
    words: &'a mut [u32],
    /// Row after row.
    floats: &'a mut [f32],
    scales: &'a mut [f32],
    groups: &'a mut [f32],
}

per_isa! {
    /// # Safety
    /// The instruction set is available.
    unsafe fn fill(writer: &Writer<'_>, index: usize, tile: &mut Tile<'_>) = Writer::fill;
}

impl Writer<'_> {
    /// Tiles to fill.
    pub(super) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Quantizes the rows of one tile.
    ///
    /// # Safety
    /// `index` is below [`Self::tiles`], no other thread fills it meanwhile, and the writer's instruction set is available.
    pub(super) unsafe fn tile(&self, index: usize) {
        let (words, groups) = (self.steps * TILE, self.group_count * 2 * TILE);
        let (words, floats) = if self.floats { (0, words * self.code.per_word()) } else { (words, 0) };
        // SAFETY: the buffers hold all tiles, which do not overlap; the caller's promise.
        unsafe {
            let mut tile = Tile {
                words: std::slice::from_raw_parts_mut(self.words.add(index * words), words),
                floats: std::slice::from_raw_parts_mut(self.values.add(index * floats), floats),
                scales: std::slice::from_raw_parts_mut(self.scales.add(index * TILE), TILE),
                groups: std::slice::from_raw_parts_mut(self.groups.add(index * groups), groups),
            };
            fill(self.isa, self, index, &mut tile);
        }
    }

    #[inline(always)]
    fn fill(&self, index: usize, tile: &mut Tile<'_>) {
        for lane in 0..TILE.min(self.rows - index * TILE) {
            let row = index * TILE + lane;
            let x = &self.x[row * self.k..(row + 1) * self.k];
            let grouped = matches!(self.code, Code::ByteOfGroup | Code::HalfOfGroup | Code::HalfOfE4m3Group);
            let mut scale = match (self.code, self.input_scale) {
                (Code::HalfOfE4m3, Some(scale)) => scale,
                (Code::HalfOfE4m3, None) => (absmax(x) / e4m3::MAX).max(SMALLEST_SCALE),
                (Code::ByteOfRow, _) => (absmax(x) / 127.0).max(SMALLEST_SCALE),
                _ => 1.0,
            };
            tile.scales[lane] = scale;
            for (group, x) in x.chunks(self.group).enumerate() {
                match self.code {
                    Code::ByteOfGroup => scale = (absmax(x) / 127.0).max(SMALLEST_SCALE),
                    Code::HalfOfE4m3Group => scale = (absmax(x) / e4m3::MAX).max(SMALLEST_SCALE),
                    _ => {}
                }
                let first = group * self.group;
                let sum = if self.floats {
                    let row = lane * self.steps * self.code.per_word();
                    self.floats(x, 1.0 / scale, &mut tile.floats[row + first..])
                } else {
                    self.codes(x, 1.0 / scale, &mut tile.words[first / self.code.per_word() * TILE..], lane)
                };
                if grouped {
                    let at = group * 2 * TILE + lane;
                    tile.groups[at] = scale;
                    tile.groups[at + TILE] = scale * sum;
                }
            }
        }
    }

    /// Writes the codes of consecutive values into a lane; returns the sum of a group's codes.
    #[inline(always)]
    fn codes(&self, x: &[f32], inverse: f32, words: &mut [u32], lane: usize) -> f32 {
        let mut sum = 0.0;
        let size = BLOCK / self.code.per_word() * TILE;
        let (blocks, rest) = x.as_chunks::<BLOCK>();
        let (whole, last) = words.split_at_mut(blocks.len() * size);
        for (block, out) in blocks.iter().zip(whole.chunks_exact_mut(size)) {
            sum += self.block(block, inverse, out, lane);
        }
        if !rest.is_empty() {
            // Only a whole row can have a rest: K is padded with zeros to 8.
            let mut values = [0.0f32; BLOCK];
            values[..rest.len()].copy_from_slice(rest);
            let padded = rest.len().next_multiple_of(8) / self.code.per_word();
            let mut block = [0u32; BLOCK / 2 * TILE];
            sum += self.block(&values, inverse, &mut block[..size], lane);
            for at in (0..padded).map(|step| step * TILE + lane) {
                last[at] = block[at];
            }
        }
        sum
    }

    #[inline(always)]
    fn block(&self, x: &[f32; BLOCK], inverse: f32, out: &mut [u32], lane: usize) -> f32 {
        match self.code {
            Code::ByteOfRow | Code::ByteOfGroup => {
                let mut codes = [0u8; BLOCK];
                let mut sum = 0i32;
                for (code, v) in codes.iter_mut().zip(x) {
                    let bits = (v * inverse + ROUND).to_bits();
                    *code = bits as u8;
                    sum = sum.wrapping_add(i32::from(*code as i8));
                }
                if self.code == Code::ByteOfRow {
                    for code in &mut codes {
                        *code ^= 0x80;
                    }
                }
                for (out, word) in out.chunks_exact_mut(TILE).zip(codes.as_chunks::<4>().0) {
                    out[lane] = u32::from_le_bytes(*word);
                }
                sum as f32
            }
            Code::Half | Code::HalfOfGroup | Code::HalfOfE4m3 | Code::HalfOfE4m3Group => {
                let codes = self.halves(x, inverse);
                for (out, pair) in out.chunks_exact_mut(TILE).zip(codes.as_chunks::<2>().0) {
                    out[lane] = u32::from(pair[0]) | u32::from(pair[1]) << 16;
                }
                self.sum(&codes)
            }
        }
    }

    /// Writes consecutive values as FP32; returns the sum of a group's.
    #[inline(always)]
    fn floats(&self, x: &[f32], inverse: f32, out: &mut [f32]) -> f32 {
        let mut sum = 0.0;
        let (blocks, rest) = x.as_chunks::<BLOCK>();
        let (whole, last) = out.split_at_mut(blocks.len() * BLOCK);
        let mut write = |x: &[f32; BLOCK], out: &mut [f32]| {
            let codes = self.halves(x, inverse);
            for (out, code) in out.iter_mut().zip(&codes) {
                *out = f32::from_bits(u32::from(*code) << 16);
            }
            sum += self.sum(&codes);
        };
        for (x, out) in blocks.iter().zip(whole.as_chunks_mut::<BLOCK>().0) {
            write(x, out);
        }
        if !rest.is_empty() {
            // Only a whole row can have a rest: K is padded with zeros to 8.
            let mut values = [0.0f32; BLOCK];
            values[..rest.len()].copy_from_slice(rest);
            write(&values, &mut last[..rest.len().next_multiple_of(8)]);
        }
        sum
    }

    /// BF16 values: the rounded ones, or those of E4M3, which has fewer bits.
    #[inline(always)]
    fn halves(&self, x: &[f32; BLOCK], inverse: f32) -> [u16; BLOCK] {
        let mut codes = [0u16; BLOCK];
        let narrow = matches!(self.code, Code::HalfOfE4m3 | Code::HalfOfE4m3Group);
        for (code, v) in codes.iter_mut().zip(x) {
            *code = if narrow { (e4m3_round(v * inverse).to_bits() >> 16) as u16 } else { to_bf16(*v) };
        }
        codes
    }

    /// The sum of BF16 values, where groups need one.
    #[inline(always)]
    fn sum(&self, codes: &[u16; BLOCK]) -> f32 {
        if self.code != Code::HalfOfGroup {
            return 0.0;
        }
        codes.iter().map(|code| bf16::from_bits(*code).to_f32()).sum()
    }
}

#[inline(always)]
fn absmax(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(v.abs());
        }
    }
    // Halved until one is left: a chain of sixteen would wait for each.
    for half in [8, 4, 2, 1] {
        let (low, high) = lanes.split_at_mut(half);
        for (low, high) in low.iter_mut().zip(high) {
            *low = low.max(*high);
        }
    }
    rest.iter().fold(lanes[0], |m, v| m.max(v.abs()))
}

/// Round to nearest even; NaN is not expected here and stays some NaN or infinity.
#[inline(always)]
pub(super) fn to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The E4M3 value nearest to `v`, for `|v| <= 448` up to rounding, without branches.
#[inline(always)]
fn e4m3_round(v: f32) -> f32 {
    let magnitude = v.abs().min(e4m3::MAX);
    // Adding and subtracting 2^20 x the value's power of two (at least 2^-6) keeps three bits of mantissa, rounded to even.
    let power = f32::from_bits((magnitude.to_bits() & 0x7f80_0000).max((127 - 6) << 23));
    let big = power * 1_048_576.0;
    ((magnitude + big) - big).copysign(v)
}

#[cfg(test)]
#[path = "activations_tests.rs"]
mod tests;
