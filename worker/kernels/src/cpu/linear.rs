//! Products of quantized activations with packed weights: the choice of kernel, and the plain reference of every kind,
//! which also serves machines without AVX2.
//!
//! Every kernel computes an output element with the same accumulators per group (or in all), each over its part of K in
//! ascending order, and adds them in the same order. So an element does not depend on how rows and panels are tiled: a
//! decode step gives bit for bit what a prefill gives.

use std::ops::Range;

use half::f16;

use super::{Isa, activations::Activations};
use crate::{
    GroupedActivations, PackedWeight, WeightKind,
    format::e4m3,
    pack::{PANEL, PanelLayout},
};

/// Where a product's outputs go.
#[derive(Clone, Copy)]
pub struct Output<'a> {
    /// `out[row * stride + column]`.
    pub base: *mut f32,
    /// Elements from row to row.
    pub stride: usize,
    /// Added to each row.
    pub bias: Option<&'a [f32]>,
    /// Adds to what is there instead of overwriting it.
    pub add: bool,
}

// SAFETY: threads write disjoint panels (columns) of the matrix, as `linear_panels` requires of its callers.
unsafe impl Send for Output<'_> {}
// SAFETY: as above; nothing is read through the shared reference that another thread writes.
unsafe impl Sync for Output<'_> {}

impl Output<'_> {
    /// Stores the lanes of a panel that exist.
    ///
    /// # Safety
    /// `row` and the panel's columns below `n` must be inside the matrix, and no other thread may use them now.
    pub(super) unsafe fn store(&self, row: usize, panel: usize, n: usize, values: &[f32; PANEL]) {
        let first = panel * PANEL;
        for (lane, value) in values.iter().enumerate().take(n.saturating_sub(first)) {
            let column = first + lane;
            let value = value + self.bias.map_or(0.0, |bias| bias[column]);
            // SAFETY: the caller's promise.
            unsafe {
                let place = self.base.add(row * self.stride + column);
                *place = if self.add { *place + value } else { value };
            }
        }
    }
}

/// Computes the outputs of a range of panels for all rows.
///
/// # Panics
/// If not all of the panels are inside the weight.
///
/// # Safety
/// `out` must hold `rows` rows of `w.spec.n` columns, and no other thread may use the columns of these panels meanwhile.
/// `isa` must be one of [`Isa::available`], and `x` hold the rows as they were written for it, this weight and `grouped`.
pub unsafe fn linear_panels(
    isa: Isa,
    x: &Activations,
    rows: usize,
    w: &PackedWeight,
    grouped: GroupedActivations,
    panels: Range<usize>,
    out: Output<'_>,
) {
    let layout = PanelLayout::new(&w.spec);
    assert!(w.bytes.len() >= panels.end * layout.bytes, "the panels are inside the weight");
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promises.
        Isa::Avx512 => unsafe { super::avx512::panels(x, rows, w, &layout, grouped, panels, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promises.
        Isa::Avx2 => unsafe { super::avx2::panels(x, rows, w, &layout, grouped, panels, out) },
        // SAFETY: the caller's promises.
        _ => unsafe { portable(x, rows, w, &layout, grouped, panels, out) },
    }
}

/// # Safety
/// As [`linear_panels`].
unsafe fn portable(
    x: &Activations,
    rows: usize,
    w: &PackedWeight,
    layout: &PanelLayout,
    grouped: GroupedActivations,
    panels: Range<usize>,
    out: Output<'_>,
) {
    for index in panels {
        let panel = &w.bytes[index * layout.bytes..(index + 1) * layout.bytes];
        for row in 0..rows {
            let mut values = match w.spec.kind {
                WeightKind::Bf16 => dot_bf16(x, row, panel, layout),
                WeightKind::Fp8 | WeightKind::Fp8Static => dot_fp8(x, row, panel, layout),
                WeightKind::Fp8Block => dot_fp8_blocks(x, row, panel, layout),
                WeightKind::Int8 | WeightKind::Int8Outliers { .. } => dot_int8(x, row, panel, layout),
                WeightKind::Int4 { .. } => match grouped {
                    GroupedActivations::Int8 => dot_groups::<4>(x, row, panel, layout),
                    GroupedActivations::Bf16 => dot_group_halves(x, row, panel, layout, 4),
                },
                WeightKind::Int8Group { .. } => match grouped {
                    GroupedActivations::Int8 => dot_groups::<8>(x, row, panel, layout),
                    GroupedActivations::Bf16 => dot_group_halves(x, row, panel, layout, 8),
                },
            };
            // Kinds without a scale per row of activations have 1 there.
            for (value, row_scale) in values.iter_mut().zip(row_scales(panel, layout)) {
                *value *= row_scale * x.scales[row];
            }
            // SAFETY: the caller's promises.
            unsafe { out.store(row, index, w.spec.n, &values) };
        }
    }
}

fn floats(bytes: &[u8]) -> [f32; PANEL] {
    let mut out = [0.0; PANEL];
    for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
    out
}

fn row_scales(panel: &[u8], layout: &PanelLayout) -> [f32; PANEL] {
    floats(&panel[layout.rows..layout.rows + PANEL * 4])
}

/// Scales and minima of a group.
fn group_scales(panel: &[u8], layout: &PanelLayout, group: usize) -> ([f32; PANEL], [f32; PANEL]) {
    let at = layout.scales + group * 2 * PANEL * 2;
    let mut out = [[0.0; PANEL]; 2];
    for (half, out) in out.iter_mut().enumerate() {
        for (lane, o) in out.iter_mut().enumerate() {
            let at = at + (half * PANEL + lane) * 2;
            *o = f16::from_le_bytes([panel[at], panel[at + 1]]).to_f32();
        }
    }
    (out[0], out[1])
}

/// The two BF16 values of a word.
fn pair(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

fn dot_bf16(x: &Activations, row: usize, panel: &[u8], layout: &PanelLayout) -> [f32; PANEL] {
    let mut sums = [0.0f32; PANEL];
    for (step, codes) in panel[..layout.scales].chunks_exact(PANEL * 4).enumerate() {
        let [a, b] = pair(x.word(row, step));
        for (sum, w) in sums.iter_mut().zip(codes.as_chunks::<4>().0) {
            let w = pair(u32::from_le_bytes(*w));
            *sum += a * w[0] + b * w[1];
        }
    }
    sums
}

fn dot_fp8(x: &Activations, row: usize, panel: &[u8], layout: &PanelLayout) -> [f32; PANEL] {
    dot_fp8_steps(x, row, panel, 0..layout.k / 4)
}

fn dot_fp8_steps(x: &Activations, row: usize, panel: &[u8], steps: Range<usize>) -> [f32; PANEL] {
    let mut sums = [0.0f32; PANEL];
    for step in steps {
        let codes = &panel[step * PANEL * 4..(step + 1) * PANEL * 4];
        for half in 0..2 {
            let x = pair(x.word(row, step * 2 + half));
            for word in 0..PANEL * 2 {
                let code = codes[word / 8 * 16 + half * 8 + word % 8];
                sums[word / 2] += x[word % 2] * e4m3::decode(code);
            }
        }
    }
    sums
}

fn dot_fp8_blocks(x: &Activations, row: usize, panel: &[u8], layout: &PanelLayout) -> [f32; PANEL] {
    let mut out = [0.0f32; PANEL];
    for block in 0..x.group_count {
        let sums = dot_fp8_steps(x, row, panel, block * layout.group / 4..(block + 1) * layout.group / 4);
        let (scale, _) = x.group(row, block);
        let at = layout.scales + block * PANEL * 4;
        for (lane, weight_scale) in floats(&panel[at..at + PANEL * 4]).into_iter().enumerate() {
            out[lane] = (sums[lane] * scale).mul_add(weight_scale, out[lane]);
        }
    }
    out
}

fn dot_int8(x: &Activations, row: usize, panel: &[u8], layout: &PanelLayout) -> [f32; PANEL] {
    let mut sums = [0i32; PANEL];
    for (step, codes) in panel[..layout.scales].chunks_exact(PANEL * 4).enumerate() {
        let quad = x.word(row, step).to_le_bytes();
        for (sum, w) in sums.iter_mut().zip(codes.as_chunks::<4>().0) {
            *sum += (0..4).map(|i| i32::from(quad[i]) * i32::from(w[i] as i8)).sum::<i32>();
        }
    }
    let mut out = [0.0; PANEL];
    for (lane, o) in out.iter_mut().enumerate() {
        let at = layout.sums + lane * 4;
        let column = i32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]]);
        *o = (sums[lane] - 128 * column) as f32;
    }
    out
}

/// The codes of four inputs, as bytes `[16][4]`.
fn quad_codes(panel: &[u8], bits: usize, quad: usize) -> [u8; PANEL * 4] {
    let (block, shift) = if bits == 4 { (quad / 2, (quad % 2) * 4) } else { (quad, 0) };
    let mut out = [0u8; PANEL * 4];
    out.copy_from_slice(&panel[block * PANEL * 4..(block + 1) * PANEL * 4]);
    if bits == 4 {
        for code in &mut out {
            *code = (*code >> shift) & 15;
        }
    }
    out
}

fn dot_groups<const BITS: usize>(x: &Activations, row: usize, panel: &[u8], layout: &PanelLayout) -> [f32; PANEL] {
    let mut out = [0.0f32; PANEL];
    for group in 0..x.group_count {
        let mut sums = [0i32; PANEL];
        for quad in group * layout.group / 4..(group + 1) * layout.group / 4 {
            let codes = quad_codes(panel, BITS, quad);
            let x = x.word(row, quad).to_le_bytes();
            for (sum, w) in sums.iter_mut().zip(codes.as_chunks::<4>().0) {
                *sum += (0..4).map(|i| i32::from(x[i] as i8) * i32::from(w[i])).sum::<i32>();
            }
        }
        let (scale, sum) = x.group(row, group);
        let (scales, mins) = group_scales(panel, layout, group);
        for lane in 0..PANEL {
            out[lane] = (sums[lane] as f32 * scale).mul_add(scales[lane], out[lane]);
            out[lane] = mins[lane].mul_add(sum, out[lane]);
        }
    }
    out
}

fn dot_group_halves(x: &Activations, row: usize, panel: &[u8], layout: &PanelLayout, bits: usize) -> [f32; PANEL] {
    let mut out = [0.0f32; PANEL];
    for group in 0..x.group_count {
        let mut sums = [0.0f32; PANEL];
        for quad in group * layout.group / 4..(group + 1) * layout.group / 4 {
            let codes = quad_codes(panel, bits, quad);
            let (first, second) = (pair(x.word(row, quad * 2)), pair(x.word(row, quad * 2 + 1)));
            for (sum, w) in sums.iter_mut().zip(codes.as_chunks::<4>().0) {
                for (x, w) in first.iter().chain(&second).zip(w) {
                    *sum += x * f32::from(*w);
                }
            }
        }
        let (_, total) = x.group(row, group);
        let (scales, mins) = group_scales(panel, layout, group);
        for lane in 0..PANEL {
            out[lane] = sums[lane].mul_add(scales[lane], out[lane]);
            out[lane] = mins[lane].mul_add(total, out[lane]);
        }
    }
    out
}
