//! Paged attention: softmax(q K^T * scale) V over a sequence's cached tokens, online over blocks of 16.
//!
//! Each query row walks its blocks in order with its own running maximum and sum, so that a row does not depend on its
//! neighbours, on the chunking of the prompt, nor on which physical blocks hold the tokens. (Online softmax: Milakov and
//! Gimelshein 2018.)

use super::{
    Isa,
    kv::{KvPool, decode},
};
use crate::{AttentionShape, BLOCK_TOKENS, SequenceSpan};

/// Scratch of one thread.
#[derive(Default)]
pub struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    rows: Vec<Running>,
    sums: Vec<f32>,
}

/// Running maximum and sum of one query row.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

/// One unit of work: some rows of one sequence for one KV head.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    /// The sequence.
    pub sequence: &'a SequenceSpan,
    /// First of the sequence's rows in this step, counted from its span.
    pub first: usize,
    /// How many.
    pub rows: usize,
    /// KV head.
    pub head: usize,
}

/// Attention of one item: reads queries from `qkv`, writes the item's heads of its rows of `out`.
///
/// # Safety
/// `out` holds `[rows of the step, heads * head_dim]`; no other thread uses this item's part of it. `isa` is available.
pub unsafe fn attend(
    isa: Isa,
    item: Item<'_>,
    shape: &AttentionShape,
    kv: &KvPool,
    layer: usize,
    qkv: &[f32],
    out: *mut f32,
    scratch: &mut Scratch,
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promises.
        Isa::Avx512 => unsafe { attend_avx512(item, shape, kv, layer, qkv, out, scratch) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promises.
        Isa::Avx2 => unsafe { attend_avx2(item, shape, kv, layer, qkv, out, scratch) },
        // SAFETY: the caller's promises.
        _ => unsafe { attend_portable(item, shape, kv, layer, qkv, out, scratch) },
    }
}

macro_rules! compiled_for {
    ($name:ident, $features:literal) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $name(
            item: Item<'_>,
            shape: &AttentionShape,
            kv: &KvPool,
            layer: usize,
            qkv: &[f32],
            out: *mut f32,
            scratch: &mut Scratch,
        ) {
            // SAFETY: the caller's promises.
            unsafe { attend_portable(item, shape, kv, layer, qkv, out, scratch) }
        }
    };
}
compiled_for!(attend_avx512, "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c");
compiled_for!(attend_avx2, "avx2,fma,f16c");

/// # Safety
/// As [`attend`].
#[inline(always)]
unsafe fn attend_portable(
    item: Item<'_>,
    shape: &AttentionShape,
    kv: &KvPool,
    layer: usize,
    qkv: &[f32],
    out: *mut f32,
    scratch: &mut Scratch,
) {
    let dim = shape.head_dim;
    let group = shape.heads / shape.kv_heads;
    let width = (shape.heads + 2 * shape.kv_heads) * dim;
    let scale_index = layer * shape.kv_heads + item.head;
    let (k_scale, v_scale) = (kv.scales.k[scale_index], kv.scales.v[scale_index]);
    let lines = item.rows * group;
    let size = dim * BLOCK_TOKENS;
    scratch.keys.resize(size, 0.0);
    scratch.values.resize(size, 0.0);
    scratch.queries.clear();
    scratch.sums.clear();
    scratch.sums.resize(lines * dim, 0.0);
    scratch.rows.clear();
    scratch.rows.resize(lines, Running { max: f32::NEG_INFINITY, sum: 0.0 });
    for row in item.first..item.first + item.rows {
        let at = (item.sequence.first_row + row) * width + item.head * group * dim;
        scratch.queries.extend(qkv[at..at + group * dim].iter().map(|q| q * shape.scale * k_scale));
    }
    let first_position = item.sequence.first_position + item.first;
    let last_position = first_position + item.rows - 1;
    let oldest = shape.sliding_window.map_or(0, |window| (first_position + 1).saturating_sub(window));
    for block in oldest / BLOCK_TOKENS..=last_position / BLOCK_TOKENS {
        let physical = item.sequence.blocks[block] as usize;
        decode(kv.layout.format, kv.head(physical, layer, false, item.head), &mut scratch.keys);
        decode(kv.layout.format, kv.head(physical, layer, true, item.head), &mut scratch.values);
        for line in 0..lines {
            let position = first_position + line / group;
            let from = shape.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window));
            let start = block * BLOCK_TOKENS;
            // Tokens of this block that the row sees: never more than were written, whatever the slots hold.
            let (low, high) = (from.saturating_sub(start), (position + 1).saturating_sub(start).min(BLOCK_TOKENS));
            if low >= high {
                continue;
            }
            let query = &scratch.queries[line * dim..(line + 1) * dim];
            let scores = scores(query, &scratch.keys);
            accumulate(
                scores,
                low..high,
                &scratch.values,
                &mut scratch.rows[line],
                &mut scratch.sums[line * dim..(line + 1) * dim],
            );
        }
    }
    for line in 0..lines {
        let row = item.sequence.first_row + item.first + line / group;
        let column = (item.head * group + line % group) * dim;
        let factor = v_scale / scratch.rows[line].sum;
        for (i, sum) in scratch.sums[line * dim..(line + 1) * dim].iter().enumerate() {
            // SAFETY: inside the item's part of `out`.
            unsafe { *out.add(row * shape.heads * dim + column + i) = sum * factor };
        }
    }
}

/// `q . k` of the block's 16 tokens.
#[inline(always)]
fn scores(query: &[f32], keys: &[f32]) -> [f32; BLOCK_TOKENS] {
    // Two chains hide the latency of the multiply-add; their order is fixed.
    let mut even = [0.0f32; BLOCK_TOKENS];
    let mut odd = [0.0f32; BLOCK_TOKENS];
    let mut keys = keys.chunks_exact(BLOCK_TOKENS);
    let mut query = query.iter();
    while let (Some(q), Some(k)) = (query.next(), keys.next()) {
        for (sum, k) in even.iter_mut().zip(k) {
            *sum += q * k;
        }
        let (Some(q), Some(k)) = (query.next(), keys.next()) else { break };
        for (sum, k) in odd.iter_mut().zip(k) {
            *sum += q * k;
        }
    }
    for (a, b) in even.iter_mut().zip(odd) {
        *a += b;
    }
    even
}

#[inline(always)]
fn accumulate(
    mut scores: [f32; BLOCK_TOKENS],
    seen: std::ops::Range<usize>,
    values: &[f32],
    row: &mut Running,
    sums: &mut [f32],
) {
    for (token, score) in scores.iter_mut().enumerate() {
        if !seen.contains(&token) {
            *score = f32::NEG_INFINITY;
        }
    }
    let max = scores.iter().copied().fold(row.max, f32::max);
    let correction = super::elementwise::exp(row.max - max);
    row.max = max;
    let mut total = 0.0;
    for score in &mut scores {
        *score = super::elementwise::exp(*score - max);
        total += *score;
    }
    row.sum = row.sum * correction + total;
    for sum in sums.iter_mut() {
        *sum *= correction;
    }
    let dim = sums.len();
    // Only tokens that are seen: a slot that was never written may hold NaN, and 0 x NaN is NaN.
    for token in seen {
        let p = scores[token];
        for (sum, v) in sums.iter_mut().zip(&values[token * dim..(token + 1) * dim]) {
            *sum += p * v;
        }
    }
}
