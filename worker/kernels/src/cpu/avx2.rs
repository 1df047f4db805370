//! Products with AVX2 and FMA: byte products (vpmaddubsw) for integer codes, FP32 multiply-adds for BF16 and FP8.
//!
//! A tile is `R` rows x one panel of 16 outputs, two registers of 8. vpmaddubsw adds two products of an unsigned and a signed
//! byte with saturation at 16 bits, so every use here says why its sums stay below 32,768.

use std::{arch::x86_64::*, ops::Range};

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

/// Operands of a tile.
#[derive(Clone, Copy)]
struct Operands<'a> {
    x: &'a Activations,
    row: usize,
    panel: *const u8,
    layout: &'a PanelLayout,
}

impl Operands<'_> {
    /// Words of the tile's rows at a step, one after the other.
    ///
    /// # Safety
    /// The step is inside the rows.
    unsafe fn words(&self, step: usize) -> *const u32 {
        let at = (self.row / TILE * self.x.steps + step) * TILE + self.row % TILE;
        // SAFETY: the caller's promise.
        unsafe { self.x.words.as_ptr().add(at) }
    }
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
    assert!(w.bytes.len() >= panels.end * layout.bytes, "the panels are inside the weight");
    assert!(x.scales.len() >= rows && x.words.len() >= rows.div_ceil(TILE) * x.steps * TILE, "the rows were quantized");
    let half = grouped == GroupedActivations::Bf16;
    // SAFETY: checked above; the caller's promises.
    unsafe {
        match w.spec.kind {
            WeightKind::Bf16 => run::<Bf16>(x, rows, w, layout, panels, out),
            WeightKind::Fp8 | WeightKind::Fp8Static => run::<Fp8>(x, rows, w, layout, panels, out),
            WeightKind::Fp8Block => run::<Fp8Block>(x, rows, w, layout, panels, out),
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
    /// # Safety
    /// The tile must lie inside its weight and activations, and the machine must have the instructions.
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R];
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run<K: Kernel>(
    x: &Activations,
    rows: usize,
    w: &PackedWeight,
    layout: &PanelLayout,
    panels: Range<usize>,
    out: Output<'_>,
) {
    for panel in panels {
        let mut row = 0;
        while row < rows {
            // Rows of one tile of activations lie together; a kernel's rows never cross into the next.
            let height = (rows - row).min(TILE - row % TILE);
            // SAFETY: rows and panels of the tile are inside their ranges by the loops' bounds.
            unsafe {
                row += match height {
                    4.. => store::<K, 4>(x, row, w, layout, panel, out),
                    2.. => store::<K, 2>(x, row, w, layout, panel, out),
                    _ => store::<K, 1>(x, row, w, layout, panel, out),
                };
            }
        }
    }
}

/// One tile, scaled and stored; returns its rows.
///
/// # Safety
/// As [`Kernel::tile`] and [`Output::store`].
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn store<K: Kernel, const R: usize>(
    x: &Activations,
    row: usize,
    w: &PackedWeight,
    layout: &PanelLayout,
    panel: usize,
    out: Output<'_>,
) -> usize {
    // SAFETY: the caller's promises; the row scales are inside the panel.
    unsafe {
        let start = w.bytes.as_ptr().add(panel * layout.bytes);
        let sums = K::tile::<R>(Operands { x, row, panel: start, layout });
        for (r, sums) in sums.iter().enumerate() {
            let mut values = [0.0f32; PANEL];
            for (half, sums) in sums.iter().enumerate() {
                let scales = _mm256_loadu_ps(start.add(layout.rows + half * 32).cast());
                // Kinds without a scale per row of activations have 1 there.
                let scales = _mm256_mul_ps(scales, _mm256_set1_ps(x.scales[row + r]));
                _mm256_storeu_ps(values.as_mut_ptr().add(half * 8), _mm256_mul_ps(*sums, scales));
            }
            out.store(row + r, panel, w.spec.n, &values);
        }
    }
    R
}

struct Bf16;
impl Kernel for Bf16 {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R] {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for step in 0..t.x.steps {
            // SAFETY: inside the panel and the rows.
            unsafe {
                let x = t.words(step);
                let w = [load(t.panel.add(step * 64)), load(t.panel.add(step * 64 + 32))];
                let (first, second) = (w.map(|w| low_halves(w)), w.map(|w| high_halves(w)));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = _mm256_set1_epi32(*x.add(r) as i32);
                    let (a, b) = (low_halves(x), high_halves(x));
                    for h in 0..2 {
                        sums[h] = _mm256_fmadd_ps(first[h], a, sums[h]);
                        sums[h] = _mm256_fmadd_ps(second[h], b, sums[h]);
                    }
                }
            }
        }
        sums
    }
}

struct Fp8;
impl Kernel for Fp8 {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R] {
        // SAFETY: the whole panel.
        unsafe { fp8_steps(t, 0..t.x.steps) }
    }
}

struct Fp8Block;
impl Kernel for Fp8Block {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R] {
        let mut out = [[_mm256_setzero_ps(); 2]; R];
        let steps = t.layout.group / 2;
        for group in 0..t.x.group_count {
            // SAFETY: groups divide K, so every read is inside the panel and the rows.
            unsafe {
                let sums = fp8_steps::<R>(t, group * steps..(group + 1) * steps);
                let scales = t.panel.add(t.layout.scales + group * PANEL * 4);
                for r in 0..R {
                    let (scale, _) = t.x.group(t.row + r, group);
                    for h in 0..2 {
                        let scales = _mm256_loadu_ps(scales.add(h * 32).cast());
                        let sum = _mm256_mul_ps(sums[r][h], _mm256_set1_ps(scale));
                        out[r][h] = _mm256_fmadd_ps(sum, scales, out[r][h]);
                    }
                }
            }
        }
        out
    }
}

/// The products of FP8 codes over some steps of two inputs.
///
/// # Safety
/// The steps are inside the panel and the rows.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn fp8_steps<const R: usize>(t: Operands<'_>, steps: Range<usize>) -> [Pair; R] {
    // A register holds four outputs, each with an even and an odd input.
    let mut sums = [[_mm256_setzero_ps(); 4]; R];
    for step in steps {
        // SAFETY: inside the panel and the rows: two steps of activations for each 64 bytes of codes.
        unsafe {
            let x = t.words(step);
            let codes = t.panel.add(step / 2 * 64 + step % 2 * 8);
            for quarter in 0..4 {
                let w = e4m3(_mm_loadl_epi64(codes.add(quarter * 16).cast()));
                for (r, sums) in sums.iter_mut().enumerate() {
                    // The even lanes get the pair's first value, the odd ones its second.
                    let x = _mm256_set1_epi32(*x.add(r) as i32);
                    let x = _mm256_blend_ps::<0xaa>(low_halves(x), high_halves(x));
                    sums[quarter] = _mm256_fmadd_ps(w, x, sums[quarter]);
                }
            }
        }
    }
    sums.map(|[a, b, c, d]| [add_pairs(a, b), add_pairs(c, d)])
}

struct Int8;
impl Kernel for Int8 {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R] {
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        let bias = _mm256_set1_epi8(-128);
        for step in 0..t.x.steps {
            // SAFETY: inside the panel and the rows.
            unsafe {
                let x = t.words(step);
                let w = [load(t.panel.add(step * 64)), load(t.panel.add(step * 64 + 32))];
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
struct Groups<const BITS: usize>;
impl<const BITS: usize> Kernel for Groups<BITS> {
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
                        let x = t.words(quad);
                        for h in 0..2 {
                            let w = if BITS == 4 {
                                let w = load(t.panel.add(quad / 2 * 64 + h * 32));
                                let w = if quad.is_multiple_of(2) { w } else { _mm256_srli_epi16::<4>(w) };
                                _mm256_and_si256(w, nibble)
                            } else {
                                _mm256_xor_si256(load(t.panel.add(quad * 64 + h * 32)), bias)
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

/// Groups with BF16 activations.
struct GroupHalves<const BITS: usize>;
impl<const BITS: usize> Kernel for GroupHalves<BITS> {
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R] {
        let mut out = [[_mm256_setzero_ps(); 2]; R];
        for group in 0..t.x.group_count {
            let mut sums = [[_mm256_setzero_ps(); 2]; R];
            // SAFETY: groups divide K, so every read is inside the panel and the rows.
            unsafe {
                for quad in group * t.layout.group / 4..(group + 1) * t.layout.group / 4 {
                    let x = [t.words(quad * 2), t.words(quad * 2 + 1)];
                    for h in 0..2 {
                        // Each 32-bit lane holds the four codes of an output.
                        let w = if BITS == 4 {
                            let w = load(t.panel.add(quad / 2 * 64 + h * 32));
                            _mm256_srl_epi32(w, _mm_cvtsi32_si128((quad % 2 * 4) as i32))
                        } else {
                            load(t.panel.add(quad * 64 + h * 32))
                        };
                        let mask = _mm256_set1_epi32(if BITS == 4 { 15 } else { 255 });
                        for i in 0..4 {
                            let code = _mm256_and_si256(_mm256_srl_epi32(w, _mm_cvtsi32_si128(i * 8)), mask);
                            let code = _mm256_cvtepi32_ps(code);
                            for (r, sums) in sums.iter_mut().enumerate() {
                                let x = _mm256_set1_epi32(*x[i as usize / 2].add(r) as i32);
                                let x = if i % 2 == 0 { low_halves(x) } else { high_halves(x) };
                                sums[h] = _mm256_fmadd_ps(code, x, sums[h]);
                            }
                        }
                    }
                }
                for r in 0..R {
                    let (_, total) = t.x.group(t.row + r, group);
                    for h in 0..2 {
                        let [scales, mins] = scales(t, group, h);
                        out[r][h] = _mm256_fmadd_ps(sums[r][h], scales, out[r][h]);
                        out[r][h] = _mm256_fmadd_ps(mins, _mm256_set1_ps(total), out[r][h]);
                    }
                }
            }
        }
        out
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

/// The first BF16 value of each pair, as FP32.
#[target_feature(enable = "avx2")]
#[inline]
fn low_halves(pairs: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))
}

/// The second BF16 value of each pair, as FP32.
#[target_feature(enable = "avx2")]
#[inline]
fn high_halves(pairs: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32 as i32)))
}

/// Eight E4M3 codes as FP32: exponent and mantissa moved to their place, the bias corrected by an exact power of two.
#[target_feature(enable = "avx2")]
#[inline]
fn e4m3(codes: __m128i) -> __m256 {
    let codes = _mm256_cvtepu8_epi32(codes);
    let magnitude = _mm256_slli_epi32::<20>(_mm256_and_si256(codes, _mm256_set1_epi32(0x7f)));
    let sign = _mm256_slli_epi32::<24>(_mm256_and_si256(codes, _mm256_set1_epi32(0x80)));
    let value = _mm256_mul_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(f32::from_bits((120 + 127) << 23)));
    _mm256_or_ps(value, _mm256_castsi256_ps(sign))
}

/// Sums of neighbouring lanes, in order: those of `a`, then those of `b`.
#[target_feature(enable = "avx2")]
#[inline]
fn add_pairs(a: __m256, b: __m256) -> __m256 {
    let sums = _mm256_castps_pd(_mm256_hadd_ps(a, b));
    _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(sums))
}

/// Sums of four products of signed bytes. The sign moves from `w` to `x`, so that `w` may count as unsigned: two products
/// are at most 128 x 127 x 2 = 32,512. `x` is never -128.
#[target_feature(enable = "avx2")]
#[inline]
fn signed_products(w: __m256i, x: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
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
