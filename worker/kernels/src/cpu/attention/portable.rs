//! Attention in FP32, for every cache format and head size.

use std::ops::Range;

use super::Task;
use crate::{
    BLOCK_TOKENS,
    cpu::{elementwise::exp, isa::per_isa, kv::decode},
};

/// Scratch of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[head_dim][16 tokens]`.
    keys: Vec<f32>,
    /// `[16 tokens][head_dim]`.
    values: Vec<f32>,
    /// `[lines][head_dim]`, scaled.
    queries: Vec<f32>,
    rows: Vec<Running>,
    /// `[lines][head_dim]`.
    sums: Vec<f32>,
}

/// Running maximum and sum of one line.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

per_isa! {
    /// # Safety
    /// As [`super::attend`].
    pub(super) unsafe fn attend(task: &Task<'_>, scratch: &mut Scratch) = compute;
}

#[inline(always)]
unsafe fn compute(task: &Task<'_>, scratch: &mut Scratch) {
    let dim = task.shape.head_dim;
    let (k_scale, v_scale) = task.scales();
    let lines = task.lines();
    scratch.keys.resize(dim * BLOCK_TOKENS, 0.0);
    scratch.values.resize(dim * BLOCK_TOKENS, 0.0);
    scratch.queries.clear();
    scratch.sums.clear();
    scratch.sums.resize(lines * dim, 0.0);
    scratch.rows.clear();
    scratch.rows.resize(lines, Running { max: f32::NEG_INFINITY, sum: 0.0 });
    for line in 0..lines {
        scratch.queries.extend(task.query(line).iter().map(|q| q * task.shape.scale * k_scale));
    }
    let format = task.kv.layout.format;
    for block in task.blocks() {
        decode(format, task.stored(block, false), BLOCK_TOKENS, &mut scratch.keys);
        decode(format, task.stored(block, true), dim, &mut scratch.values);
        for line in 0..lines {
            let seen = task.seen(line, block);
            if seen.is_empty() {
                continue;
            }
            let at = line * dim..(line + 1) * dim;
            let scores = scores(&scratch.queries[at.clone()], &scratch.keys);
            accumulate(scores, seen, &scratch.values, &mut scratch.rows[line], &mut scratch.sums[at]);
        }
    }
    for line in 0..lines {
        let factor = v_scale / scratch.rows[line].sum;
        // SAFETY: the caller's promise.
        let out = unsafe { task.output(line) };
        for (i, sum) in scratch.sums[line * dim..(line + 1) * dim].iter().enumerate() {
            // SAFETY: a line's output has `head_dim` values.
            unsafe { *out.add(i) = sum * factor };
        }
    }
}

/// `q . k` of the block's 16 tokens.
#[inline(always)]
fn scores(query: &[f32], keys: &[f32]) -> [f32; BLOCK_TOKENS] {
    // Two chains hide the latency of the multiply-add; their order is fixed.
    let mut even = [0.0f32; BLOCK_TOKENS];
    let mut odd = [0.0f32; BLOCK_TOKENS];
    for (q, k) in query.as_chunks::<2>().0.iter().zip(keys.chunks_exact(2 * BLOCK_TOKENS)) {
        for token in 0..BLOCK_TOKENS {
            even[token] += q[0] * k[token];
            odd[token] += q[1] * k[BLOCK_TOKENS + token];
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
    seen: Range<usize>,
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
    let correction = exp(row.max - max);
    row.max = max;
    let mut total = 0.0;
    for score in &mut scores {
        *score = exp(*score - max);
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
