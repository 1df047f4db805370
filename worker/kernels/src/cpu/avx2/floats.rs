//! FP32 multiply-adds for BF16 and FP8, and for integer codes with BF16 activations.
//!
//! Codes are widened to *pair registers*: each holds two inputs (a step) of four outputs, side by side, and meets the same
//! two values of a row in all its lanes. So an output has two sums, of the even and of the odd inputs, each in ascending
//! order: a row keeps four chains of multiply-adds in flight, and two rows are enough to hide their latency. BF16 is
//! widened at once, by its place in the lane. FP8 takes longer, so that for many rows it is rewritten as BF16, which holds
//! it exactly, once for a panel; the sums stay the same.

use std::{arch::x86_64::*, cell::RefCell, marker::PhantomData, ops::Range};

use super::{Kernel, Operands, Pair, Product, load, run, scales};
use crate::{
    AlignedBytes,
    pack::{PANEL, PanelLayout},
};

/// Rows from which writing a panel as BF16 and reading that pays (Zen 3, `make bench-kernels`: nothing at 4 rows, two
/// fifths at 8, three fifths at 16).
const DECODE_ROWS: usize = 5;

thread_local! {
    /// A panel as BF16.
    static DECODED: RefCell<AlignedBytes> = RefCell::new(AlignedBytes::zeroed(0));
}

/// How codes become pair registers.
pub(super) trait Codes {
    /// Steps that share 64 bytes of codes.
    const STEPS: usize;

    /// The pair register of four outputs of step `first + at`, for `first` a multiple of [`Self::STEPS`] and `at` below it:
    /// `quarter` 0 to 3 has the outputs (0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15), which is how
    /// unpacking within lanes finds them.
    ///
    /// # Safety
    /// The step is inside the codes, `first` and `at` are as above, and the machine has AVX2.
    unsafe fn pairs(codes: *const u8, first: usize, at: usize, quarter: usize) -> __m256;
}

/// BF16 values.
pub(super) struct Bf16;
impl Codes for Bf16 {
    const STEPS: usize = 1;

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn pairs(codes: *const u8, first: usize, _: usize, quarter: usize) -> __m256 {
        // SAFETY: the caller's promise: 64 bytes of a step.
        let halves = unsafe { load(codes.add(first * 64 + quarter / 2 * 32)) };
        let zero = _mm256_setzero_si256();
        let wide = if quarter.is_multiple_of(2) {
            _mm256_unpacklo_epi16(zero, halves)
        } else {
            _mm256_unpackhi_epi16(zero, halves)
        };
        _mm256_castsi256_ps(wide)
    }
}

/// E4M3 values. NaN codes would come out as 480: they are refused where a checkpoint is read.
pub(super) struct E4m3;
impl Codes for E4m3 {
    const STEPS: usize = 2;

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn pairs(codes: *const u8, first: usize, at: usize, quarter: usize) -> __m256 {
        // SAFETY: the caller's promise: 64 bytes for two steps.
        let codes = unsafe { load(codes.add(first / 2 * 64 + quarter / 2 * 32)) };
        // 16 bytes have four outputs of one step, then of the next. Each code goes to the top of its lane.
        let first = (at * 8 + quarter % 2 * 4) as i32;
        let top = |byte: i32| (first + byte) << 24 | 0x0080_8080;
        let order = _mm256_setr_epi32(top(0), top(1), top(2), top(3), top(0), top(1), top(2), top(3));
        // Exponent and mantissa to their place; the arithmetic shift fills those in between with the sign.
        let bits = _mm256_srai_epi32::<4>(_mm256_shuffle_epi8(codes, order));
        let bits = _mm256_and_si256(bits, _mm256_set1_epi32(0x87f0_0000u32 as i32));
        // The difference of the biases is an exact power of two; it makes subnormal values normal.
        _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(f32::from_bits((120 + 127) << 23)))
    }
}

/// Integers of 4 or 8 bits.
struct Integers<const BITS: usize>;
impl<const BITS: usize> Codes for Integers<BITS> {
    const STEPS: usize = 16 / BITS;

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn pairs(codes: *const u8, first: usize, at: usize, quarter: usize) -> __m256 {
        // SAFETY: the caller's promise: 64 bytes for the steps.
        let mut codes = unsafe { load(codes.add(first / Self::STEPS * 64 + quarter / 2 * 32)) };
        // A lane has the codes of four inputs (two steps) of an output; of 4 bits, those of the next four above.
        if BITS == 4 {
            if at / 2 == 1 {
                codes = _mm256_srli_epi16::<4>(codes);
            }
            codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
        }
        let first = (quarter % 2 * 8 + at % 2 * 2) as i32;
        let low = |byte: i32| (first + byte) | 0x8080_8000u32 as i32;
        let order = _mm256_setr_epi32(low(0), low(1), low(4), low(5), low(0), low(1), low(4), low(5));
        _mm256_cvtepi32_ps(_mm256_shuffle_epi8(codes, order))
    }
}

/// Codes with a scale per output alone.
pub(super) struct Whole<C>(PhantomData<C>);
impl<C: Codes> Kernel for Whole<C> {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R] {
        // SAFETY: the whole panel.
        unsafe { products::<C, R>(t, 0..t.x.steps) }
    }
}

/// Codes with an FP32 scale per block of inputs, and one of the activations.
pub(super) struct Blocks<C>(PhantomData<C>);
impl<C: Codes> Kernel for Blocks<C> {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R] {
        let mut out = [[_mm256_setzero_ps(); 2]; R];
        let steps = t.layout.group / 2;
        for group in 0..t.x.group_count {
            // SAFETY: groups divide K, so every read is inside the panel and the rows.
            unsafe {
                let sums = products::<C, R>(t, group * steps..(group + 1) * steps);
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

/// Integers with an FP16 scale and minimum per group of inputs. Their groups bound them, not the widening: as BF16 they were
/// no faster at any number of rows.
pub(super) struct Grouped<const BITS: usize>;
impl<const BITS: usize> Kernel for Grouped<BITS> {
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn tile<const R: usize>(t: Operands<'_>) -> [Pair; R] {
        let mut out = [[_mm256_setzero_ps(); 2]; R];
        let steps = t.layout.group / 2;
        for group in 0..t.x.group_count {
            // SAFETY: groups divide K, so every read is inside the panel and the rows.
            unsafe {
                let sums = products::<Integers<BITS>, R>(t, group * steps..(group + 1) * steps);
                for h in 0..2 {
                    let [scales, mins] = scales(t, group, h);
                    for r in 0..R {
                        let (_, total) = t.x.group(t.row + r, group);
                        out[r][h] = _mm256_fmadd_ps(sums[r][h], scales, out[r][h]);
                        out[r][h] = _mm256_fmadd_ps(mins, _mm256_set1_ps(total), out[r][h]);
                    }
                }
            }
        }
        out
    }
}

/// The products of some steps.
///
/// # Safety
/// The steps are inside the panel and the rows, and their bounds multiples of [`Codes::STEPS`].
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn products<C: Codes, const R: usize>(t: Operands<'_>, steps: Range<usize>) -> [Pair; R] {
    let mut sums = [[_mm256_setzero_ps(); 4]; R];
    let width = t.x.steps * 2;
    // SAFETY: the caller's promise.
    unsafe {
        let mut x = t.x.floats.as_ptr().add(t.row * width + steps.start * 2);
        for first in steps.step_by(C::STEPS) {
            for at in 0..C::STEPS {
                let mut values = [_mm256_setzero_ps(); R];
                for (r, value) in values.iter_mut().enumerate() {
                    // Two neighbours, for all lanes.
                    let pair = x.add(r * width + at * 2).cast::<f64>().read_unaligned();
                    *value = _mm256_castpd_ps(_mm256_set1_pd(pair));
                }
                for quarter in 0..4 {
                    let w = C::pairs(t.codes, first, at, quarter);
                    for r in 0..R {
                        sums[r][quarter] = _mm256_fmadd_ps(w, values[r], sums[r][quarter]);
                    }
                }
            }
            x = x.add(C::STEPS * 2);
        }
    }
    // Even and odd inputs are neighbours.
    sums.map(|[a, b, c, d]| [_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d)])
}

/// A product of E4M3, as it lies or for many rows as BF16.
///
/// # Safety
/// As [`super::panels`]; `Near` and `Far` are one kernel with [`E4m3`] and with [`Bf16`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_fp8<Near: Kernel, Far: Kernel>(product: Product<'_>, panels: Range<usize>) {
    // SAFETY: the caller's promises; decoded codes have the steps of the panel.
    unsafe {
        if product.rows < DECODE_ROWS {
            for panel in panels {
                run::<Near>(product, panel, product.panel(panel));
            }
            return;
        }
        DECODED.with_borrow_mut(|decoded| {
            let size = product.layout.k * PANEL * 2;
            if decoded.len() < size {
                *decoded = AlignedBytes::zeroed(size);
            }
            for panel in panels {
                decode(product.panel(panel), product.layout, decoded.as_mut_ptr());
                run::<Far>(product, panel, decoded.as_ptr());
            }
        });
    }
}

/// Writes the E4M3 codes of a panel as [`Bf16`] reads them.
///
/// # Safety
/// `codes` are a panel's, and `out` holds as many values.
#[target_feature(enable = "avx2")]
unsafe fn decode(codes: *const u8, layout: &PanelLayout, out: *mut u8) {
    for first in (0..layout.k / 2).step_by(E4m3::STEPS) {
        for at in 0..E4m3::STEPS {
            for half in 0..2 {
                // SAFETY: the caller's promise.
                unsafe {
                    // One after the other, not by a closure: without optimisation across crates that is a call for each.
                    let a = _mm256_castps_si256(E4m3::pairs(codes, first, at, half * 2));
                    let b = _mm256_castps_si256(E4m3::pairs(codes, first, at, half * 2 + 1));
                    let (a, b) = (_mm256_srli_epi32::<16>(a), _mm256_srli_epi32::<16>(b));
                    let place = out.add((first + at) * 64 + half * 32);
                    _mm256_storeu_si256(place.cast(), _mm256_packus_epi32(a, b));
                }
            }
        }
    }
}
