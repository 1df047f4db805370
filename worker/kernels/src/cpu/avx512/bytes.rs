//! Dot products of bytes (vpdpbusd): unsigned activations, signed codes.

use std::arch::x86_64::*;

use super::{Kernel, Operands, TILE, broadcast, halves, load, weights};
use crate::pack::PANEL;

pub(super) struct Int8;
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
pub(super) struct Groups<const BITS: usize>;
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
