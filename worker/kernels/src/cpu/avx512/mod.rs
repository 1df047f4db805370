//! Products with AVX-512: vpdpbusd (VNNI) for integer codes, vdpbf16ps for BF16 and FP8.
//!
//! A tile is `R` rows x `C` panels of 16 outputs with one accumulator register each, and one more per row while a group's
//! integer sum is formed. Few rows take four panels at once: memory bounds them, and more independent sums hide the latency
//! of the dot products. Eight rows take two panels, so that one broadcast activation serves two products (one panel where
//! groups need a second set of accumulators): with weights, scales and tables that stays within 32 registers.

mod bytes;
mod floats;

use std::{arch::x86_64::*, ops::Range};

use bytes::{Groups, Int8};
use floats::{Bf16, Fp8, Fp8Block, GroupHalves, run_decoded};

use super::{
    activations::{Activations, TILE},
    linear::Output,
};
use crate::{
    GroupedActivations, PackedWeight, WeightKind,
    pack::{PANEL, PanelLayout},
};

/// Rows from which decoding FP8 panels to BF16 once pays for the writing and reading of the decoded panel.
const DECODE_ROWS: usize = 2 * TILE;

/// Operands of a tile: everything by pointer, so that the loops hold no lengths in registers.
#[derive(Clone, Copy)]
struct Operands {
    /// Word 0 of the tile's first row.
    words: *const u32,
    /// Words of a row.
    steps: usize,
    /// Scale of group 0 of the tile's first row.
    groups: *const f32,
    /// First panel.
    panel: *const u8,
    /// Bytes of a panel.
    stride: usize,
    /// Where a panel's group scales start.
    scales: usize,
    /// Where a panel's column sums start.
    sums: usize,
    /// Inputs of a group.
    group: usize,
    /// Groups of a row.
    group_count: usize,
}

/// Computes a range of panels for all rows.
///
/// # Safety
/// As [`super::linear::linear_panels`]; the machine must have the instructions of [`super::Isa::Avx512`].
pub(super) unsafe fn panels(
    x: &Activations,
    rows: usize,
    w: &PackedWeight,
    layout: &PanelLayout,
    grouped: GroupedActivations,
    panels: Range<usize>,
    out: Output<'_>,
) {
    assert!(x.scales.len() >= rows && x.words.len() >= rows.div_ceil(TILE) * x.steps * TILE, "the rows were quantized");
    let half = grouped == GroupedActivations::Bf16;
    // SAFETY: checked above and by the caller; the caller's promises.
    unsafe {
        match w.spec.kind {
            WeightKind::Bf16 => run::<Bf16>(x, rows, w, layout, panels, out),
            WeightKind::Fp8 | WeightKind::Fp8Static if rows >= DECODE_ROWS => {
                run_decoded::<Bf16>(x, rows, w, layout, panels, out);
            }
            WeightKind::Fp8 | WeightKind::Fp8Static => run::<Fp8>(x, rows, w, layout, panels, out),
            WeightKind::Fp8Block if rows >= DECODE_ROWS => {
                run_decoded::<Fp8Block<true>>(x, rows, w, layout, panels, out);
            }
            WeightKind::Fp8Block => run::<Fp8Block<false>>(x, rows, w, layout, panels, out),
            WeightKind::Int8 | WeightKind::Int8Outliers { .. } => run::<Int8>(x, rows, w, layout, panels, out),
            WeightKind::Int4 { .. } if half => run::<GroupHalves<4>>(x, rows, w, layout, panels, out),
            WeightKind::Int8Group { .. } if half => run::<GroupHalves<8>>(x, rows, w, layout, panels, out),
            WeightKind::Int4 { .. } => run::<Groups<4>>(x, rows, w, layout, panels, out),
            WeightKind::Int8Group { .. } => run::<Groups<8>>(x, rows, w, layout, panels, out),
        }
    }
}

/// A kind's tile product, scaled but for the row scales.
trait Kernel {
    /// Panels of a tile of more than two rows.
    const WIDE: usize;

    /// # Safety
    /// The tile must lie inside its weight and activations, and the machine must have the instructions.
    unsafe fn tile<const R: usize, const C: usize>(t: Operands) -> [[__m512; C]; R];
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx512bf16")]
unsafe fn run<K: Kernel>(
    x: &Activations,
    rows: usize,
    w: &PackedWeight,
    layout: &PanelLayout,
    panels: Range<usize>,
    out: Output<'_>,
) {
    let mut panel = panels.start;
    while panel < panels.end {
        let left = panels.end - panel;
        let wide = if rows <= 2 && left >= 4 {
            4
        } else if left >= K::WIDE {
            K::WIDE
        } else {
            1
        };
        // SAFETY: the panels are inside the range.
        unsafe {
            let codes = w.bytes.as_ptr().add(panel * layout.bytes);
            all_rows::<K>(x, rows, w, layout, Columns { panel, codes, stride: layout.bytes }, wide, out);
        }
        panel += wide;
    }
}

/// Some panels: the first one's number, and where their codes are.
#[derive(Clone, Copy)]
struct Columns {
    panel: usize,
    codes: *const u8,
    stride: usize,
}

/// All rows of `wide` panels.
///
/// # Safety
/// As [`store`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx512bf16")]
#[inline]
unsafe fn all_rows<K: Kernel>(
    x: &Activations,
    rows: usize,
    w: &PackedWeight,
    layout: &PanelLayout,
    columns: Columns,
    wide: usize,
    out: Output<'_>,
) {
    let mut row = 0;
    while row < rows {
        // Rows of one tile of activations lie together; a kernel's rows never cross into the next.
        let height = (rows - row).min(TILE - row % TILE);
        // SAFETY: rows are inside their range by the loop's bounds; the caller's promise.
        unsafe {
            row += match (height, wide) {
                (2.., 4) => store::<K, 2, 4>(x, row, w, layout, columns, out),
                (_, 4) => store::<K, 1, 4>(x, row, w, layout, columns, out),
                (8.., 2) => store::<K, 8, 2>(x, row, w, layout, columns, out),
                (4.., 2) => store::<K, 4, 2>(x, row, w, layout, columns, out),
                (2.., 2) => store::<K, 2, 2>(x, row, w, layout, columns, out),
                (_, 2) => store::<K, 1, 2>(x, row, w, layout, columns, out),
                (8.., _) => store::<K, 8, 1>(x, row, w, layout, columns, out),
                (4.., _) => store::<K, 4, 1>(x, row, w, layout, columns, out),
                (2.., _) => store::<K, 2, 1>(x, row, w, layout, columns, out),
                _ => store::<K, 1, 1>(x, row, w, layout, columns, out),
            };
        }
    }
}

/// One tile, scaled and stored; returns its rows.
///
/// # Safety
/// As [`Kernel::tile`] and [`Output::store`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx512bf16")]
#[inline]
unsafe fn store<K: Kernel, const R: usize, const C: usize>(
    x: &Activations,
    row: usize,
    w: &PackedWeight,
    layout: &PanelLayout,
    columns: Columns,
    out: Output<'_>,
) -> usize {
    let panel = columns.panel;
    // SAFETY: the caller's promises; the row scales are inside the panel.
    unsafe {
        let (tile, lane) = (row / TILE, row % TILE);
        let panels = w.bytes.as_ptr().add(panel * layout.bytes);
        let sums = K::tile::<R, C>(Operands {
            words: x.words.as_ptr().add(tile * x.steps * TILE + lane),
            steps: x.steps,
            groups: x.groups.as_ptr().add(tile * x.group_count * 2 * TILE + lane),
            panel: columns.codes,
            stride: columns.stride,
            scales: layout.scales,
            sums: layout.sums,
            group: layout.group,
            group_count: x.group_count,
        });
        for c in 0..C {
            let scales = _mm512_loadu_ps(panels.add(c * layout.bytes + layout.rows).cast());
            let n = w.spec.n - (panel + c) * PANEL;
            let mask = if n >= PANEL { 0xffff } else { (1u16 << n) - 1 };
            let first = (panel + c) * PANEL;
            for r in 0..R {
                let row = row + r;
                // Kinds without a scale per row of activations have 1 there.
                let scales = _mm512_mul_ps(scales, _mm512_set1_ps(*x.scales.as_ptr().add(row)));
                let mut value = _mm512_mul_ps(sums[r][c], scales);
                if let Some(bias) = out.bias {
                    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(first)));
                }
                let place = out.base.add(row * out.stride + first);
                if out.add {
                    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, place));
                }
                _mm512_mask_storeu_ps(place, mask, value);
            }
        }
    }
    R
}

/// One register of each of `C` panels.
///
/// # Safety
/// The registers must be inside the panels.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn weights<const C: usize>(first: *const u8, stride: usize) -> [__m512i; C] {
    let mut w = [_mm512_setzero_si512(); C];
    for (c, w) in w.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *w = unsafe { load(first.add(c * stride)) };
    }
    w
}

/// # Safety
/// `p` must point to 64 readable bytes, aligned to 64.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(clippy::cast_ptr_alignment, reason = "the caller's promise")]
pub(in crate::cpu) unsafe fn load(p: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { *p.cast::<__m512i>() }
}

/// # Safety
/// `p` must point to a readable word.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn broadcast(p: *const u32) -> __m512i {
    // SAFETY: the caller's promise.
    _mm512_set1_epi32(unsafe { *p } as i32)
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(in crate::cpu) fn dot_halves(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: both are 64 bytes of plain data.
    unsafe {
        _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
    }
}

/// Sixteen FP16 values as FP32.
///
/// # Safety
/// `p` must point to 32 readable bytes.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn halves(p: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.cast()) })
}
