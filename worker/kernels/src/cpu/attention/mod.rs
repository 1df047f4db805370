//! Paged attention: softmax(q K^T * scale) V over a sequence's cached tokens, online over blocks of 16 (online softmax:
//! Milakov and Gimelshein 2018).
//!
//! | module | what it does |
//! |---|---|
//! | `portable` | FP32 arithmetic, any head size and cache format |
//! | `avx2` | FP32 multiply-adds, any cache format, heads of whole registers; with AVX-512, what is not for that |
//! | `avx512` | BF16 products for the formats that BF16 holds exactly |
//!
//! Each query row walks its blocks in order with its own running maximum and sum, so that a row does not depend on its
//! neighbours, on the chunking of the prompt, nor on which physical blocks hold the tokens.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::ops::Range;

use super::{Isa, kv::KvPool};
use crate::{AttentionShape, BLOCK_TOKENS, SequenceSpan};

/// Scratch of one thread.
#[derive(Default)]
pub struct Scratch {
    portable: portable::Scratch,
    #[cfg(target_arch = "x86_64")]
    avx2: avx2::Scratch,
    #[cfg(target_arch = "x86_64")]
    avx512: avx512::Scratch,
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

/// An item with its operands. A *line* is one query head of one row; the lines of a row follow each other.
#[derive(Clone, Copy)]
struct Task<'a> {
    item: Item<'a>,
    shape: &'a AttentionShape,
    kv: &'a KvPool,
    layer: usize,
    qkv: &'a [f32],
    out: *mut f32,
}

impl<'a> Task<'a> {
    /// Query heads of the KV head.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    fn lines(&self) -> usize {
        self.item.rows * self.group()
    }

    /// The query of a line.
    fn query(&self, line: usize) -> &'a [f32] {
        let (dim, group) = (self.shape.head_dim, self.group());
        let width = (self.shape.heads + 2 * self.shape.kv_heads) * dim;
        let row = self.item.sequence.first_row + self.item.first + line / group;
        let at = row * width + (self.item.head * group + line % group) * dim;
        &self.qkv[at..at + dim]
    }

    /// Where the output of a line goes: `head_dim` values.
    ///
    /// # Safety
    /// As [`attend`].
    unsafe fn output(&self, line: usize) -> *mut f32 {
        let (dim, group) = (self.shape.head_dim, self.group());
        let row = self.item.sequence.first_row + self.item.first + line / group;
        // SAFETY: the row and head are of this item, so inside `out`.
        unsafe { self.out.add((row * self.shape.heads + self.item.head * group + line % group) * dim) }
    }

    fn first_position(&self) -> usize {
        self.item.sequence.first_position + self.item.first
    }

    /// Logical blocks that some row of the item sees.
    fn blocks(&self) -> Range<usize> {
        let first = self.first_position();
        let oldest = self.shape.sliding_window.map_or(0, |window| (first + 1).saturating_sub(window));
        oldest / BLOCK_TOKENS..(first + self.item.rows - 1) / BLOCK_TOKENS + 1
    }

    /// Tokens of a block that a line sees: never more than were written, whatever the slots hold.
    fn seen(&self, line: usize, block: usize) -> Range<usize> {
        let position = self.first_position() + line / self.group();
        let from = self.shape.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window));
        let start = block * BLOCK_TOKENS;
        from.saturating_sub(start).min(BLOCK_TOKENS)..(position + 1).saturating_sub(start).min(BLOCK_TOKENS)
    }

    /// The stored keys (or values) of a block.
    fn stored(&self, block: usize, value: bool) -> &'a [u8] {
        self.kv.head(self.item.sequence.blocks[block] as usize, self.layer, value, self.item.head)
    }

    /// Scales of the keys and values.
    fn scales(&self) -> (f32, f32) {
        let index = self.layer * self.shape.kv_heads + self.item.head;
        (self.kv.scales.k[index], self.kv.scales.v[index])
    }
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
    let task = Task { item, shape, kv, layer, qkv, out };
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && avx512::can(&task) {
        // SAFETY: the caller's promises.
        unsafe { avx512::attend(&task, &mut scratch.avx512) };
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Scalar && avx2::can(&task) {
        // SAFETY: the caller's promises; AVX-512 is available only where AVX2, FMA and F16C are.
        unsafe { avx2::attend(&task, &mut scratch.avx2) };
        return;
    }
    // SAFETY: the caller's promises.
    unsafe { portable::attend(isa, &task, &mut scratch.portable) }
}
