//! `Q4_K`: 4-bit codes, eight groups of 32 with a scale and a minimum each.

use super::super_block::{affine, pack_scales};
use crate::checkpoint::ggml::{BlockQ4K, SUPER_BLOCK};

/// One block; `importance` belongs to its columns.
pub(super) fn quantize(x: &[f32; SUPER_BLOCK], importance: Option<&[f32; SUPER_BLOCK]>) -> BlockQ4K {
    let block = affine(x, importance, 15.0);
    let mut qs = [0; SUPER_BLOCK / 2];
    for (qs, codes) in qs.as_chunks_mut::<32>().0.iter_mut().zip(block.codes.as_chunks::<64>().0) {
        for (l, byte) in qs.iter_mut().enumerate() {
            *byte = codes[l] | codes[l + 32] << 4;
        }
    }
    let scales = pack_scales(block.scales, block.mins);
    BlockQ4K { d: block.d.into(), dmin: block.dmin.into(), scales, qs }
}
