//! Attention with FP32 multiply-adds of AVX2, for every cache format: a block is decoded once for all lines of an item, and
//! up to three lines at a time share its registers.

use std::{arch::x86_64::*, ops::Range};

use super::Task;
use crate::{BLOCK_TOKENS, KvFormat};

/// Values of a register.
const LANES: usize = 8;
/// Lines computed at once: three queries with two registers of 16 tokens and two chains each fill the registers.
const LINES: usize = 3;
/// Registers of sums held at once per line.
const SPAN: usize = 4;

/// Scratch of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[head_dim][16 tokens]`.
    keys: Vec<f32>,
    /// `[16 tokens][head_dim]`.
    values: Vec<f32>,
    /// `[lines][head_dim]`, scaled.
    queries: Vec<f32>,
    /// `[lines][head_dim]`.
    sums: Vec<f32>,
    max: Vec<f32>,
    total: Vec<f32>,
}

/// One value for each token of a block.
type Tokens = [__m256; 2];

/// True for what [`attend`] computes: heads of whole registers.
pub(super) fn can(task: &Task<'_>) -> bool {
    task.shape.head_dim.is_multiple_of(LANES)
}

/// # Safety
/// As [`super::attend`], for a task that [`can`] be computed here, on a machine with the instructions.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn attend(task: &Task<'_>, scratch: &mut Scratch) {
    let (dim, lines) = (task.shape.head_dim, task.lines());
    let (k_scale, v_scale) = task.scales();
    scratch.keys.resize(dim * BLOCK_TOKENS, 0.0);
    scratch.values.resize(dim * BLOCK_TOKENS, 0.0);
    scratch.queries.clear();
    for line in 0..lines {
        scratch.queries.extend(task.query(line).iter().map(|q| q * task.shape.scale * k_scale));
    }
    for (state, length, start) in [
        (&mut scratch.sums, lines * dim, 0.0),
        (&mut scratch.max, lines, f32::NEG_INFINITY),
        (&mut scratch.total, lines, 0.0),
    ] {
        state.clear();
        state.resize(length, start);
    }
    let format = task.kv.layout.format;
    for block in task.blocks() {
        // SAFETY: 16 and, as `can` asks, `dim` are multiples of eight; both hold a value for each code.
        unsafe {
            decode(format, task.stored(block, false), BLOCK_TOKENS, &mut scratch.keys);
            decode(format, task.stored(block, true), dim, &mut scratch.values);
        }
        let mut line = 0;
        while line < lines {
            let seen = task.seen(line, block);
            let alike = (line..lines.min(line + LINES)).take_while(|l| task.seen(*l, block) == seen).count();
            if !seen.is_empty() {
                // SAFETY: the lines are below `lines`, for which the scratch was filled with heads of `dim`.
                unsafe {
                    match alike {
                        LINES => scratch.lines::<LINES>(dim, line, seen),
                        2 => scratch.lines::<2>(dim, line, seen),
                        _ => scratch.lines::<1>(dim, line, seen),
                    }
                }
            }
            line += alike;
        }
    }
    for (line, sums) in scratch.sums.chunks_exact(dim).enumerate() {
        let factor = v_scale / scratch.total[line];
        // SAFETY: a line's output has `head_dim` values.
        let out = unsafe { std::slice::from_raw_parts_mut(task.output(line), dim) };
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum * factor;
        }
    }
}

impl Scratch {
    /// `L` lines that see the same tokens of the decoded block.
    ///
    /// # Safety
    /// `L` lines from `line` on exist, the scratch is filled for heads of `dim`, a multiple of eight, and `seen` ends within
    /// the block.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn lines<const L: usize>(&mut self, dim: usize, line: usize, seen: Range<usize>) {
        // SAFETY: the caller's promise.
        let scores = unsafe { self.scores::<L>(dim, line) };
        let mut probabilities = [[0.0f32; BLOCK_TOKENS]; L];
        let mut corrections = [0.0f32; L];
        for (l, scores) in scores.into_iter().enumerate() {
            let state = (&mut self.max[line + l], &mut self.total[line + l]);
            corrections[l] = softmax(scores, &seen, state, &mut probabilities[l]);
        }
        for at in (0..dim).step_by(SPAN * LANES) {
            // SAFETY: the caller's promise; as many registers as the head has left.
            unsafe {
                match (dim - at) / LANES {
                    1 => self.add::<L, 1>(dim, line, at, &seen, &probabilities, &corrections),
                    2 => self.add::<L, 2>(dim, line, at, &seen, &probabilities, &corrections),
                    3 => self.add::<L, 3>(dim, line, at, &seen, &probabilities, &corrections),
                    _ => self.add::<L, SPAN>(dim, line, at, &seen, &probabilities, &corrections),
                }
            }
        }
    }

    /// `q . k` of the block's 16 tokens, in two chains that hide the latency of the multiply-adds.
    ///
    /// # Safety
    /// As [`Self::lines`].
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn scores<const L: usize>(&self, dim: usize, line: usize) -> [Tokens; L] {
        let mut sums = [[[_mm256_setzero_ps(); 2]; 2]; L];
        // SAFETY: the caller's promise; `dim` is even.
        unsafe {
            let queries = self.queries.as_ptr().add(line * dim);
            for pair in (0..dim).step_by(2) {
                for chain in 0..2 {
                    let keys = self.keys.as_ptr().add((pair + chain) * BLOCK_TOKENS);
                    let keys = [_mm256_loadu_ps(keys), _mm256_loadu_ps(keys.add(LANES))];
                    for (l, sums) in sums.iter_mut().enumerate() {
                        let query = _mm256_broadcast_ss(&*queries.add(l * dim + pair + chain));
                        for (sum, keys) in sums[chain].iter_mut().zip(keys) {
                            *sum = _mm256_fmadd_ps(query, keys, *sum);
                        }
                    }
                }
            }
        }
        sums.map(|[even, odd]| [_mm256_add_ps(even[0], odd[0]), _mm256_add_ps(even[1], odd[1])])
    }

    /// `sums = sums * correction + p V` for `L` lines and `C` registers of elements from `at` on.
    ///
    /// # Safety
    /// As [`Self::lines`]; the elements are inside the head.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn add<const L: usize, const C: usize>(
        &mut self,
        dim: usize,
        line: usize,
        at: usize,
        seen: &Range<usize>,
        probabilities: &[[f32; BLOCK_TOKENS]; L],
        corrections: &[f32; L],
    ) {
        let mut out = [[_mm256_setzero_ps(); C]; L];
        // SAFETY: the caller's promise.
        unsafe {
            let sums = self.sums.as_mut_ptr().add(line * dim + at);
            for l in 0..L {
                for c in 0..C {
                    let sum = _mm256_loadu_ps(sums.add(l * dim + c * LANES));
                    out[l][c] = _mm256_mul_ps(sum, _mm256_set1_ps(corrections[l]));
                }
            }
            // Only tokens that are seen: a slot that was never written may hold NaN, and 0 x NaN is NaN.
            for token in seen.clone() {
                let values = self.values.as_ptr().add(token * dim + at);
                let mut p = [_mm256_setzero_ps(); L];
                for (p, line) in p.iter_mut().zip(probabilities) {
                    *p = _mm256_broadcast_ss(line.get_unchecked(token));
                }
                for c in 0..C {
                    let values = _mm256_loadu_ps(values.add(c * LANES));
                    for l in 0..L {
                        out[l][c] = _mm256_fmadd_ps(p[l], values, out[l][c]);
                    }
                }
            }
            for l in 0..L {
                for c in 0..C {
                    _mm256_storeu_ps(sums.add(l * dim + c * LANES), out[l][c]);
                }
            }
        }
    }
}

/// Takes the scores of the tokens that are seen into a line's maximum and total; leaves their probabilities, and returns the
/// factor on what the line summed so far.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn softmax(
    scores: Tokens,
    seen: &Range<usize>,
    (max, total): (&mut f32, &mut f32),
    probabilities: &mut [f32; BLOCK_TOKENS],
) -> f32 {
    let first = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let tokens = [first, _mm256_add_epi32(first, _mm256_set1_epi32(LANES as i32))];
    let (start, end) = (_mm256_set1_epi32(seen.start as i32 - 1), _mm256_set1_epi32(seen.end as i32));
    let mask = tokens.map(|token| {
        _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(token, start), _mm256_cmpgt_epi32(end, token)))
    });
    let low = _mm256_set1_ps(f32::NEG_INFINITY);
    let scores = [0, 1].map(|half| _mm256_blendv_ps(low, scores[half], mask[half]));
    let highest = max.max(across(_mm256_max_ps(scores[0], scores[1]), |a, b| _mm_max_ps(a, b)));
    let correction = _mm256_cvtss_f32(exp(_mm256_set1_ps(*max - highest)));
    *max = highest;
    let p = scores.map(|scores| exp(_mm256_sub_ps(scores, _mm256_set1_ps(highest))));
    *total = *total * correction + across(_mm256_add_ps(p[0], p[1]), |a, b| _mm_add_ps(a, b));
    for (half, p) in p.into_iter().enumerate() {
        // SAFETY: two halves of eight.
        unsafe { _mm256_storeu_ps(probabilities.as_mut_ptr().add(half * LANES), p) };
    }
    correction
}

/// As [`crate::cpu::kv::decode`]; infinity, which is never stored, stays infinity.
///
/// # Safety
/// `width` is a multiple of eight, and `out` has a value for each code.
#[target_feature(enable = "avx2,f16c")]
unsafe fn decode(format: KvFormat, bytes: &[u8], width: usize, out: &mut [f32]) {
    // SAFETY: the caller's promise: eight pairs of the format's size.
    unsafe {
        match format {
            KvFormat::Bf16 => rows::<4>(bytes, width, out, |pairs| {
                let pairs = _mm256_loadu_si256(pairs.cast());
                let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32 as i32));
                [_mm256_slli_epi32::<16>(pairs), second].map(|bits| _mm256_castsi256_ps(bits))
            }),
            KvFormat::Fp16 => rows::<4>(bytes, width, out, |pairs| {
                let apart = _mm256_setr_epi64x(
                    0x0d0c_0908_0504_0100,
                    0x0f0e_0b0a_0706_0302,
                    0x0d0c_0908_0504_0100,
                    0x0f0e_0b0a_0706_0302,
                );
                let halves = _mm256_shuffle_epi8(_mm256_loadu_si256(pairs.cast()), apart);
                let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(halves);
                [_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves)].map(|h| _mm256_cvtph_ps(h))
            }),
            KvFormat::Fp8E4m3 => rows::<2>(bytes, width, out, |pairs| bytes_apart::<4>(pairs, 0x87f0_0000, 120)),
            KvFormat::Fp8E5m2 => rows::<2>(bytes, width, out, |pairs| bytes_apart::<3>(pairs, 0x8fe0_0000, 112)),
        }
    }
}

/// The firsts of a row of pairs of `PAIR` bytes, then the seconds, eight at a time.
///
/// # Safety
/// As [`decode`].
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn rows<const PAIR: usize>(
    bytes: &[u8],
    width: usize,
    out: &mut [f32],
    decode: impl Fn(*const u8) -> [__m256; 2],
) {
    for (pairs, out) in bytes.chunks_exact(width * PAIR).zip(out.chunks_exact_mut(2 * width)) {
        for at in (0..width).step_by(LANES) {
            // SAFETY: eight pairs of the row.
            unsafe {
                let [first, second] = decode(pairs.as_ptr().add(at * PAIR));
                _mm256_storeu_ps(out.as_mut_ptr().add(at), first);
                _mm256_storeu_ps(out.as_mut_ptr().add(width + at), second);
            }
        }
    }
}

/// Pairs of 8-bit floats: exponent and mantissa moved right by `SHIFT` from the top of a lane, to where `mask` has ones, the
/// difference of the biases an exact power of two.
///
/// # Safety
/// 16 bytes are readable.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn bytes_apart<const SHIFT: i32>(pairs: *const u8, mask: u32, bias: u32) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    let pairs = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(pairs.cast()) });
    [_mm256_slli_epi32::<24>(pairs), _mm256_slli_epi32::<16>(pairs)].map(|code| {
        // The arithmetic shift fills the places between sign and exponent; the mask clears them, and the other code.
        let bits = _mm256_and_si256(_mm256_srai_epi32::<SHIFT>(code), _mm256_set1_epi32(mask as i32));
        _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(f32::from_bits((bias + 127) << 23)))
    })
}

/// What an operation makes of all lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn across(values: __m256, of: impl Fn(__m128, __m128) -> __m128) -> f32 {
    let four = of(_mm256_castps256_ps128(values), _mm256_extractf128_ps::<1>(values));
    let two = of(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(of(two, _mm_shuffle_ps::<1>(two, two)))
}

/// `e^x` for `x <= 0`, as [`crate::cpu::elementwise::exp`]; NaN stays NaN.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn exp(x: __m256) -> __m256 {
    // The second operand is what `max` returns for NaN.
    let t = _mm256_max_ps(_mm256_set1_ps(-127.0), _mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E)));
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(t);
    let f = _mm256_mul_ps(_mm256_sub_ps(t, n), _mm256_set1_ps(std::f32::consts::LN_2));
    let mut p = _mm256_set1_ps(1.0 / 720.0);
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(c));
    }
    let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
    _mm256_mul_ps(p, _mm256_castsi256_ps(power))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Isa, elementwise, kv};

    #[test]
    fn every_code_is_decoded_as_by_the_portable_code() {
        if !Isa::available().contains(&Isa::Avx2) {
            return;
        }
        for (format, codes) in [
            // Each code in both places of a pair.
            (KvFormat::Fp8E4m3, (0..=255u8).flat_map(|code| [code, !code]).collect::<Vec<_>>()),
            (KvFormat::Fp8E5m2, (0..=255u8).flat_map(|code| [code, !code]).collect()),
            (KvFormat::Fp16, (0..=u16::MAX).flat_map(|code| [code, !code]).flat_map(u16::to_le_bytes).collect()),
            (KvFormat::Bf16, (0..=u16::MAX).flat_map(|code| [code, !code]).flat_map(u16::to_le_bytes).collect()),
        ] {
            let count = if matches!(format, KvFormat::Fp16 | KvFormat::Bf16) { codes.len() / 2 } else { codes.len() };
            for width in [16, 64] {
                let (mut expected, mut found) = (vec![0.0; count], vec![0.0; count]);
                kv::decode(format, &codes, width, &mut expected);
                // SAFETY: the machine has the instructions; widths and lengths fit.
                unsafe { decode(format, &codes, width, &mut found) };
                for (found, expected) in found.iter().zip(&expected) {
                    // The portable code takes infinity of FP16 for NaN.
                    let is_nan = expected.is_nan() && (found.is_nan() || found.is_infinite());
                    assert!(is_nan || found.to_bits() == expected.to_bits(), "{format:?}: {found}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn exp_is_as_exact_as_the_portable_one() {
        if !Isa::available().contains(&Isa::Avx2) {
            return;
        }
        let of = |x: f32| {
            let mut lanes = [0.0f32; LANES];
            // SAFETY: the machine has the instructions; eight lanes are written.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), exp(_mm256_set1_ps(x))) };
            assert!(lanes.iter().all(|lane| lane.to_bits() == lanes[0].to_bits()));
            lanes[0]
        };
        for x in (0..=8700).map(|i| -i as f32 / 100.0) {
            let (found, expected) = (f64::from(of(x)), f64::from(x).exp());
            // Below the smallest normal number the portable one gives zero, too.
            assert!((found / expected - 1.0).abs() < 1e-5, "{x}: {found}, not {expected}");
            assert!((found / f64::from(elementwise::exp(x)) - 1.0).abs() < 3e-7, "{x}");
        }
        assert_eq!((of(0.0), of(f32::NEG_INFINITY)), (1.0, 0.0));
        assert!(of(f32::NAN).is_nan());
    }
}
