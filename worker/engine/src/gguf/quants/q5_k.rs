//! `Q5_K`: as `Q4_K` with a fifth bit.

use super::super_block::{affine, pack_scales};
use crate::checkpoint::ggml::{BlockQ5K, SUPER_BLOCK};

/// One block; `importance` belongs to its columns.
pub(super) fn quantize(x: &[f32; SUPER_BLOCK], importance: Option<&[f32; SUPER_BLOCK]>) -> BlockQ5K {
    let block = affine(x, importance, 31.0);
    let (mut qs, mut qh) = ([0; SUPER_BLOCK / 2], [0; SUPER_BLOCK / 8]);
    for (i, code) in block.codes.into_iter().enumerate() {
        let (group, l) = (i / 32, i % 32);
        qs[group / 2 * 32 + l] |= (code & 15) << (group % 2 * 4);
        qh[l] |= code >> 4 << group;
    }
    let scales = pack_scales(block.scales, block.mins);
    BlockQ5K { d: block.d.into(), dmin: block.dmin.into(), scales, qh, qs }
}
