//! Products with AVX2 and FMA: byte products (vpmaddubsw) for integers, FP32 multiply-adds for BF16 and FP8, and for integers
//! with BF16 activations.
//!
//! A tile is `R` rows x one panel of 16 outputs.

mod bytes;
mod floats;

use std::{arch::x86_64::*, ops::Range};

use bytes::{Groups, Int8};
use floats::{Bf16, Blocks, E4m3, Grouped, Whole, run_fp8};

use super::{
    activations::{Activations, TILE},
    linear::Output,
};
use crate::{
    GroupedActivations, PackedWeight, WeightKind,
    pack::{PANEL, PanelLayout},
};

/// 8 + 8 outputs.
type Pair = [__m256; 2];

/// A product, but for its panels.
#[derive(Clone, Copy)]
struct Product<'a> {
    x: &'a Activations,
    rows: usize,
    w: &'a PackedWeight,
    layout: &'a PanelLayout,
    out: Output<'a>,
}

impl Product<'_> {
    /// The start of a panel.
    ///
    /// # Safety
    /// The panel is inside the weight.
    unsafe fn panel(&self, index: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe { self.w.bytes.as_ptr().add(index * self.layout.bytes) }
    }
}

/// Operands of a tile.
#[derive(Clone, Copy)]
struct Operands<'a> {
    x: &'a Activations,
    row: usize,
    /// The panel, for its scales.
    panel: *const u8,
    /// The panel's codes, here or decoded elsewhere.
    codes: *const u8,
    layout: &'a PanelLayout,
}

/// Computes a range of panels for all rows.
///
/// # Safety
/// As [`super::linear::linear_panels`]; the machine must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn panels(
    x: &Activations,
    rows: usize,
    w: &PackedWeight,
    layout: &PanelLayout,
    grouped: GroupedActivations,
    panels: Range<usize>,
    out: Output<'_>,
) {
    let half = grouped == GroupedActivations::Bf16;
    let as_bytes = match w.spec.kind {
        WeightKind::Int8 | WeightKind::Int8Outliers { .. } => true,
        WeightKind::Int4 { .. } | WeightKind::Int8Group { .. } => !half,
        WeightKind::Bf16 | WeightKind::Fp8 | WeightKind::Fp8Static | WeightKind::Fp8Block => false,
    };
    let (steps, inputs) = if as_bytes { (x.words.len(), 4) } else { (x.floats.len() / 2, 2) };
    let written = x.scales.len() >= rows && steps >= rows.div_ceil(TILE) * x.steps * TILE;
    assert!(written && x.steps * inputs == layout.k, "the rows were quantized for this weight");
    let product = Product { x, rows, w, layout, out };
    // SAFETY: checked above and by the caller; the caller's promises.
    unsafe {
        match w.spec.kind {
            WeightKind::Bf16 => run_all::<Whole<Bf16>>(product, panels),
            WeightKind::Fp8 | WeightKind::Fp8Static => run_fp8::<Whole<E4m3>, Whole<Bf16>>(product, panels),
            WeightKind::Fp8Block => run_fp8::<Blocks<E4m3>, Blocks<Bf16>>(product, panels),
            WeightKind::Int8 | WeightKind::Int8Outliers { .. } => run_all::<Int8>(product, panels),
            WeightKind::Int4 { .. } if half => run_all::<Grouped<4>>(product, panels),
            WeightKind::Int8Group { .. } if half => run_all::<Grouped<8>>(product, panels),
            WeightKind::Int4 { .. } => run_all::<Groups<4>>(product, panels),
            WeightKind::Int8Group { .. } => run_all::<Groups<8>>(product, panels),
        }
    }
}

/// A kind's tile product, scaled but for the row scales.
trait Kernel {
    /// Rows of the tile that begins with `row`, of the `left` that are to come: 1, 2 or 4.
    fn height(row: usize, left: usize) -> usize {
        let _ = row;
        left.min(2)
    }

    /// # Safety
    /// The tile must lie inside its weight and activations, and the machine must have the instructions.
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R];
}

/// # Safety
/// As [`panels`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_all<K: Kernel>(product: Product<'_>, panels: Range<usize>) {
    for panel in panels {
        // SAFETY: the caller's promises.
        unsafe { run::<K>(product, panel, product.panel(panel)) };
    }
}

/// All rows of one panel.
///
/// # Safety
/// As [`panels`]; `codes` are the panel's.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run<K: Kernel>(product: Product<'_>, panel: usize, codes: *const u8) {
    let mut row = 0;
    while row < product.rows {
        // SAFETY: rows of the tile are inside their range by the loop's bounds; the caller's promises.
        unsafe {
            row += match K::height(row, product.rows - row) {
                4 => store::<K, 4>(product, row, panel, codes),
                2 => store::<K, 2>(product, row, panel, codes),
                _ => store::<K, 1>(product, row, panel, codes),
            };
        }
    }
}

/// One tile, scaled and stored; returns its rows.
///
/// # Safety
/// As [`Kernel::tile`] and [`Output::store`].
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn store<K: Kernel, const R: usize>(product: Product<'_>, row: usize, index: usize, codes: *const u8) -> usize {
    let Product { x, w, layout, out, .. } = product;
    // SAFETY: the caller's promises; the row scales are inside the panel.
    unsafe {
        let panel = product.panel(index);
        let sums = K::tile::<R>(Operands { x, row, panel, codes, layout });
        let scales = [0, 1].map(|half| _mm256_loadu_ps(panel.add(layout.rows + half * 32).cast()));
        for (r, sums) in sums.into_iter().enumerate() {
            // Kinds without a scale per row of activations have 1 there.
            let row_scale = _mm256_set1_ps(x.scales[row + r]);
            let values = [0, 1].map(|half| _mm256_mul_ps(sums[half], _mm256_mul_ps(scales[half], row_scale)));
            put(out, row + r, index, w.spec.n, values);
        }
    }
    R
}

/// Stores the outputs of a panel in a row.
///
/// # Safety
/// As [`Output::store`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn put(out: Output<'_>, row: usize, panel: usize, n: usize, values: Pair) {
    // SAFETY: the caller's promise; a panel that ends before `n` has all its columns in the matrix and in the bias.
    unsafe {
        if (panel + 1) * PANEL > n {
            let mut lanes = [0.0f32; PANEL];
            for (half, values) in values.into_iter().enumerate() {
                _mm256_storeu_ps(lanes.as_mut_ptr().add(half * 8), values);
            }
            out.store(row, panel, n, &lanes);
            return;
        }
        for (half, mut values) in values.into_iter().enumerate() {
            let column = panel * PANEL + half * 8;
            let place = out.base.add(row * out.stride + column);
            if let Some(bias) = out.bias {
                values = _mm256_add_ps(values, _mm256_loadu_ps(bias[column..][..8].as_ptr()));
            }
            if out.add {
                values = _mm256_add_ps(_mm256_loadu_ps(place), values);
            }
            _mm256_storeu_ps(place, values);
        }
    }
}

/// # Safety
/// `p` must point to 32 readable bytes.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load(p: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(p.cast()) }
}

/// Scales and minima of a group, of one half of a panel.
///
/// # Safety
/// The group must be inside the panel.
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn scales(t: Operands<'_>, group: usize, half: usize) -> Pair {
    // SAFETY: the caller's promise: 64 bytes per group.
    unsafe {
        let at = t.panel.add(t.layout.scales + group * 2 * PANEL * 2 + half * 16);
        [at, at.add(PANEL * 2)].map(|p| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())))
    }
}
