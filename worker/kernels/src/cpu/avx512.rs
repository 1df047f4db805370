//! Products with AVX-512: vpdpbusd (VNNI) for integer codes, vdpbf16ps for BF16 and FP8.
//!
//! A tile is `R` rows x `C` panels of 16 outputs with one accumulator register each, and one more per row while a group's
//! integer sum is formed. Few rows take four panels at once: memory bounds them, and more independent sums hide the latency
//! of the dot products. Eight rows take two panels, so that one broadcast activation serves two products (one panel where
//! groups need a second set of accumulators): with weights, scales and tables that stays within 32 registers.

use std::{arch::x86_64::*, cell::RefCell, ops::Range};

use super::{
    activations::{Activations, TILE},
    linear::Output,
};
use crate::{
    AlignedBytes, GroupedActivations, PackedWeight, WeightKind,
    format::table::E4M3,
    pack::{PANEL, PanelLayout},
};

/// Rows from which decoding FP8 panels to BF16 once pays for the writing and reading of the decoded panel.
const DECODE_ROWS: usize = 2 * TILE;

thread_local! {
    /// FP8 panels, decoded.
    static DECODED: RefCell<AlignedBytes> = RefCell::new(AlignedBytes::zeroed(0));
}

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
    assert!(w.bytes.len() >= panels.end * layout.bytes, "the panels are inside the weight");
    assert!(x.scales.len() >= rows && x.words.len() >= rows.div_ceil(TILE) * x.steps * TILE, "the rows were quantized");
    let half = grouped == GroupedActivations::Bf16;
    // SAFETY: checked above; the caller's promises.
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

/// FP8 for many rows: panels are decoded to BF16 once, in the order that [`Bf16`] reads; their group scales follow.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx512bf16")]
unsafe fn run_decoded<K: Kernel>(
    x: &Activations,
    rows: usize,
    w: &PackedWeight,
    layout: &PanelLayout,
    panels: Range<usize>,
    out: Output<'_>,
) {
    let (codes_len, scales_len) = (layout.scales * 2, layout.rows - layout.scales);
    let stride = codes_len + scales_len;
    DECODED.with_borrow_mut(|decoded| {
        if decoded.len() < stride * K::WIDE {
            *decoded = AlignedBytes::zeroed(stride * K::WIDE);
        }
        for panel in panels.clone().step_by(K::WIDE) {
            let wide = K::WIDE.min(panels.end - panel);
            // SAFETY: the panels are inside the range; the scratch holds `wide` of them.
            unsafe {
                for c in 0..wide {
                    let codes = w.bytes.as_ptr().add((panel + c) * layout.bytes);
                    let target = decoded.as_mut_ptr().add(c * stride);
                    for step in 0..layout.scales / 64 {
                        let [first, second] = decode(load(codes.add(step * 64)));
                        _mm512_store_si512(target.add(step * 128).cast(), first);
                        _mm512_store_si512(target.add(step * 128 + 64).cast(), second);
                    }
                    std::ptr::copy_nonoverlapping(codes.add(layout.scales), target.add(codes_len), scales_len);
                }
                let columns = Columns { panel, codes: decoded.as_ptr(), stride };
                all_rows::<K>(x, rows, w, layout, columns, wide, out);
            }
        }
    });
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

struct Bf16;
impl Kernel for Bf16 {
    const WIDE: usize = 2;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    unsafe fn tile<const R: usize, const C: usize>(t: Operands) -> [[__m512; C]; R] {
        let mut sums = [[_mm512_setzero_ps(); C]; R];
        for step in 0..t.steps {
            // SAFETY: inside the panels and the rows: `step` is below K / 2.
            unsafe {
                let x = t.words.add(step * TILE);
                let w = weights::<C>(t.panel.add(step * 64), t.stride);
                for r in 0..R {
                    let x = broadcast(x.add(r));
                    for c in 0..C {
                        sums[r][c] = dot_halves(sums[r][c], w[c], x);
                    }
                }
            }
        }
        sums
    }
}

struct Fp8;
impl Kernel for Fp8 {
    const WIDE: usize = 2;

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
    #[inline]
    unsafe fn tile<const R: usize, const C: usize>(t: Operands) -> [[__m512; C]; R] {
        let mut sums = [[_mm512_setzero_ps(); C]; R];
        for step in 0..t.steps / 2 {
            // SAFETY: inside the panels and the rows: `step` is below K / 4.
            unsafe {
                let x = t.words.add(step * 2 * TILE);
                let mut w = [[_mm512_setzero_si512(); 2]; C];
                for (codes, w) in weights::<C>(t.panel.add(step * 64), t.stride).into_iter().zip(&mut w) {
                    *w = decode(codes);
                }
                for r in 0..R {
                    let (first, second) = (broadcast(x.add(r)), broadcast(x.add(TILE + r)));
                    for c in 0..C {
                        sums[r][c] = dot_halves(sums[r][c], w[c][0], first);
                        sums[r][c] = dot_halves(sums[r][c], w[c][1], second);
                    }
                }
            }
        }
        sums
    }
}

/// FP8 blocks, as codes or decoded by [`run_decoded`].
struct Fp8Block<const DECODED: bool>;
impl<const DECODED: bool> Kernel for Fp8Block<DECODED> {
    const WIDE: usize = 1;

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
    #[inline]
    unsafe fn tile<const R: usize, const C: usize>(t: Operands) -> [[__m512; C]; R] {
        let mut out = [[_mm512_setzero_ps(); C]; R];
        let steps = t.group / 4;
        for group in 0..t.group_count {
            for c in 0..C {
                let mut sums = [_mm512_setzero_ps(); R];
                // SAFETY: groups divide K, so every read is inside the panel and the rows.
                unsafe {
                    let panel = t.panel.add(c * t.stride);
                    for step in group * steps..(group + 1) * steps {
                        let [first, second] = if DECODED {
                            [load(panel.add(step * 128)), load(panel.add(step * 128 + 64))]
                        } else {
                            decode(load(panel.add(step * 64)))
                        };
                        let x = t.words.add(step * 2 * TILE);
                        for r in 0..R {
                            sums[r] = dot_halves(sums[r], first, broadcast(x.add(r)));
                            sums[r] = dot_halves(sums[r], second, broadcast(x.add(TILE + r)));
                        }
                    }
                    let scales_at = if DECODED { t.scales * 2 } else { t.scales } + group * PANEL * 4;
                    let scales = _mm512_loadu_ps(panel.add(scales_at).cast());
                    let groups = t.groups.add(group * 2 * TILE);
                    for r in 0..R {
                        let sum = _mm512_mul_ps(sums[r], _mm512_set1_ps(*groups.add(r)));
                        out[r][c] = _mm512_fmadd_ps(sum, scales, out[r][c]);
                    }
                }
            }
        }
        out
    }
}

struct Int8;
impl Kernel for Int8 {
    const WIDE: usize = 2;

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn tile<const R: usize, const C: usize>(t: Operands) -> [[__m512; C]; R] {
        let mut sums = [[_mm512_setzero_si512(); C]; R];
        for step in 0..t.steps {
            // SAFETY: inside the panels and the rows: `step` is below K / 4.
            unsafe {
                let x = t.words.add(step * TILE);
                let w = weights::<C>(t.panel.add(step * 64), t.stride);
                for r in 0..R {
                    let x = broadcast(x.add(r));
                    for c in 0..C {
                        sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], x, w[c]);
                    }
                }
            }
        }
        let mut out = [[_mm512_setzero_ps(); C]; R];
        for c in 0..C {
            // SAFETY: the column sums are inside the panel. The activations carry 128 too much: 128 x column sum.
            let extra = unsafe { _mm512_slli_epi32::<7>(load(t.panel.add(c * t.stride + t.sums))) };
            for r in 0..R {
                out[r][c] = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][c], extra));
            }
        }
        out
    }
}

/// Groups with INT8 activations.
struct Groups<const BITS: usize>;
impl<const BITS: usize> Kernel for Groups<BITS> {
    const WIDE: usize = 1;

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn tile<const R: usize, const C: usize>(t: Operands) -> [[__m512; C]; R] {
        let mut out = [[_mm512_setzero_ps(); C]; R];
        let mask = _mm512_set1_epi8(15);
        let registers = t.group * BITS / 32;
        for group in 0..t.group_count {
            for c in 0..C {
                let mut sums = [_mm512_setzero_si512(); R];
                // SAFETY: groups divide K, so every read is inside the panel and the rows.
                unsafe {
                    let panel = t.panel.add(c * t.stride);
                    let codes = panel.add(group * registers * 64);
                    let x = t.words.add(group * t.group / 4 * TILE);
                    for register in 0..registers {
                        let w = load(codes.add(register * 64));
                        if BITS == 4 {
                            let low = _mm512_and_si512(w, mask);
                            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(w), mask);
                            let x = x.add(register * 2 * TILE);
                            for r in 0..R {
                                sums[r] = _mm512_dpbusd_epi32(sums[r], low, broadcast(x.add(r)));
                            }
                            for r in 0..R {
                                sums[r] = _mm512_dpbusd_epi32(sums[r], high, broadcast(x.add(TILE + r)));
                            }
                        } else {
                            let x = x.add(register * TILE);
                            for r in 0..R {
                                sums[r] = _mm512_dpbusd_epi32(sums[r], w, broadcast(x.add(r)));
                            }
                        }
                    }
                    let scales_at = panel.add(t.scales + group * 2 * PANEL * 2);
                    let (scales, mins) = (halves(scales_at), halves(scales_at.add(PANEL * 2)));
                    let groups = t.groups.add(group * 2 * TILE);
                    for r in 0..R {
                        let (scale, total) = (_mm512_set1_ps(*groups.add(r)), _mm512_set1_ps(*groups.add(TILE + r)));
                        let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r]), scale);
                        out[r][c] = _mm512_fmadd_ps(sum, scales, out[r][c]);
                        out[r][c] = _mm512_fmadd_ps(mins, total, out[r][c]);
                    }
                }
            }
        }
        out
    }
}

/// Groups with BF16 activations: the codes become exact BF16 integers.
struct GroupHalves<const BITS: usize>;
impl<const BITS: usize> Kernel for GroupHalves<BITS> {
    const WIDE: usize = 1;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    unsafe fn tile<const R: usize, const C: usize>(t: Operands) -> [[__m512; C]; R] {
        let mut out = [[_mm512_setzero_ps(); C]; R];
        let byte = _mm512_set1_epi32(255);
        for group in 0..t.group_count {
            for c in 0..C {
                let mut sums = [_mm512_setzero_ps(); R];
                // SAFETY: groups divide K, so every read is inside the panel and the rows.
                unsafe {
                    let panel = t.panel.add(c * t.stride);
                    for quad in group * t.group / 4..(group + 1) * t.group / 4 {
                        let w = if BITS == 4 {
                            let w = load(panel.add(quad / 2 * 64));
                            let w = if quad % 2 == 0 { w } else { _mm512_srli_epi16::<4>(w) };
                            _mm512_and_si512(w, _mm512_set1_epi8(15))
                        } else {
                            load(panel.add(quad * 64))
                        };
                        // Each 32-bit lane holds the four codes of an output.
                        let codes = |shift: u32| {
                            let shifted = _mm512_srlv_epi32(w, _mm512_set1_epi32(shift as i32));
                            _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_and_si512(shifted, byte)))
                        };
                        let pair = |a: __m512i, b: __m512i| _mm512_or_si512(_mm512_srli_epi32::<16>(a), b);
                        let first = pair(codes(0), codes(8));
                        let second = pair(codes(16), codes(24));
                        let x = t.words.add(quad * 2 * TILE);
                        for r in 0..R {
                            sums[r] = dot_halves(sums[r], first, broadcast(x.add(r)));
                            sums[r] = dot_halves(sums[r], second, broadcast(x.add(TILE + r)));
                        }
                    }
                    let scales_at = panel.add(t.scales + group * 2 * PANEL * 2);
                    let (scales, mins) = (halves(scales_at), halves(scales_at.add(PANEL * 2)));
                    let groups = t.groups.add(group * 2 * TILE);
                    for r in 0..R {
                        out[r][c] = _mm512_fmadd_ps(sums[r], scales, out[r][c]);
                        out[r][c] = _mm512_fmadd_ps(mins, _mm512_set1_ps(*groups.add(TILE + r)), out[r][c]);
                    }
                }
            }
        }
        out
    }
}

/// 64 bytes of FP8 codes as two registers of BF16 pairs (see [`crate::pack`](mod@crate::pack) for their order).
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn decode(codes: __m512i) -> [__m512i; 2] {
    // SAFETY: the tables have 128 bytes each and are aligned.
    let (low, high) = unsafe {
        let (low, high) = (E4M3.low.as_ptr(), E4M3.high.as_ptr());
        ([load(low), load(low.add(64))], [load(high), load(high.add(64))])
    };
    let lows = _mm512_permutex2var_epi8(low[0], codes, low[1]);
    let highs = _mm512_permutex2var_epi8(high[0], codes, high[1]);
    // The look-up ignores the sign bit; the high byte gets it back: highs | (codes & sign).
    let highs = _mm512_ternarylogic_epi32::<0xf8>(highs, codes, _mm512_set1_epi8(-128));
    [_mm512_unpacklo_epi8(lows, highs), _mm512_unpackhi_epi8(lows, highs)]
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
pub(super) unsafe fn load(p: *const u8) -> __m512i {
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
pub(super) fn dot_halves(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
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
