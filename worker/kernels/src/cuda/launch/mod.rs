//! Typed launches: one function per kernel, or per family of kernels of one form, and the only place where grids and shared
//! memory are computed.
//!
//! | module | kernels |
//! |---|---|
//! | [`rows`] | norms, quantization, gated activation, embedding, gathering, moves of the cache |
//! | [`rotary`] | rotation and the store into the cache |
//! | [`attention`] | paged attention |
//! | [`linear`] | products |
//! | [`sample`] | tokens of logits |
//! | [`calibrate`] | statistics of calibration |

pub(super) mod attention;
pub(super) mod calibrate;
pub(super) mod linear;
pub(super) mod rotary;
pub(super) mod rows;
pub(super) mod sample;

use super::driver::Address;
use crate::KvLayout;

/// One layer of the paged pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pool {
    /// The pool's first address.
    pub(super) base: Address,
    pub(super) layout: KvLayout,
    pub(super) layer: usize,
    /// Scales of the layer's K and V, one for each head.
    pub(super) scales: [Address; 2],
}

/// Blocks of `size` that cover `count`.
fn blocks(count: usize, size: usize) -> u32 {
    count.div_ceil(size) as u32
}

/// One block for each row.
fn per_row(rows: super::kernels::Rows) -> [u32; 3] {
    [rows.get() as u32, 1, 1]
}
