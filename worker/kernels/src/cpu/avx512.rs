//! Products with AVX-512: vpdpbusd (VNNI) for integer codes, vdpbf16ps for BF16 and FP8.
//!
//! A tile is `R` rows x `C` panels of 16 outputs, one accumulator register each (and one more while a group's integer
//! sum is formed): at most 8 of each, so that with weights, scales and masks a tile stays within 32 registers. One row
//! takes four panels at once to hide the latency of the dot products; many rows take one panel and reuse its registers.

use std::{arch::x86_64::*, ops::Range};

use super::{activations::Activations, linear::Output};
use crate::{
    GroupedActivations, PackedWeight, WeightKind,
    pack::{PANEL, PanelLayout},
};

/// Operands of a tile.
#[derive(Clone, Copy)]
struct Tile<'a> {
    x: &'a Activations,
    row: usize,
    panels: *const u8,
    layout: PanelLayout,
}

/// The decoding tables of E4M3: low and high byte of the BF16 of codes 0..128.
struct Tables {
    low: [u8; 128],
    high: [u8; 128],
}

static E4M3: Tables = tables();

const fn tables() -> Tables {
    let mut tables = Tables { low: [0; 128], high: [0; 128] };
    let mut code = 0;
    while code < 128 {
        let (exponent, mantissa) = (code >> 3, code & 7);
        let bits: u16 = if exponent == 0 {
            // Subnormal: mantissa x 2^-9, normalized.
            match mantissa {
                0 => 0,
                1 => 118 << 7,
                2 | 3 => (119 << 7) | ((mantissa & 1) << 6),
                _ => (120 << 7) | ((mantissa & 3) << 5),
            }
        } else {
            ((exponent + 120) << 7) | (mantissa << 4)
        };
        tables.low[code as usize] = bits as u8;
        tables.high[code as usize] = (bits >> 8) as u8;
        code += 1;
    }
    tables
}

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
    debug_assert!(w.bytes.len() >= panels.end * layout.bytes);
    let half = grouped == GroupedActivations::Bf16;
    // SAFETY: `run` only reads panels inside the weight (checked when it was packed or opened) and rows inside `x`.
    unsafe {
        match w.spec.kind {
            WeightKind::Bf16 => run::<Bf16>(x, rows, w, layout, panels, out),
            WeightKind::Fp8 => run::<Fp8>(x, rows, w, layout, panels, out),
            WeightKind::Int8 => run::<Int8>(x, rows, w, layout, panels, out),
            WeightKind::Int4 { .. } if half => run::<GroupHalves<4>>(x, rows, w, layout, panels, out),
            WeightKind::Int8Group { .. } if half => run::<GroupHalves<8>>(x, rows, w, layout, panels, out),
            WeightKind::Int4 { .. } => run::<Groups<4>>(x, rows, w, layout, panels, out),
            WeightKind::Int8Group { .. } => run::<Groups<8>>(x, rows, w, layout, panels, out),
        }
    }
}

/// A kind's tile product, scaled but for the row scales.
trait Kernel {
    /// # Safety
    /// The tile must lie inside its weight and activations, and the machine must have the instructions.
    unsafe fn tile<const R: usize, const C: usize>(tile: Tile<'_>) -> [[__m512; C]; R];
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
        let wide = if rows <= 2 && left >= 4 { 4 } else { 1 };
        let mut row = 0;
        while row < rows {
            // SAFETY: rows and panels of the tile are inside their ranges by the loop's bounds.
            unsafe {
                row += match (rows - row, wide) {
                    (2.., 4) => store::<K, 2, 4>(x, row, w, layout, panel, out),
                    (_, 4) => store::<K, 1, 4>(x, row, w, layout, panel, out),
                    (8.., _) => store::<K, 8, 1>(x, row, w, layout, panel, out),
                    (4.., _) => store::<K, 4, 1>(x, row, w, layout, panel, out),
                    (2.., _) => store::<K, 2, 1>(x, row, w, layout, panel, out),
                    _ => store::<K, 1, 1>(x, row, w, layout, panel, out),
                };
            }
        }
        panel += wide;
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
    panel: usize,
    out: Output<'_>,
) -> usize {
    let panels = w.bytes[panel * layout.bytes..].as_ptr();
    // SAFETY: the caller's promises; the row scales are inside the panel.
    unsafe {
        let sums = K::tile::<R, C>(Tile { x, row, panels, layout: *layout });
        for c in 0..C {
            let scales = _mm512_loadu_ps(panels.add(c * layout.bytes + layout.rows).cast());
            let n = w.spec.n - (panel + c) * PANEL;
            for (r, sums) in sums.iter().enumerate() {
                let row = row + r;
                let scale = match w.spec.kind {
                    WeightKind::Fp8 | WeightKind::Int8 => x.scales[row],
                    _ => 1.0,
                };
                let scales = _mm512_mul_ps(scales, _mm512_set1_ps(scale));
                let mut value = _mm512_mul_ps(sums[c], scales);
                let mask = if n >= PANEL { 0xffff } else { (1u16 << n) - 1 };
                let first = (panel + c) * PANEL;
                if let Some(bias) = out.bias {
                    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, bias[first..].as_ptr()));
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
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    unsafe fn tile<const R: usize, const C: usize>(t: Tile<'_>) -> [[__m512; C]; R] {
        let mut sums = [[_mm512_setzero_ps(); C]; R];
        let x = t.x.halves[t.row * t.layout.k..(t.row + R) * t.layout.k].as_ptr();
        for step in 0..t.layout.k / 2 {
            for c in 0..C {
                // SAFETY: inside the panel and the rows: `step` is below K / 2.
                unsafe {
                    let w = load(t.panels.add(c * t.layout.bytes + step * 64));
                    for r in 0..R {
                        let x = broadcast(x.add(r * t.layout.k + step * 2).cast());
                        sums[r][c] = dot_halves(sums[r][c], w, x);
                    }
                }
            }
        }
        sums
    }
}

struct Fp8;
impl Kernel for Fp8 {
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
    #[inline]
    unsafe fn tile<const R: usize, const C: usize>(t: Tile<'_>) -> [[__m512; C]; R] {
        let mut sums = [[_mm512_setzero_ps(); C]; R];
        let x = t.x.halves[t.row * t.layout.k..(t.row + R) * t.layout.k].as_ptr();
        // SAFETY: the tables have 128 bytes each.
        let (low, high) = unsafe {
            let (low, high) = (E4M3.low.as_ptr(), E4M3.high.as_ptr());
            ([load(low), load(low.add(64))], [load(high), load(high.add(64))])
        };
        let sign = _mm512_set1_epi8(-128);
        for step in 0..t.layout.k / 4 {
            for c in 0..C {
                // SAFETY: inside the panel and the rows: `step` is below K / 4.
                unsafe {
                    let codes = load(t.panels.add(c * t.layout.bytes + step * 64));
                    // The look-up ignores the sign bit; the high byte gets it back.
                    let lows = _mm512_permutex2var_epi8(low[0], codes, low[1]);
                    let highs = _mm512_permutex2var_epi8(high[0], codes, high[1]);
                    let highs = _mm512_or_si512(highs, _mm512_and_si512(codes, sign));
                    let first = _mm512_unpacklo_epi8(lows, highs);
                    let second = _mm512_unpackhi_epi8(lows, highs);
                    for r in 0..R {
                        let x = x.add(r * t.layout.k + step * 4);
                        sums[r][c] = dot_halves(sums[r][c], first, broadcast(x.cast()));
                        sums[r][c] = dot_halves(sums[r][c], second, broadcast(x.add(2).cast()));
                    }
                }
            }
        }
        sums
    }
}

struct Int8;
impl Kernel for Int8 {
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn tile<const R: usize, const C: usize>(t: Tile<'_>) -> [[__m512; C]; R] {
        let mut sums = [[_mm512_setzero_si512(); C]; R];
        let x = t.x.bytes[t.row * t.layout.k..(t.row + R) * t.layout.k].as_ptr();
        for step in 0..t.layout.k / 4 {
            for c in 0..C {
                // SAFETY: inside the panel and the rows: `step` is below K / 4.
                unsafe {
                    let w = load(t.panels.add(c * t.layout.bytes + step * 64));
                    for r in 0..R {
                        let x = broadcast(x.add(r * t.layout.k + step * 4).cast());
                        sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], x, w);
                    }
                }
            }
        }
        let mut out = [[_mm512_setzero_ps(); C]; R];
        for c in 0..C {
            // SAFETY: the column sums are inside the panel. The activations carry 128 too much: 128 x column sum.
            let extra = unsafe { _mm512_slli_epi32::<7>(load(t.panels.add(c * t.layout.bytes + t.layout.sums))) };
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
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn tile<const R: usize, const C: usize>(t: Tile<'_>) -> [[__m512; C]; R] {
        let mut out = [[_mm512_setzero_ps(); C]; R];
        let x = t.x.bytes[t.row * t.layout.k..(t.row + R) * t.layout.k].as_ptr();
        let groups = &t.x.groups[t.row * t.x.group_count..(t.row + R) * t.x.group_count];
        let mask = _mm512_set1_epi8(15);
        let registers = t.layout.group * BITS / 32;
        for group in 0..t.x.group_count {
            for c in 0..C {
                let mut sums = [_mm512_setzero_si512(); R];
                // SAFETY: groups divide K, so every read is inside the panel and the rows.
                unsafe {
                    let codes = t.panels.add(c * t.layout.bytes + group * registers * 64);
                    let x = x.add(group * t.layout.group);
                    for register in 0..registers {
                        let w = load(codes.add(register * 64));
                        if BITS == 4 {
                            let low = _mm512_and_si512(w, mask);
                            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(w), mask);
                            for (r, sum) in sums.iter_mut().enumerate() {
                                let x = x.add(r * t.layout.k + register * 8);
                                *sum = _mm512_dpbusd_epi32(*sum, low, broadcast(x.cast()));
                                *sum = _mm512_dpbusd_epi32(*sum, high, broadcast(x.add(4).cast()));
                            }
                        } else {
                            for (r, sum) in sums.iter_mut().enumerate() {
                                let x = x.add(r * t.layout.k + register * 4);
                                *sum = _mm512_dpbusd_epi32(*sum, w, broadcast(x.cast()));
                            }
                        }
                    }
                    let (scales, mins) = scales(t.panels.add(c * t.layout.bytes), &t.layout, group);
                    for r in 0..R {
                        let [scale, total] = groups[r * t.x.group_count + group];
                        let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r]), _mm512_set1_ps(scale));
                        out[r][c] = _mm512_fmadd_ps(sum, scales, out[r][c]);
                        out[r][c] = _mm512_fmadd_ps(mins, _mm512_set1_ps(total), out[r][c]);
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
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    unsafe fn tile<const R: usize, const C: usize>(t: Tile<'_>) -> [[__m512; C]; R] {
        let mut out = [[_mm512_setzero_ps(); C]; R];
        let x = t.x.halves[t.row * t.layout.k..(t.row + R) * t.layout.k].as_ptr();
        let groups = &t.x.groups[t.row * t.x.group_count..(t.row + R) * t.x.group_count];
        let byte = _mm512_set1_epi32(255);
        for group in 0..t.x.group_count {
            for c in 0..C {
                let mut sums = [_mm512_setzero_ps(); R];
                // SAFETY: groups divide K, so every read is inside the panel and the rows.
                unsafe {
                    let panel = t.panels.add(c * t.layout.bytes);
                    for quad in group * t.layout.group / 4..(group + 1) * t.layout.group / 4 {
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
                        for (r, sum) in sums.iter_mut().enumerate() {
                            let x = x.add(r * t.layout.k + quad * 4);
                            *sum = dot_halves(*sum, first, broadcast(x.cast()));
                            *sum = dot_halves(*sum, second, broadcast(x.add(2).cast()));
                        }
                    }
                    let (scales, mins) = scales(panel, &t.layout, group);
                    for r in 0..R {
                        let [_, total] = groups[r * t.x.group_count + group];
                        out[r][c] = _mm512_fmadd_ps(sums[r], scales, out[r][c]);
                        out[r][c] = _mm512_fmadd_ps(mins, _mm512_set1_ps(total), out[r][c]);
                    }
                }
            }
        }
        out
    }
}

/// # Safety
/// `p` must point to 64 readable bytes.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load(p: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(p.cast()) }
}

/// # Safety
/// `p` must point to 4 readable bytes.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn broadcast(p: *const i32) -> __m512i {
    // SAFETY: the caller's promise.
    _mm512_set1_epi32(unsafe { p.read_unaligned() })
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn dot_halves(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: both are 64 bytes of plain data.
    unsafe {
        _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
    }
}

/// Scales and minima of a group.
///
/// # Safety
/// The group must be inside the panel.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn scales(panel: *const u8, layout: &PanelLayout, group: usize) -> (__m512, __m512) {
    // SAFETY: the caller's promise: 64 bytes per group.
    unsafe {
        let at = panel.add(layout.scales + group * 2 * PANEL * 2);
        (_mm512_cvtph_ps(_mm256_loadu_si256(at.cast())), _mm512_cvtph_ps(_mm256_loadu_si256(at.add(PANEL * 2).cast())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::e4m3;

    #[test]
    fn the_tables_hold_the_bf16_of_every_code() {
        for code in 0..127u8 {
            let bits = u32::from(E4M3.high[code as usize]) << 24 | u32::from(E4M3.low[code as usize]) << 16;
            assert_eq!(bits, e4m3::decode(code).to_bits(), "{code:#x}");
        }
    }
}
