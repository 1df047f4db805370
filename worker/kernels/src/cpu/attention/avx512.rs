//! Attention with BF16 products (vdpbf16ps) and FP32 sums, maxima and softmax.
//!
//! The cache lies in pairs for this: a register holds two elements of the keys of 16 tokens, or two tokens' values of 16
//! elements. Four lines at a time share the registers of a block. Queries and probabilities are rounded to BF16, as in
//! FlashAttention; keys and values are used as stored: BF16 holds every E4M3 and E5M2 value exactly.

use std::arch::x86_64::*;

use super::Task;
use crate::{
    AlignedBytes, BLOCK_TOKENS, KvFormat,
    cpu::{
        activations::to_bf16,
        avx512::{dot_halves, load},
    },
    format::table::{Bf16Table, E4M3, E5M2},
};

/// Elements of a register of FP32.
const LANES: usize = 16;
/// Registers of sums held at once per line.
const SPAN: usize = 4;
/// Lines computed at once.
const LINES: usize = 4;
/// Pairs of tokens of a block.
const PAIRS: usize = BLOCK_TOKENS / 2;

/// Scratch of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// BF16 pairs `[lines][head_dim / 2]`, scaled.
    queries: Vec<u32>,
    /// `[lines][head_dim]`.
    sums: Vec<f32>,
    max: Vec<f32>,
    total: Vec<f32>,
    block: BlockScratch,
    /// A block's keys and values as BF16, for the 8-bit formats.
    decoded: Option<[AlignedBytes; 2]>,
}

/// What a block's softmax leaves for the sums. In memory on purpose: the products read it as broadcast operands, which costs
/// nothing, while as values it would fill the registers that hold the sums.
#[derive(Default)]
struct BlockScratch {
    /// Factor on what each line summed so far.
    corrections: [f32; LINES],
    /// Probabilities of each line, BF16 pairs.
    probabilities: [[u32; PAIRS]; LINES],
}

/// True for what [`attend`] computes: formats that BF16 holds exactly, whole registers of sums.
pub(super) fn can(task: &Task<'_>) -> bool {
    task.kv.layout.format != KvFormat::Fp16 && task.shape.head_dim.is_multiple_of(LANES)
}

/// # Safety
/// As [`super::attend`], for a task that [`can`] be computed here, on a machine with the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
pub(super) unsafe fn attend(task: &Task<'_>, scratch: &mut Scratch) {
    let (dim, lines) = (task.shape.head_dim, task.lines());
    let (k_scale, v_scale) = task.scales();
    scratch.queries.clear();
    for line in 0..lines {
        let scale = task.shape.scale * k_scale;
        let pairs = task.query(line).as_chunks::<2>().0;
        let bits = |q: f32| u32::from(to_bf16(q * scale));
        scratch.queries.extend(pairs.iter().map(|[a, b]| bits(*a) | bits(*b) << 16));
    }
    scratch.sums.clear();
    scratch.sums.resize(lines * dim, 0.0);
    scratch.max.clear();
    scratch.max.resize(lines, f32::NEG_INFINITY);
    scratch.total.clear();
    scratch.total.resize(lines, 0.0);
    let size = dim * BLOCK_TOKENS * 2;
    if scratch.decoded.as_ref().is_none_or(|[keys, _]| keys.len() != size) {
        scratch.decoded = Some([AlignedBytes::zeroed(size), AlignedBytes::zeroed(size)]);
    }
    for block in task.blocks() {
        let stored = [task.stored(block, false), task.stored(block, true)];
        let table = match task.kv.layout.format {
            KvFormat::Fp8E4m3 => Some(&E4M3),
            KvFormat::Fp8E5m2 => Some(&E5M2),
            KvFormat::Bf16 | KvFormat::Fp16 => None,
        };
        let [keys, values] = match (table, &mut scratch.decoded) {
            (Some(table), Some([keys, values])) => [decoded(table, stored[0], keys), decoded(table, stored[1], values)],
            _ => stored.map(<[u8]>::as_ptr),
        };
        let mut step = Block {
            keys,
            values,
            dim,
            queries: scratch.queries.as_ptr(),
            sums: scratch.sums.as_mut_ptr(),
            max: scratch.max.as_mut_ptr(),
            total: scratch.total.as_mut_ptr(),
            scratch: &raw mut scratch.block,
        };
        let mut line = 0;
        while line < lines {
            // Which tokens a line sees of this block depends on its position alone, and so does the way it is computed.
            let whole =
                (line..lines.min(line + LINES)).take_while(|l| task.seen(*l, block) == (0..BLOCK_TOKENS)).count();
            // SAFETY: the lines are below `lines`, for which the scratch has room; the block has `head_dim` elements.
            unsafe {
                line += match whole {
                    LINES => step.lines::<LINES>(line),
                    3 => step.lines::<3>(line),
                    2 => step.lines::<2>(line),
                    1 => step.lines::<1>(line),
                    _ => {
                        let seen = task.seen(line, block);
                        if !seen.is_empty() {
                            step.partly(line, ((1u32 << seen.end) - (1u32 << seen.start)) as u16);
                        }
                        1
                    }
                };
            }
        }
    }
    for line in 0..lines {
        let factor = _mm512_set1_ps(v_scale / scratch.total[line]);
        for at in (0..dim).step_by(LANES) {
            // SAFETY: a line's sums and output have `head_dim` values, a multiple of 16.
            unsafe {
                let sums = _mm512_loadu_ps(scratch.sums.as_ptr().add(line * dim + at));
                _mm512_storeu_ps(task.output(line).add(at), _mm512_mul_ps(sums, factor));
            }
        }
    }
}

/// One block of the cache, and the state of all lines.
struct Block {
    keys: *const u8,
    values: *const u8,
    dim: usize,
    queries: *const u32,
    sums: *mut f32,
    max: *mut f32,
    total: *mut f32,
    scratch: *mut BlockScratch,
}

impl Block {
    /// `L` lines that see the whole block; returns `L`.
    ///
    /// # Safety
    /// The lines must exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    unsafe fn lines<const L: usize>(&mut self, line: usize) -> usize {
        // SAFETY: the caller's promise; all offsets are inside the block and the lines' scratch.
        unsafe {
            let scores = self.scores::<L>(line);
            self.softmax::<L>(line, scores, 0xffff);
            for first in (0..self.dim / LANES).step_by(SPAN) {
                let sums = self.sums.add(line * self.dim + first * LANES);
                let values = self.values.add(first * 64);
                match self.dim / LANES - first {
                    1 => self.add::<L, 1>(sums, values),
                    2 => self.add::<L, 2>(sums, values),
                    3 => self.add::<L, 3>(sums, values),
                    _ => self.add::<L, SPAN>(sums, values),
                }
            }
        }
        L
    }

    /// `q . k` of 16 tokens for `L` lines, in two chains that hide the latency of the products.
    ///
    /// # Safety
    /// As [`Self::lines`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    unsafe fn scores<const L: usize>(&self, line: usize) -> [__m512; L] {
        let half = self.dim / 2;
        let mut sums = [[_mm512_setzero_ps(); 2]; L];
        for pair in (0..half).step_by(2) {
            for chain in 0..2 {
                // SAFETY: `half` is a multiple of eight; the caller's promise.
                unsafe {
                    let keys = load(self.keys.add((pair + chain) * 64));
                    for (l, sums) in sums.iter_mut().enumerate() {
                        let query = *self.queries.add((line + l) * half + pair + chain);
                        sums[chain] = dot_halves(sums[chain], keys, _mm512_set1_epi32(query as i32));
                    }
                }
            }
        }
        sums.map(|[even, odd]| _mm512_add_ps(even, odd))
    }

    /// Takes the scores of the tokens in `mask` into the lines' maxima and totals; leaves corrections and probabilities.
    ///
    /// # Safety
    /// As [`Self::lines`].
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[inline]
    unsafe fn softmax<const L: usize>(&mut self, line: usize, scores: [__m512; L], mask: u16) {
        let mut falls = [0.0f32; LANES];
        let mut totals = [0.0f32; L];
        // SAFETY: the caller's promise.
        unsafe {
            for l in 0..L {
                let max = &mut *self.max.add(line + l);
                let highest = max.max(_mm512_mask_reduce_max_ps(mask, scores[l]));
                falls[l] = *max - highest;
                *max = highest;
                let p = _mm512_maskz_mov_ps(mask, exp(_mm512_sub_ps(scores[l], _mm512_set1_ps(highest))));
                totals[l] = _mm512_reduce_add_ps(p);
                let place = (&raw mut (*self.scratch).probabilities[l]).cast();
                _mm256_storeu_si256(place, std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(p)));
            }
            let corrections = exp(_mm512_loadu_ps(falls.as_ptr()));
            _mm512_mask_storeu_ps((&raw mut (*self.scratch).corrections).cast(), (1 << LINES) - 1, corrections);
            for l in 0..L {
                let total = &mut *self.total.add(line + l);
                *total = *total * (*self.scratch).corrections[l] + totals[l];
            }
        }
    }

    /// `sums = sums * correction + p V` for `L` lines and `C` registers of elements.
    ///
    /// # Safety
    /// As [`Self::lines`]; `sums` and `values` point to the first of the elements.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    unsafe fn add<const L: usize, const C: usize>(&self, sums: *mut f32, values: *const u8) {
        let mut out = [[_mm512_setzero_ps(); C]; L];
        // SAFETY: the caller's promise.
        unsafe {
            for l in 0..L {
                for c in 0..C {
                    let sum = _mm512_loadu_ps(sums.add(l * self.dim + c * LANES));
                    out[l][c] = _mm512_mul_ps(sum, _mm512_set1_ps((*self.scratch).corrections[l]));
                }
            }
            for pair in 0..PAIRS {
                let mut v = [_mm512_setzero_si512(); C];
                for (c, v) in v.iter_mut().enumerate() {
                    *v = load(values.add((pair * self.dim + c * LANES) * 4));
                }
                for l in 0..L {
                    let p = _mm512_set1_epi32((*self.scratch).probabilities[l][pair] as i32);
                    for c in 0..C {
                        out[l][c] = dot_halves(out[l][c], v[c], p);
                    }
                }
            }
            for l in 0..L {
                for c in 0..C {
                    _mm512_storeu_ps(sums.add(l * self.dim + c * LANES), out[l][c]);
                }
            }
        }
    }

    /// A line that sees only the tokens in `mask`.
    ///
    /// # Safety
    /// The line must exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    unsafe fn partly(&mut self, line: usize, mask: u16) {
        // SAFETY: the caller's promise; all offsets are inside the block and the line's scratch.
        unsafe {
            let [scores] = self.scores::<1>(line);
            self.softmax::<1>(line, [scores], mask);
            let BlockScratch { corrections: [correction, ..], probabilities: [probabilities, ..] } = &*self.scratch;
            for at in 0..self.dim / LANES {
                let place = self.sums.add(line * self.dim + at * LANES);
                let mut sum = _mm512_mul_ps(_mm512_loadu_ps(place), _mm512_set1_ps(*correction));
                for (pair, p) in probabilities.iter().enumerate() {
                    // A slot that was never written may hold NaN, and 0 x NaN is NaN: it is cleared.
                    let keep = match mask >> (2 * pair) & 3 {
                        0 => continue,
                        1 => 0x0000_ffff,
                        2 => 0xffff_0000u32,
                        _ => u32::MAX,
                    };
                    let v = load(self.values.add((pair * self.dim + at * LANES) * 4));
                    let v = _mm512_and_si512(v, _mm512_set1_epi32(keep as i32));
                    sum = dot_halves(sum, v, _mm512_set1_epi32(*p as i32));
                }
                _mm512_storeu_ps(place, sum);
            }
        }
    }
}

/// `e^x` for `x <= 0`, as [`crate::cpu::elementwise::exp`]; NaN stays NaN.
#[target_feature(enable = "avx512f")]
#[inline]
fn exp(x: __m512) -> __m512 {
    // The second operand is what `max` returns for NaN.
    let t = _mm512_max_ps(_mm512_set1_ps(-127.0), _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
    let n = _mm512_roundscale_ps::<0>(t);
    let f = _mm512_mul_ps(_mm512_sub_ps(t, n), _mm512_set1_ps(std::f32::consts::LN_2));
    let mut p = _mm512_set1_ps(1.0 / 720.0);
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
    }
    _mm512_scalef_ps(p, n)
}

/// Decodes 8-bit codes to BF16, in order.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn decoded(table: &Bf16Table, codes: &[u8], out: &mut AlignedBytes) -> *const u8 {
    // SAFETY: the tables have 128 bytes each and are aligned.
    let registers = |p: *const u8| unsafe { [load(p), load(p.add(64))] };
    let (low, high) = (registers(table.low.as_ptr()), registers(table.high.as_ptr()));
    let sign = _mm512_set1_epi16(i16::MIN);
    for (codes, out) in codes.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<64>().0) {
        // SAFETY: 32 bytes are read, 64 written.
        unsafe {
            let codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(codes.as_ptr().cast()));
            let codes = _mm512_or_si512(codes, _mm512_slli_epi16::<8>(codes));
            // Even bytes from the table of low bytes, odd ones from that of high bytes; the look-up ignores the sign.
            let lows = _mm512_permutex2var_epi8(low[0], codes, low[1]);
            let highs = _mm512_permutex2var_epi8(high[0], codes, high[1]);
            let bits = _mm512_mask_mov_epi8(lows, 0xaaaa_aaaa_aaaa_aaaa, highs);
            let bits = _mm512_ternarylogic_epi32::<0xf8>(bits, codes, sign);
            _mm512_storeu_si512(out.as_mut_ptr().cast(), bits);
        }
    }
    out.as_ptr()
}
