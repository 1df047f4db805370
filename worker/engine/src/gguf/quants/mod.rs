//! Quantizing rows of weights into the block formats.
//!
//! | module | formats |
//! |---|---|
//! | `simple` | Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 |
//! | `q4_k`, `q5_k`, `q6_k` | the K formats |
//! | `super_block` | the 6-bit scales and minima that `Q4_K` and `Q5_K` share |
//! | `search` | the search for a group's scale and minimum, and the weights of errors |
//!
//! The layouts and their inverse are in `checkpoint::ggml`.

mod q4_k;
mod q5_k;
mod q6_k;
mod search;
mod simple;
mod super_block;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::checkpoint::{
    SourceDtype,
    ggml::{BLOCK, Half, SUPER_BLOCK},
};

/// The largest magnitude of a weight that every format holds: FP16 scales end there.
pub(super) const LARGEST: f32 = 65_000.0;

/// Quantizes one row into `out`. `importance` has one value per column. `None` when the lengths do not fit each other.
///
/// Values are finite and at most [`LARGEST`] in magnitude, except for F32 and BF16.
pub(super) fn quantize_row(dtype: SourceDtype, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Option<()> {
    if dtype.row_bytes(x.len())? != out.len() || importance.is_some_and(|i| i.len() != x.len()) {
        return None;
    }
    let sigma = match importance {
        Some(_) => (x.iter().map(|v| v * v).sum::<f32>() / x.len().max(1) as f32).sqrt(),
        None => 0.0,
    };
    match dtype {
        SourceDtype::F32 => each::<_, 1>(x, None, out, |x, _, y: &mut [u8; 4]| *y = x[0].to_le_bytes()),
        SourceDtype::F16 => each::<_, 1>(x, None, out, |x, _, y: &mut Half| *y = f16::from_f32(x[0]).into()),
        SourceDtype::Bf16 => {
            each::<_, 1>(x, None, out, |x, _, y: &mut [u8; 2]| *y = bf16::from_f32(x[0]).to_le_bytes())
        }
        SourceDtype::Q8_0 => each::<_, BLOCK>(x, importance, out, |x, i, y| *y = simple::q8_0(x, i, sigma)),
        SourceDtype::Q4_0 => each::<_, BLOCK>(x, importance, out, |x, i, y| *y = simple::q4_0(x, i, sigma)),
        SourceDtype::Q4_1 => each::<_, BLOCK>(x, importance, out, |x, i, y| *y = simple::q4_1(x, i, sigma)),
        SourceDtype::Q5_0 => each::<_, BLOCK>(x, importance, out, |x, i, y| *y = simple::q5_0(x, i, sigma)),
        SourceDtype::Q5_1 => each::<_, BLOCK>(x, importance, out, |x, i, y| *y = simple::q5_1(x, i, sigma)),
        SourceDtype::Q4_K => each::<_, SUPER_BLOCK>(x, importance, out, |x, i, y| *y = q4_k::quantize(x, i)),
        SourceDtype::Q5_K => each::<_, SUPER_BLOCK>(x, importance, out, |x, i, y| *y = q5_k::quantize(x, i)),
        SourceDtype::Q6_K => each::<_, SUPER_BLOCK>(x, importance, out, |x, i, y| *y = q6_k::quantize(x, i)),
    }
}

/// Runs `encode` over chunks of `N` elements, their importance, and their block.
fn each<B: Pod, const N: usize>(
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    encode: impl Fn(&[f32; N], Option<&[f32; N]>, &mut B),
) -> Option<()> {
    let blocks: &mut [B] = bytemuck::try_cast_slice_mut(out).ok()?;
    let (x, rest) = x.as_chunks::<N>();
    if blocks.len() != x.len() || !rest.is_empty() {
        return None;
    }
    let importance = importance.map(|i| i.as_chunks::<N>().0);
    for (i, (x, block)) in x.iter().zip(blocks).enumerate() {
        encode(x, importance.and_then(|all| all.get(i)), block);
    }
    Some(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
