//! Paged attention of a step: decode and prefill launches over its sequences, and how finely a sequence is cut.

use super::{
    executor::Executor,
    graph::Command,
    kernels::Ptr,
    launch::{
        Pool,
        attention::{Attention, Parts},
    },
    scratch::Slot,
    step::CudaStep,
};
use crate::{AttentionShape, Result};

/// Most parts of a sequence: a part has at least 128 tokens (`kernels/attention_decode.cu`).
const MOST_SPLITS: usize = 32;
/// Parts with `deterministic`: one number for every batch.
const FIXED_SPLITS: u32 = 16;

/// Attention of a step's rows in one layer.
pub(super) fn attend(
    on: &impl Executor,
    step: &CudaStep,
    qkv: Ptr<f32>,
    shape: &AttentionShape,
    pool: &Pool,
    out: Ptr<f32>,
) -> Result<()> {
    let splits = splits(on, step.sequences.count, shape);
    let (sums, states) = if step.shape.decodes {
        let [sums, states] = Parts::sizes(step.sequences.count, shape, splits);
        (
            Ptr::new(on.scratch(Slot::Sums, sums * size_of::<f32>())?),
            Ptr::new(on.scratch(Slot::States, states * size_of::<f32>())?),
        )
    } else {
        (Ptr::NULL, Ptr::NULL)
    };
    let parts = Parts { sums, states, splits };
    let sequences = (&step.sequences, step.reach(shape.sliding_window));
    let attention = Attention::new(qkv, shape, pool, sequences, parts, out)?;
    // Each kernel passes over the sequences that are the other's.
    if step.shape.decodes {
        on.submit(Command::Launch(attention.decode()?))?;
        on.submit(Command::Launch(attention.reduce()?))?;
    }
    if step.shape.longest > 0 {
        on.submit(Command::Launch(attention.prefill(step.shape.longest)?))?;
    }
    Ok(())
}

/// Most parts of a sequence: so many that there are two blocks for each multiprocessor, whatever the lengths are, which
/// a recorded step does not know.
pub(super) fn splits(on: &impl Executor, sequences: usize, shape: &AttentionShape) -> u32 {
    if on.deterministic() {
        return FIXED_SPLITS;
    }
    let blocks = sequences * shape.kv_heads;
    let wanted = (2 * on.processors()).div_ceil(blocks.max(1));
    wanted.clamp(1, MOST_SPLITS) as u32
}
