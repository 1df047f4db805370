//! Launches of rotation and store. The contracts are in `kernels/rotary.cu`.

use super::{Pool, blocks};
use crate::{
    AttentionShape, KernelError, KvFormat, Result,
    cuda::{
        driver::Parameters,
        kernels::{Kernel, Launch, Ptr, Rows},
        work::{Work, floats},
    },
};

/// Angles of the step's rows, once per step: `angles` is `[rows, 2, pairs]`.
pub(in crate::cuda) fn angles(
    rows: Rows,
    positions: Ptr<u32>,
    frequencies: Ptr<f32>,
    pairs: usize,
    factor: f32,
    angles: Ptr<f32>,
) -> Launch {
    let parameters = Parameters::new()
        .ptr(angles)
        .ptr(positions)
        .ptr(frequencies)
        .with(rows.get() as u32)
        .with(pairs as u32)
        .with(factor);
    let work = Work::bytes(floats(rows.get() + pairs), floats(2 * rows.get() * pairs));
    Launch::new(Kernel::RotaryAngles, [blocks(rows.get() * pairs, 256), 1, 1], parameters).with_work(work)
}

/// Gains of the norms before the rotation; null without.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct HeadNorms {
    pub(in crate::cuda) query: Ptr<f32>,
    pub(in crate::cuda) key: Ptr<f32>,
    pub(in crate::cuda) epsilon: f32,
}

/// Rotates queries and keys of `qkv` in place and stores keys and values of rows that have a slot.
///
/// # Errors
/// [`KernelError::Shape`] when the rotated part of a head is no multiple of 8 elements or larger than the head.
pub(in crate::cuda) fn rotate_and_store(
    rows: Rows,
    qkv: Ptr<f32>,
    (angles, pairs): (Ptr<f32>, usize),
    slots: Ptr<u32>,
    shape: &AttentionShape,
    norms: HeadNorms,
    pool: &Pool,
) -> Result<Launch> {
    let rotary = 2 * pairs;
    if rotary > shape.head_dim || rotary % 8 != 0 || rotary == 0 {
        return Err(KernelError::Shape(format!(
            "{pairs} rotary pairs of a head of {}: the GPU rotates multiples of 4 pairs inside the head",
            shape.head_dim
        )));
    }
    let kernel = match pool.layout.format {
        KvFormat::Bf16 => Kernel::RotateStoreBf16,
        KvFormat::Fp16 => Kernel::RotateStoreF16,
        KvFormat::Fp8E4m3 => Kernel::RotateStoreE4m3,
        KvFormat::Fp8E5m2 => Kernel::RotateStoreE5m2,
    };
    let parameters = Parameters::new()
        .ptr(qkv)
        .ptr(Ptr::<u8>::new(pool.base))
        .ptr(angles)
        .ptr(slots)
        .ptr(norms.query)
        .ptr(norms.key);
    let parameters = match pool.layout.format {
        KvFormat::Fp8E4m3 => {
            let [k, v] = pool.scales;
            parameters.ptr(Ptr::<f32>::new(k)).ptr(Ptr::<f32>::new(v))
        }
        KvFormat::Bf16 | KvFormat::Fp16 | KvFormat::Fp8E5m2 => parameters,
    };
    let parameters = parameters
        .with(shape.heads as u32)
        .with(shape.kv_heads as u32)
        .with(shape.head_dim as u32)
        .with(rotary as u32)
        .with(norms.epsilon)
        .with(pool.layout.block_bytes() as u64)
        .with((pool.layer * pool.layout.layer_bytes()) as u64);
    // Heads of a block: 256 threads in teams of 8, 16 or 32.
    let heads_of_block = match shape.head_dim {
        ..=64 => 32,
        65..=128 => 16,
        _ => 8,
    };
    let heads = shape.heads + 2 * shape.kv_heads;
    // Values are read to be stored, and stay as they are; queries and keys are written back.
    let (read, rotated) = (heads * shape.head_dim + rotary, (heads - shape.kv_heads) * shape.head_dim);
    let stored = 2 * shape.kv_heads * shape.head_dim * pool.layout.format.bytes();
    let work = Work::bytes(rows.get() * floats(read), rows.get() * (floats(rotated) + stored));
    Ok(Launch::new(kernel, [rows.get() as u32, blocks(heads, heads_of_block), 1], parameters).with_work(work))
}
