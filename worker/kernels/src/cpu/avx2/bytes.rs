//! Byte products (vpmaddubsw) for integer codes.
//!
//! vpmaddubsw adds two products of an unsigned and a signed byte with saturation at 16 bits, so every use here says why its
//! sums stay below 32,768.

use std::arch::x86_64::*;

use super::{Kernel, Operands, Pair, TILE, load, scales};

/// Words of the tile's rows at a step, one after the other.
///
/// # Safety
/// The step is inside the rows.
#[inline]
unsafe fn words(t: Operands<'_>, step: usize) -> *const u32 {
    let at = (t.row / TILE * t.x.steps + step) * TILE + t.row % TILE;
    // SAFETY: the caller's promise.
    unsafe { t.x.words.as_ptr().add(at) }
}

/// Rows of a tile: those of one tile of activations lie together, so a kernel's rows never cross into the next.
fn height(row: usize, left: usize) -> usize {
    match left.min(TILE - row % TILE) {
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Integer codes, a scale per row.
pub(super) struct Int8;
impl Kernel for Int8 {
    fn height(row: usize, left: usize) -> usize {
        height(row, left)
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R] {
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        let bias = _mm256_set1_epi8(-128);
        for step in 0..t.x.steps {
            // SAFETY: inside the panel and the rows.
            unsafe {
                let x = words(t, step);
                let w = [load(t.codes.add(step * 64)), load(t.codes.add(step * 64 + 32))];
                for (r, sums) in sums.iter_mut().enumerate() {
                    // The codes without the 128 that vpdpbusd wants.
                    let x = _mm256_xor_si256(_mm256_set1_epi32(*x.add(r) as i32), bias);
                    for h in 0..2 {
                        sums[h] = _mm256_add_epi32(sums[h], signed_products(w[h], x));
                    }
                }
            }
        }
        sums.map(|sums| sums.map(|sum| _mm256_cvtepi32_ps(sum)))
    }
}

/// Groups with INT8 activations.
pub(super) struct Groups<const BITS: usize>;
impl<const BITS: usize> Kernel for Groups<BITS> {
    fn height(row: usize, left: usize) -> usize {
        height(row, left)
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R] {
        let mut out = [[_mm256_setzero_ps(); 2]; R];
        let (nibble, bias) = (_mm256_set1_epi8(15), _mm256_set1_epi8(-128));
        let ones = _mm256_set1_epi16(1);
        for group in 0..t.x.group_count {
            let mut sums = [[_mm256_setzero_si256(); 2]; R];
            // SAFETY: groups divide K, so every read is inside the panel and the rows.
            unsafe {
                for quads in 0..t.layout.group / 32 {
                    // Eight products of at most 15 x 127 x 2 stay below 2^15: one widening for 32 inputs.
                    let mut narrow = [[_mm256_setzero_si256(); 2]; R];
                    for quad in 0..8 {
                        let quad = (group * t.layout.group / 32 + quads) * 8 + quad;
                        let x = words(t, quad);
                        for h in 0..2 {
                            let w = if BITS == 4 {
                                let w = load(t.codes.add(quad / 2 * 64 + h * 32));
                                let w = if quad.is_multiple_of(2) { w } else { _mm256_srli_epi16::<4>(w) };
                                _mm256_and_si256(w, nibble)
                            } else {
                                _mm256_xor_si256(load(t.codes.add(quad * 64 + h * 32)), bias)
                            };
                            for r in 0..R {
                                let x = _mm256_set1_epi32(*x.add(r) as i32);
                                if BITS == 4 {
                                    narrow[r][h] = _mm256_add_epi16(narrow[r][h], _mm256_maddubs_epi16(w, x));
                                } else {
                                    sums[r][h] = _mm256_add_epi32(sums[r][h], signed_products(w, x));
                                }
                            }
                        }
                    }
                    if BITS == 4 {
                        for r in 0..R {
                            for h in 0..2 {
                                sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_madd_epi16(narrow[r][h], ones));
                            }
                        }
                    }
                }
                for r in 0..R {
                    let (scale, total) = t.x.group(t.row + r, group);
                    // The bytes were taken 128 lower: that many times the sum of the activations' codes is missing.
                    let missing = if BITS == 4 { 0.0 } else { 128.0 * (total / scale).round() };
                    for h in 0..2 {
                        let [scales, mins] = scales(t, group, h);
                        let sum = _mm256_add_ps(_mm256_cvtepi32_ps(sums[r][h]), _mm256_set1_ps(missing));
                        let sum = _mm256_mul_ps(sum, _mm256_set1_ps(scale));
                        out[r][h] = _mm256_fmadd_ps(sum, scales, out[r][h]);
                        out[r][h] = _mm256_fmadd_ps(mins, _mm256_set1_ps(total), out[r][h]);
                    }
                }
            }
        }
        out
    }
}

/// Sums of four products of signed bytes. The sign moves from `w` to `x`, so that `w` may count as unsigned: two products
/// are at most 128 x 127 x 2 = 32,512. `x` is never -128.
#[target_feature(enable = "avx2")]
#[inline]
fn signed_products(w: __m256i, x: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}
