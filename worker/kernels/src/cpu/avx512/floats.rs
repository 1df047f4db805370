//! Dot products of BF16 pairs (vdpbf16ps): for BF16, for FP8, whose codes become BF16, and for groups with BF16 activations.

use std::{arch::x86_64::*, cell::RefCell, ops::Range};

use super::{Columns, Kernel, Operands, Output, TILE, all_rows, broadcast, dot_halves, halves, load, weights};
use crate::{
    AlignedBytes, PackedWeight,
    cpu::activations::Activations,
    format::table::E4M3,
    pack::{PANEL, PanelLayout},
};

thread_local! {
    /// FP8 panels, decoded.
    static DECODED: RefCell<AlignedBytes> = RefCell::new(AlignedBytes::zeroed(0));
}

/// FP8 for many rows: panels are decoded to BF16 once, in the order that [`Bf16`] reads; their group scales follow.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx512bf16")]
pub(super) unsafe fn run_decoded<K: Kernel>(
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

pub(super) struct Bf16;
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

pub(super) struct Fp8;
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
pub(super) struct Fp8Block<const DECODED: bool>;
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

/// Groups with BF16 activations: the codes become exact BF16 integers.
pub(super) struct GroupHalves<const BITS: usize>;
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
