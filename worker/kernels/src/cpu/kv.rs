//! The paged KV pool: address space for the largest profile, memory for the blocks in use.
//!
//! ```text
//! block = layers x (K | V);  K = [kv head][head_dim / 2][16 tokens][2];  V = [kv head][8 token pairs][head_dim][2]
//! ```
//!
//! Keys lie with the tokens in the lanes: a query's 16 scores are a sum over `head_dim` of one register each. Values lie
//! as they are added up. Both lie in pairs along the sum, as the products of two BF16 pairs want them.

use std::ptr::NonNull;

use half::f16;

use super::activations::to_bf16;
use crate::{
    AttentionShape, BLOCK_TOKENS, BlockMove, KernelError, KvFormat, KvLayout, KvScales, Result,
    format::{e4m3, e5m2},
};

/// A pool of KV blocks.
pub struct KvPool {
    base: NonNull<u8>,
    reserved: usize,
    blocks: usize,
    max_blocks: usize,
    pub(super) layout: KvLayout,
    pub(super) scales: KvScales,
}

// SAFETY: the pool owns its mapping; all access goes through `&self` and `&mut self`.
unsafe impl Send for KvPool {}
// SAFETY: shared access only reads, but for `write_token`, whose callers write disjoint tokens.
unsafe impl Sync for KvPool {}

impl KvPool {
    /// Reserves `max_blocks`, of which `blocks` may be used.
    pub fn new(layout: KvLayout, scales: &KvScales, blocks: usize, max_blocks: usize) -> Result<Self> {
        let heads = layout.layers * layout.kv_heads;
        if scales.k.len() != heads || scales.v.len() != heads {
            return Err(KernelError::Shape(format!("the KV scales are not for {heads} heads")));
        }
        if !layout.head_dim.is_multiple_of(2) {
            return Err(KernelError::Shape(format!(
                "a head of {} elements is not a whole number of pairs",
                layout.head_dim
            )));
        }
        if blocks > max_blocks {
            return Err(KernelError::Shape(format!("{blocks} blocks are more than the largest number, {max_blocks}")));
        }
        let reserved = layout
            .block_bytes()
            .checked_mul(max_blocks.max(1))
            .ok_or_else(|| KernelError::OutOfMemory(format!("{max_blocks} KV blocks")))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping, no fixed address.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), reserved, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(KernelError::OutOfMemory(format!("{reserved} bytes of address space for the KV pool")));
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| KernelError::OutOfMemory("the KV pool".into()))?;
        Ok(Self { base, reserved, blocks, max_blocks, layout, scales: scales.clone() })
    }

    /// Usable blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Holds attention's shape against what the pool stores.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when heads, their size or the layer are not the pool's.
    pub(super) fn check(&self, shape: &AttentionShape, layer: usize) -> Result<()> {
        let KvLayout { layers, kv_heads, head_dim, .. } = self.layout;
        let sound = shape.kv_heads == kv_heads
            && shape.head_dim == head_dim
            && kv_heads > 0
            && shape.heads.is_multiple_of(kv_heads)
            && layer < layers;
        if sound {
            Ok(())
        } else {
            Err(KernelError::Shape(format!("{shape:?} in layer {layer} is not of {:?}", self.layout)))
        }
    }

    /// Changes the number of usable blocks; memory above goes back to the system.
    pub fn resize(&mut self, blocks: usize) -> Result<()> {
        if blocks > self.max_blocks {
            return Err(KernelError::OutOfMemory(format!("{blocks} KV blocks; {} are reserved", self.max_blocks)));
        }
        if blocks < self.blocks {
            let start = blocks * self.layout.block_bytes();
            let len = (self.blocks - blocks) * self.layout.block_bytes();
            // SAFETY: the range is inside the mapping; private anonymous pages read as zero afterwards.
            let failed = unsafe { libc::madvise(self.base.as_ptr().add(start).cast(), len, libc::MADV_DONTNEED) } != 0;
            if failed {
                return Err(KernelError::Device(format!("madvise: {}", std::io::Error::last_os_error())));
            }
        }
        self.blocks = blocks;
        Ok(())
    }

    /// Copies blocks in order.
    pub fn move_blocks(&mut self, moves: &[BlockMove]) -> Result<()> {
        let bytes = self.layout.block_bytes();
        for BlockMove { from, to } in moves {
            if *from as usize >= self.blocks || *to as usize >= self.blocks || from == to {
                return Err(KernelError::Shape(format!("block {from} cannot move to {to} of {}", self.blocks)));
            }
            // SAFETY: both blocks are inside the mapping and differ.
            unsafe {
                let base = self.base.as_ptr();
                std::ptr::copy_nonoverlapping(base.add(*from as usize * bytes), base.add(*to as usize * bytes), bytes);
            }
        }
        Ok(())
    }

    /// Start of a head's K or V of a block.
    fn place(&self, block: usize, layer: usize, value: bool, head: usize) -> usize {
        let head_bytes = self.layout.head_dim * BLOCK_TOKENS * self.layout.format.bytes();
        let side = self.layout.kv_heads * head_bytes;
        block * self.layout.block_bytes()
            + layer * self.layout.layer_bytes()
            + usize::from(value) * side
            + head * head_bytes
    }

    /// The stored bytes of a head's K or V of a block.
    pub(super) fn head(&self, block: usize, layer: usize, value: bool, head: usize) -> &[u8] {
        assert!(block < self.blocks && layer < self.layout.layers && head < self.layout.kv_heads, "inside the pool");
        let len = self.layout.head_dim * BLOCK_TOKENS * self.layout.format.bytes();
        // SAFETY: checked above; anonymous memory is always initialized.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(self.place(block, layer, value, head)), len) }
    }

    /// Stores one token's key and value of one head.
    ///
    /// # Safety
    /// No other thread may use this token of this head meanwhile.
    pub(super) unsafe fn write_token(&self, slot: usize, layer: usize, head: usize, key: &[f32], value: &[f32]) {
        let (block, token) = (slot / BLOCK_TOKENS, slot % BLOCK_TOKENS);
        let dim = self.layout.head_dim;
        assert!(block < self.blocks && layer < self.layout.layers && head < self.layout.kv_heads, "inside the pool");
        assert!(key.len() == dim && value.len() == dim, "one head");
        let scale = layer * self.layout.kv_heads + head;
        let (k_scale, v_scale) = (1.0 / self.scales.k[scale], 1.0 / self.scales.v[scale]);
        // SAFETY: both start a head's K or V inside the pool, which has `head_dim * BLOCK_TOKENS` elements.
        unsafe {
            let k = self.base.as_ptr().add(self.place(block, layer, false, head));
            let v = self.base.as_ptr().add(self.place(block, layer, true, head));
            let half = |x: f32| f16::from_f32(x.clamp(-65504.0, 65504.0)).to_bits();
            match self.layout.format {
                KvFormat::Bf16 => store(k.cast(), v.cast(), token, key, value, to_bf16, to_bf16),
                KvFormat::Fp16 => store(k.cast(), v.cast(), token, key, value, half, half),
                KvFormat::Fp8E4m3 => {
                    let (key_code, value_code) = (|x| e4m3::encode(x * k_scale), |x| e4m3::encode(x * v_scale));
                    store(k, v, token, key, value, key_code, value_code);
                }
                KvFormat::Fp8E5m2 => store(k, v, token, key, value, e5m2::encode, e5m2::encode),
            }
        }
    }
}

/// Stores one token of one head in the pairs of the layout.
///
/// # Safety
/// `k` and `v` start the head's elements of a block; the token is below [`BLOCK_TOKENS`], `key` and `value` have
/// `head_dim` elements, and no other thread uses the token meanwhile.
#[inline(always)]
unsafe fn store<T>(
    k: *mut T,
    v: *mut T,
    token: usize,
    key: &[f32],
    value: &[f32],
    key_code: impl Fn(f32) -> T,
    value_code: impl Fn(f32) -> T,
) {
    let dim = key.len();
    for (i, x) in key.iter().enumerate() {
        // SAFETY: below `head_dim * BLOCK_TOKENS`, since `head_dim` is even. Blocks start at whole pages.
        unsafe { k.add((i / 2 * BLOCK_TOKENS + token) * 2 + i % 2).write(key_code(*x)) };
    }
    for (i, x) in value.iter().enumerate() {
        // SAFETY: as above.
        unsafe { v.add((token / 2 * dim + i) * 2 + token % 2).write(value_code(*x)) };
    }
}

/// Decodes stored pairs, without their scale, into rows of `width`: the firsts of a row of pairs, then the seconds.
#[inline(always)]
pub(super) fn decode(format: KvFormat, bytes: &[u8], width: usize, out: &mut [f32]) {
    match format {
        KvFormat::Bf16 => rows(bytes.as_chunks::<4>().0, width, out, |b| {
            let word = u32::from_le_bytes(*b);
            (f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000))
        }),
        KvFormat::Fp16 => rows(bytes.as_chunks::<4>().0, width, out, |b| {
            (half_to_f32(u16::from_le_bytes([b[0], b[1]])), half_to_f32(u16::from_le_bytes([b[2], b[3]])))
        }),
        // As `e4m3::decode`, without its NaN case: NaN codes are never stored.
        KvFormat::Fp8E4m3 => {
            rows(bytes.as_chunks::<2>().0, width, out, |b| (shifted(b[0], 20, 120), shifted(b[1], 20, 120)));
        }
        KvFormat::Fp8E5m2 => {
            rows(bytes.as_chunks::<2>().0, width, out, |b| (shifted(b[0], 21, 112), shifted(b[1], 21, 112)));
        }
    }
}

/// FP16, as [`shifted`]; written out because a call for each element keeps the loop from being vectorized. Infinity is never
/// stored; NaN stays NaN.
#[inline(always)]
fn half_to_f32(half: u16) -> f32 {
    let magnitude = u32::from(half & 0x7fff);
    let value = f32::from_bits(magnitude << 13) * f32::from_bits((112 + 127) << 23);
    let value = if magnitude >= 0x7c00 { f32::NAN } else { value };
    f32::from_bits(value.to_bits() | u32::from(half & 0x8000) << 16)
}

/// An 8-bit float: exponent and mantissa moved to FP32's place, the difference of the biases an exact power of two.
#[inline(always)]
fn shifted(code: u8, mantissa: u32, bias: u32) -> f32 {
    let magnitude = f32::from_bits(u32::from(code & 0x7f) << mantissa) * f32::from_bits((bias + 127) << 23);
    f32::from_bits(magnitude.to_bits() | u32::from(code & 0x80) << 24)
}

#[inline(always)]
fn rows<const N: usize>(pairs: &[[u8; N]], width: usize, out: &mut [f32], decode: impl Fn(&[u8; N]) -> (f32, f32)) {
    for (pairs, out) in pairs.chunks_exact(width).zip(out.chunks_exact_mut(2 * width)) {
        let (first, second) = out.split_at_mut(width);
        for ((pair, first), second) in pairs.iter().zip(first).zip(second) {
            (*first, *second) = decode(pair);
        }
    }
}

impl Drop for KvPool {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody borrows it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.reserved) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(format: KvFormat) -> KvPool {
        let layout = KvLayout { layers: 2, kv_heads: 2, head_dim: 8, format };
        KvPool::new(layout, &KvScales::unit(&layout), 4, 6).unwrap()
    }

    #[test]
    fn every_half_is_decoded_exactly() {
        for bits in 0..=u16::MAX {
            let expected = f16::from_bits(bits);
            if expected.is_nan() {
                assert!(half_to_f32(bits).is_nan(), "{bits:#x}");
            } else if expected.is_finite() {
                assert_eq!(half_to_f32(bits).to_bits(), expected.to_f32().to_bits(), "{bits:#x}");
            }
        }
    }

    #[test]
    fn a_token_is_read_as_it_was_stored() {
        for format in [KvFormat::Bf16, KvFormat::Fp16, KvFormat::Fp8E4m3, KvFormat::Fp8E5m2] {
            let pool = pool(format);
            let (key, value): (Vec<f32>, Vec<f32>) = ((0..8).map(|i| i as f32).collect(), vec![-2.0; 8]);
            // SAFETY: one thread.
            unsafe { pool.write_token(16 + 5, 1, 1, &key, &value) };
            let mut out = vec![0.0; 8 * BLOCK_TOKENS];
            decode(format, pool.head(1, 1, false, 1), BLOCK_TOKENS, &mut out);
            let found: Vec<f32> = (0..8).map(|i| out[i * BLOCK_TOKENS + 5]).collect();
            assert_eq!(found, key, "{format:?}");
            decode(format, pool.head(1, 1, true, 1), 8, &mut out);
            assert_eq!(out[5 * 8..6 * 8], value, "{format:?}");
        }
    }

    #[test]
    fn moved_blocks_keep_their_content_and_shrunk_ones_lose_it() {
        let mut pool = pool(KvFormat::Bf16);
        // SAFETY: one thread.
        unsafe { pool.write_token(3 * 16, 0, 0, &[1.0; 8], &[2.0; 8]) };
        pool.move_blocks(&[BlockMove { from: 3, to: 0 }]).unwrap();
        let moved = pool.head(0, 0, true, 0).to_vec();
        assert!(moved.iter().any(|b| *b != 0));
        pool.resize(3).unwrap();
        pool.resize(4).unwrap();
        assert!(pool.head(3, 0, true, 0).iter().all(|b| *b == 0));
        assert_eq!(pool.head(0, 0, true, 0), moved);
        assert!(pool.resize(7).is_err());
        assert!(pool.move_blocks(&[BlockMove { from: 5, to: 0 }]).is_err());
    }
}
